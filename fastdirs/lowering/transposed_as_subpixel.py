"""A transposed convolution 4x4, stride 2, padding 1 as ordinary 2x2 convolutions and a shuffle of pixels.

Each output pixel (2i + a, 2j + b) sees 2x2 input pixels, through the taps of the kernel that fall on them.
The four positions (a, b) are therefore four 2x2 convolutions at input resolution, with interleaved results.
Runtimes that lack a fast transposed convolution (OpenVINO has none in bf16) gain several times.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.generators import Generator
from fastdirs.lowering import rewrite_bodies

# Below this many output channels four separate convolutions leave vector registers empty; a single one with
# four times the channels fills them, at the price of one row and column computed in vain.
_MIN_CHANNELS_FOR_FOUR = 16
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid)


class FourConvolutions(nn.Module):
    """One 2x2 convolution for each output position, padded on the side that it looks at."""

    def __init__(self, transposed: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        for row in (0, 1):
            for column in (0, 1):
                convolution = nn.Conv2d(
                    transposed.in_channels, transposed.out_channels, 2, bias=transposed.bias is not None
                )
                convolution.weight = nn.Parameter(_taps(transposed.weight, row, column))
                if transposed.bias is not None:
                    convolution.bias = nn.Parameter(transposed.bias.clone())
                self.convolutions.append(convolution)

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, in, height, width]` -> `[batch, 4 * out, height, width]`, position by position."""
        # left, right, top, bottom: an even output looks one input back, an odd one looks one ahead.
        paddings = ((1, 0, 1, 0), (0, 1, 1, 0), (1, 0, 0, 1), (0, 1, 0, 1))
        parts = [
            convolution(F.pad(features, padding))
            for convolution, padding in zip(self.convolutions, paddings, strict=True)
        ]
        return torch.cat(parts, dim=1)


class Interleave(nn.Module):
    """The four positions become neighbours: the inverse of splitting a picture into even and odd pixels."""

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, 4 * channels, height, width]` -> `[batch, channels, 2 * height, 2 * width]`."""
        batch, channels, height, width = features.shape
        positions = features.view(batch, 2, 2, channels // 4, height, width)
        return positions.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // 4, 2 * height, 2 * width)


class OneConvolution(nn.Module):
    """All four positions in one 2x2 convolution, padded on every side."""

    def __init__(self, transposed: nn.ConvTranspose2d) -> None:
        super().__init__()
        # With padding on every side the odd position comes first: it belongs to the pixel before.
        taps = [_taps(transposed.weight, row, column) for row in (1, 0) for column in (1, 0)]
        out = transposed.out_channels
        self.convolution = nn.Conv2d(
            transposed.in_channels, 4 * out, 2, padding=1, bias=transposed.bias is not None
        )
        self.convolution.weight = nn.Parameter(torch.stack(taps, dim=1).flatten(0, 1))
        if transposed.bias is not None:
            self.convolution.bias = nn.Parameter(transposed.bias.repeat_interleave(4))

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, in, height, width]` -> `[batch, 4 * out, height + 1, width + 1]`, channel by channel."""
        positions: Tensor = self.convolution(features)
        return positions


class ShuffleAndCrop(nn.Module):
    """Pixel shuffle, less the row and column on every side that the padding added."""

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, 4 * channels, height + 1, width + 1]` -> `[batch, channels, 2 * height, 2 * width]`."""
        return F.pixel_shuffle(features, 2)[:, :, 1:-1, 1:-1]


def _taps(weight: Tensor, row: int, column: int) -> Tensor:
    """The 2x2 taps that reach output position (row, column): `[in, out, 4, 4]` -> `[out, in, 2, 2]`."""
    rows, columns = [(3, 1), (2, 0)][row], [(3, 1), (2, 0)][column]
    return weight[:, :, list(rows)][:, :, :, list(columns)].transpose(0, 1).contiguous()


def _applies(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.ConvTranspose2d)
        and (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
        and (layer.output_padding, layer.dilation, layer.groups) == ((0, 0), (1, 1), 1)
    )


def _to_subpixel(layers: list[nn.Module], at_latents: bool) -> list[nn.Module]:
    rewritten: list[nn.Module] = []
    position = 0
    while position < len(layers):
        layer = layers[position]
        position += 1
        if not _applies(layer):
            rewritten.append(layer)
            continue
        assert isinstance(layer, nn.ConvTranspose2d)
        four = layer.out_channels >= _MIN_CHANNELS_FOR_FOUR
        rewritten.append(FourConvolutions(layer) if four else OneConvolution(layer))
        # An elementwise activation may come before the shuffle: there it is fused into the convolution.
        if position < len(layers) and isinstance(layers[position], _ELEMENTWISE):
            rewritten.append(layers[position])
            position += 1
        rewritten.append(Interleave() if four else ShuffleAndCrop())
    return rewritten


def transposed_as_subpixel(generator: Generator) -> Generator:
    """A copy whose doubling transposed convolutions are ordinary convolutions and a shuffle."""
    return rewrite_bodies(generator, _to_subpixel)


LOWERING = transposed_as_subpixel
