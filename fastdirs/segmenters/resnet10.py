"""U-Net on a small residual network of MONAI: deeper than the published U-Net, and several times as fast."""

from monai.networks.nets.flexible_unet import FlexibleUNet
from torch import Tensor
from torch.nn import functional as F

from fastdirs.segmenters import Segmenter, SegmenterKind

_STRIDE = 32
# Channels on the way up, in widths.
_DECODER = (16, 8, 4, 2, 1)


class _Resnet10(Segmenter):
    """A residual network of 10 layers on the way down; nearest upsampling and convolutions on the way up.

    Source:
        MONAI's FlexibleUNet, without pretrained weights. The way down is He et al. 2016, figure 3 with one
        block for each size; `width` scales the way up alone. Not ResNet-18 or 34: MONAI's have shortcuts
        without weights, through which no gradient flows and which no graph with a dynamic batch can hold.
    """

    kind = "resnet10"
    smallest = 32

    def __init__(self, img_channels: int, img_resolution: int, width: int) -> None:
        super().__init__(img_channels, img_resolution, width)
        self.body = FlexibleUNet(
            in_channels=img_channels, out_channels=1, backbone="resnet10", pretrained=False,
            decoder_channels=tuple(width * each for each in _DECODER), spatial_dims=2,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Images `[batch, channels, height, width]`, in [-1, 1] -> logits `[batch, height, width]`."""
        height, width = images.shape[-2:]
        missing = -height % _STRIDE, -width % _STRIDE
        if any(missing):
            # The decoder joins sizes that must halve without a rest.
            images = F.pad(images, [0, missing[1], 0, missing[0]], mode="replicate")
        logits: Tensor = self.body(images)[:, 0, :height, :width]
        return logits


SEGMENTER = SegmenterKind(
    summary="U-Net on a residual network of 10 layers (MONAI's FlexibleUNet, after He et al. 2016)",
    build=_Resnet10,
    usual_width=16,
)
