"""Nearest doubling and a 3x3 convolution as one 2x2 convolution at input resolution and a shuffle of pixels.

After nearest doubling, the nine taps of each output pixel fall on only 2x2 input pixels, so taps that meet
the same pixel are summed beforehand: four multiplications for each output value and input channel instead of
nine.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.generators import Generator
from fastdirs.lowering import copied

# Which of the three taps (columns) meet the first and the second input pixel (rows). With padding on every
# side the odd position comes first: it belongs to the pixel before.
_ODD, _EVEN = ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)), ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0))


class DoublingConvolution(nn.Module):
    """All four positions in one 2x2 convolution, padded on every side; then shuffled and cropped."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        inputs, outputs = convolution.in_channels, convolution.out_channels
        self.convolution = nn.Conv2d(inputs, 4 * outputs, 2, padding=1, bias=convolution.bias is not None)
        taps = torch.tensor((_ODD, _EVEN), dtype=torch.float64)
        # In float64: the summed weights are rounded once.
        summed = torch.einsum("oikl,atk,bul->oabitu", convolution.weight.double(), taps, taps)
        self.convolution.weight = nn.Parameter(summed.reshape(4 * outputs, inputs, 2, 2).float())
        if convolution.bias is not None:
            self.convolution.bias = nn.Parameter(convolution.bias.repeat_interleave(4))

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, in, height, width]` -> `[batch, out, 2 * height, 2 * width]`."""
        return F.pixel_shuffle(self.convolution(features), 2)[:, :, 1:-1, 1:-1]


def _applies(first: nn.Module, second: nn.Module) -> bool:
    return (
        isinstance(first, nn.Upsample)
        and (first.scale_factor, first.mode) == (2, "nearest")
        and isinstance(second, nn.Conv2d)
        and (second.kernel_size, second.stride, second.padding) == ((3, 3), (1, 1), (1, 1))
        and (second.dilation, second.groups, second.padding_mode) == ((1, 1), 1, "zeros")
    )


def nearest_as_subpixel(generator: Generator) -> Generator:
    """A copy in which every sequence doubles and convolves at once."""
    lowered = copied(generator)
    for module in lowered.modules():
        # Not a class made from it, which may do something else between the two.
        if type(module) is nn.Sequential:
            for place in range(len(module) - 1):
                first, second = module[place], module[place + 1]
                if _applies(first, second):
                    assert isinstance(second, nn.Conv2d)
                    module[place], module[place + 1] = DoublingConvolution(second), nn.Identity()
    return lowered.eval().requires_grad_(False)


LOWERING = nearest_as_subpixel
