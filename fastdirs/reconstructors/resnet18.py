"""ResNet-18: the reconstructor of the original's large experiments."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from fastdirs.reconstructors import Reconstructor, ReconstructorKind
from fastdirs.reconstructors._batch_norm import BatchNorm2d

_WIDTHS = (64, 128, 256, 512)


class _Block(nn.Module):
    """Two 3x3 convolutions, whose sum with the input is passed on."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.downsample = nn.Sequential()
        if stride > 1 or channels != width:
            self.downsample.append(nn.Conv2d(channels, width, 1, stride, bias=False))
            self.downsample.append(BatchNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        """Features `[batch, channels, height, width]` -> the next, at 1 / stride of the size."""
        changed = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(changed)) + self.downsample(features))


class _ResNet18(Reconstructor):
    """Residual network of 18 layers, the mean over the picture, and a linear layer for each answer.

    Source:
        He et al. 2016, table 1, 18 layers; as the reconstructor of Voynov & Babenko 2020: the first layer
        takes both images, convolutions start from a normal distribution that keeps the variance of gradients
        (fan out). Different: the classifier of 1000 classes, which the original carries along unused, is left
        out, and epsilon keeps its axis in a batch of one.
    """

    kind = "resnet18"
    width = 512
    smallest = 32

    def __init__(self, num_directions: int, img_channels: int, img_resolution: int) -> None:
        super().__init__(num_directions, img_channels, img_resolution)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(2 * img_channels, 64, 7, 2, padding=3, bias=False),
            bn1=BatchNorm2d(64),
            relu=nn.ReLU(),
            maxpool=nn.MaxPool2d(3, 2, padding=1),
        )
        channels = 64
        for index, width in enumerate(_WIDTHS):
            blocks = _Block(channels, width, 1 if index == 0 else 2), _Block(width, width, 1)
            layers[f"layer{index + 1}"] = nn.Sequential(*blocks)
            channels = width
        self.body = nn.Sequential(layers)
        self.classifier = nn.Linear(self.width, num_directions)
        self.meter = nn.Linear(self.width, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, pair: Tensor) -> Tensor:
        """Both images, channels joined, `[batch, 2 * channels, height, width]` -> `[batch, 512]`."""
        features: Tensor = self.body(pair)
        return features.mean(dim=(2, 3))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[batch, 512]` -> logits `[batch, num_directions]` and epsilon `[batch]`."""
        return self.classifier(features), self.meter(features)[:, 0]


RECONSTRUCTOR = ReconstructorKind(
    summary="ResNet-18, 512 features, for larger images (Voynov & Babenko 2020, after He et al. 2016)",
    build=_ResNet18,
)
