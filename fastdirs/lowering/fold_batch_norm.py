"""Batch norm in evaluation mode scales and offsets each channel: fold both into the convolution before it."""

import torch
from torch import nn

from fastdirs.generators import Generator
from fastdirs.lowering import rewrite_bodies


def _fold(layers: list[nn.Module], at_latents: bool) -> list[nn.Module]:
    folded: list[nn.Module] = []
    for layer in layers:
        previous = folded[-1] if folded else None
        if (
            isinstance(layer, nn.BatchNorm2d)
            and isinstance(previous, nn.ConvTranspose2d)
            and previous.groups == 1
        ):
            assert layer.running_var is not None
            assert layer.running_mean is not None
            # In float64: the folded weights are rounded once.
            scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
            bias = torch.zeros_like(scale) if previous.bias is None else previous.bias.double()
            previous.weight = nn.Parameter((previous.weight.double() * scale[None, :, None, None]).float())
            previous.bias = nn.Parameter(
                ((bias - layer.running_mean.double()) * scale + layer.bias.double()).float()
            )
        else:
            folded.append(layer)
    return folded


def fold_batch_norm(generator: Generator) -> Generator:
    """A copy without the batch norms that follow a transposed convolution."""
    return rewrite_bodies(generator, _fold)


LOWERING = fold_batch_norm
