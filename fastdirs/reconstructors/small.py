"""A small convolutional reconstructor: enough for pictures of 64 pixels, and fast on a CPU."""

from torch import Tensor, nn

from fastdirs.reconstructors import Reconstructor, ReconstructorKind
from fastdirs.reconstructors._batch_norm import BatchNorm2d

_WIDTHS = (32, 64, 128, 256)


class Small(Reconstructor):
    """Four convolutions of stride 2, the mean over pixels, and a linear layer for each answer.

    Source:
        Ours.
    """

    kind = "small"
    width = _WIDTHS[-1]
    smallest = 16

    def __init__(self, num_directions: int, img_channels: int, img_resolution: int) -> None:
        super().__init__(num_directions, img_channels, img_resolution)
        layers: list[nn.Module] = []
        inputs = 2 * img_channels
        for outputs in _WIDTHS:
            layers += [
                nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), BatchNorm2d(outputs), nn.LeakyReLU(0.2),
            ]  # fmt: skip
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(self.width, num_directions)
        self.meter = nn.Linear(self.width, 1)

    def features(self, pair: Tensor) -> Tensor:
        """`[batch, 2 * channels, height, width]` -> `[batch, width]`."""
        features: Tensor = self.body(pair)
        return features.mean(dim=(2, 3))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch, width]` -> logits `[batch, num_directions]`, epsilon `[batch]`."""
        return self.classifier(features), self.meter(features)[:, 0]


RECONSTRUCTOR = ReconstructorKind(
    summary="four convolutions, for small pictures and slow machines", build=Small
)
