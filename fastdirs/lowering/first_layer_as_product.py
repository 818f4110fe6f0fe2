"""A transposed convolution of a 1x1 picture is a matrix product, which every runtime does better."""

from torch import nn

from fastdirs.generators import Generator
from fastdirs.lowering import rewrite_bodies


def _to_linear(layers: list[nn.Module], at_latents: bool) -> list[nn.Module]:
    first = layers[0] if layers else None
    if not (at_latents and isinstance(first, nn.ConvTranspose2d) and first.groups == 1):
        return layers
    if first.padding != (0, 0) or first.output_padding != (0, 0):
        return layers
    channels, height, width = first.weight.shape[1:]
    product = nn.Linear(first.in_channels, channels * height * width, bias=first.bias is not None)
    product.weight = nn.Parameter(first.weight.flatten(1).T.contiguous())
    if first.bias is not None:
        product.bias = nn.Parameter(first.bias.repeat_interleave(height * width))
    return [nn.Flatten(1), product, nn.Unflatten(1, (channels, height, width)), *layers[1:]]


def first_layer_as_product(generator: Generator) -> Generator:
    """A copy whose first transposed convolution is a linear layer."""
    return rewrite_bodies(generator, _to_linear)


LOWERING = first_layer_as_product
