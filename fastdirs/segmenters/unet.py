"""U-Net: the network of the published experiments on saliency from GANs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.segmenters import Segmenter, SegmenterKind


class _Pair(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide in (channels, width):
            layers += [nn.Conv2d(wide, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, channels, height, width]` -> the next, of the same size."""
        changed: Tensor = self.double_conv(features)
        return changed


class _Down(nn.Module):
    """Half the size, then a pair."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), _Pair(channels, width))

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, channels, height, width]` -> the next, of half the size, rounded down."""
        changed: Tensor = self.maxpool_conv(features)
        return changed


class _Up(nn.Module):
    """Twice the size, joined with what the way down left at that size, then a pair."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = _Pair(channels, width)

    def forward(self, features: Tensor, left: Tensor) -> Tensor:
        """Features, and what the way down left, `[batch, channels, height, width]` each -> the next."""
        larger = F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=True)
        missing = [left.shape[axis] - larger.shape[axis] for axis in (2, 3)]
        if any(missing):
            # Odd sizes lost a row on the way down.
            larger = F.pad(larger, [part for m in reversed(missing) for part in (m // 2, m - m // 2)])
        changed: Tensor = self.conv(torch.cat([left, larger], dim=1))
        return changed


class _Last(nn.Module):
    """A logit for the background and one for the object."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1)

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, channels, height, width]` -> `[batch, 2, height, width]`."""
        logits: Tensor = self.conv(features)
        return logits


class _Unet(Segmenter):
    """Four times down and up, with what the way down left at each size.

    Source:
        Ronneberger et al. 2015, in the public variant that Voynov & Babenko 2020 and Voynov et al. 2021 train
        (padded convolutions, batch norm, bilinear upsampling, half of the deepest features), with its names
        of tensors. Different: the two logits of a pixel become one, their difference, whose sigmoid is the
        softmax of the two.
    """

    kind = "unet"
    smallest = 16

    def __init__(self, img_channels: int, img_resolution: int, width: int) -> None:
        super().__init__(img_channels, img_resolution, width)
        self.inc = _Pair(img_channels, width)
        self.down1 = _Down(width, 2 * width)
        self.down2 = _Down(2 * width, 4 * width)
        self.down3 = _Down(4 * width, 8 * width)
        self.down4 = _Down(8 * width, 8 * width)
        self.up1 = _Up(16 * width, 4 * width)
        self.up2 = _Up(8 * width, 2 * width)
        self.up3 = _Up(4 * width, width)
        self.up4 = _Up(2 * width, width)
        self.outc = _Last(width)

    def forward(self, images: Tensor) -> Tensor:
        """Images `[batch, channels, height, width]`, in [-1, 1] -> logits `[batch, height, width]`."""
        left = [self.inc(images)]
        for down in (self.down1, self.down2, self.down3, self.down4):
            left.append(down(left[-1]))
        features = left.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            features = up(features, left.pop())
        background, salient = self.outc(features).unbind(1)
        logits: Tensor = salient - background
        return logits


SEGMENTER = SegmenterKind(
    summary="U-Net of the published experiments (Voynov & Babenko 2020, after Ronneberger et al. 2015)",
    build=_Unet,
    usual_width=64,
)
