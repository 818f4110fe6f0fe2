"""LeNet: the reconstructor of the original's small experiments, cheap to train on a CPU."""

from torch import Tensor, nn

from fastdirs.reconstructors import Reconstructor, ReconstructorKind
from fastdirs.reconstructors._batch_norm import BatchNorm1d, BatchNorm2d

_HIDDEN = 84


class _LeNet(Reconstructor):
    """Three 5x5 convolutions, the mean over the picture, and a small network for each answer.

    Source:
        Voynov & Babenko 2020, MNIST and AnimeFaces; layers, sizes and torch's usual initialisation as in the
        authors' code. Different: epsilon keeps its axis in a batch of one, and a batch that holds one value
        of a channel trains with the running statistics, where the original fails.
    """

    kind = "lenet"
    width = 120
    smallest = 32

    def __init__(self, num_directions: int, img_channels: int, img_resolution: int) -> None:
        super().__init__(num_directions, img_channels, img_resolution)
        self.body = nn.Sequential(
            nn.Conv2d(2 * img_channels, 6, 5), BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, self.width, 5), BatchNorm2d(self.width), nn.ReLU(),
        )  # fmt: skip
        self.for_classifier = self._hidden()
        self.classifier = nn.Linear(_HIDDEN, num_directions)
        self.for_meter = self._hidden()
        self.meter = nn.Linear(_HIDDEN, 1)

    def _hidden(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.width, _HIDDEN), BatchNorm1d(_HIDDEN), nn.ReLU())

    def features(self, pair: Tensor) -> Tensor:
        """Both images, channels joined, `[batch, 2 * channels, height, width]` -> `[batch, 120]`."""
        features: Tensor = self.body(pair)
        return features.mean(dim=(2, 3))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[batch, 120]` -> logits `[batch, num_directions]` and epsilon `[batch]`."""
        logits = self.classifier(self.for_classifier(features))
        return logits, self.meter(self.for_meter(features))[:, 0]


RECONSTRUCTOR = ReconstructorKind(
    summary="LeNet with batch norm, 120 features (Voynov & Babenko 2020, MNIST and AnimeFaces)", build=_LeNet
)
