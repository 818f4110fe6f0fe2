"""SN-GAN: residual blocks with batch norms, each doubling the size; any widths and any number of blocks."""

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import Factor, Family, FeatureStage, Generator, LatentStage, ZGenerator, built
from fastdirs.generators._layout import (
    Source,
    check_channels,
    check_positive,
    check_settings,
    count_of,
    fill,
    number,
    provenance_of,
    shape_of,
)
from fastdirs.manifest import Json

_FIRST_SIZE = 4
# The original keeps its layers in one list: 0 linear, 1 reshape, then the blocks.
_FIRST_BLOCK = 2
# Each block's convolutions stand twice in a file: as attributes, and in the list of its layers.
_CONVOLUTIONS = {"conv1": 3, "conv2": 6}
_NORMS = (0, 4)
_PARTS = ("weight", "bias")
_NORM_PARTS = (*_PARTS, "running_mean", "running_var")
_OPTIONS = {"eps": "epsilon of the batch norms (default 1e-5)"}
_PUBLISHED = {32: [256, 256, 256, 256], 64: [1024, 512, 256, 128, 64]}


class _Block(nn.Module):
    """Norm, double, convolve, norm, convolve; and past all that the features themselves, doubled."""

    def __init__(self, inputs: int, outputs: int, eps: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs, eps=eps),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            _convolution(inputs, outputs, math.sqrt(2)),
            nn.BatchNorm2d(outputs, eps=eps),
            nn.ReLU(),
            _convolution(outputs, outputs, math.sqrt(2)),
        )
        widened = [_convolution(inputs, outputs, 1.0)] if inputs != outputs else []
        self.bypass = nn.Sequential(nn.Upsample(scale_factor=2), *widened)

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, inputs, height, width]` -> `[batch, outputs, 2 * height, 2 * width]`."""
        added: Tensor = self.body(features) + self.bypass(features)
        return added


def _convolution(inputs: int, outputs: int, gain: float) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.xavier_uniform_(convolution.weight, gain)
    return convolution


class SnGan(ZGenerator):
    """Miyato et al. 2018, the residual generator without classes.

    Args:
        z_dim: Size of z.
        widths: Channels at 4x4 pixels, then after each block, which doubles the size.
        img_channels: 1 (grey) or 3 (RGB).
        eps: Epsilon of the batch norms.

    Source:
        Miyato et al. 2018 (arXiv:1802.05957), tables 3 and 4; the layers as in anvoynov/GANLatentDiscovery,
        models/SNGAN.
    """

    # Published with GANLatentDiscovery and its re-implementations; the number of steps is not certain.
    discovery_defaults: ClassVar[Mapping[str, int | float | str]] = {
        "reconstructor": "lenet", "deformator": "proj", "batch": 128, "steps": 100_000,
        "directions_lr": 1e-4, "reconstructor_lr": 1e-4,
    }  # fmt: skip

    def __init__(self, z_dim: int, widths: list[int], img_channels: int, eps: float) -> None:
        linear = nn.Linear(z_dim, widths[0] * _FIRST_SIZE**2)
        nn.init.xavier_uniform_(linear.weight)
        opening = nn.Sequential(nn.Flatten(1), linear, nn.Unflatten(1, (widths[0], _FIRST_SIZE, _FIRST_SIZE)))
        closing = nn.Sequential(
            nn.BatchNorm2d(widths[-1], eps=eps),
            nn.ReLU(),
            _convolution(widths[-1], img_channels, 1.0),
            nn.Tanh(),
        )
        blocks = [
            FeatureStage(nn.Sequential(_Block(inputs, outputs, eps))) for inputs, outputs in pairwise(widths)
        ]
        super().__init__(
            family="sngan", space="z", z_dim=z_dim, num_layers=1, dim=z_dim,
            img_resolution=_FIRST_SIZE * 2 ** len(blocks), img_channels=img_channels,
            stages=[LatentStage(opening), *blocks, FeatureStage(closing)],
            reads=[(0,)] + [()] * (len(blocks) + 1),
            config={"z_dim": z_dim, "widths": widths, "img_channels": img_channels, "eps": eps},
        )  # fmt: skip

    def factors(self) -> list[Factor]:
        """The linear layer: each of its rows makes one channel of one of the 4x4 pixels."""
        return [Factor("stages.0.body.1", 0, self.get_parameter("stages.0.body.1.weight").detach())]


def published(resolution: int) -> Json:
    """The config of the published networks, to build one with random weights.

    Args:
        resolution: 32 (MNIST, grey) or 64 (anime faces), in pixels.

    Raises:
        CheckpointError: Another resolution.
    """
    if resolution not in _PUBLISHED:
        raise CheckpointError(f"No SN-GAN of {resolution} pixels was published. Expected 32 or 64.")
    channels = 1 if resolution == 32 else 3
    return {"z_dim": 128, "widths": _PUBLISHED[resolution], "img_channels": channels, "eps": 1e-5}


def _build(config: Json) -> Generator:
    generator = SnGan(config["z_dim"], list(config["widths"]), config["img_channels"], config["eps"])
    return generator.eval().requires_grad_(False)


def _recognises(checkpoint: Checkpoint) -> bool:
    # Discriminators of this kind have residual blocks too, but no batch norm in them.
    norm = re.compile(r"(model\.)?\d+\.model\.[04]\.running_(mean|var)")
    convolution = re.compile(r"(model\.)?\d+\.(conv[12]|model\.[36])\.(weight|bias)")
    names = list(checkpoint.tensors)
    return any(map(norm.fullmatch, names)) and any(map(convolution.fullmatch, names))


def _infer(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    path, tensors = checkpoint.path, checkpoint.tensors
    assumed: list[str] = []
    eps = number(options, "eps", 1e-5, 1e-12, 0.1, assumed)
    # The original wraps its layers in an object that calls them "model".
    prefix = "model." if any(name.startswith("model.") for name in tensors) else ""
    end = count_of(checkpoint, rf"{re.escape(prefix)}(\d+)\.(?:conv\d|model|bypass)\..*")
    if end <= _FIRST_BLOCK:
        raise CheckpointError(f"{path} holds no residual blocks, so it is no SN-GAN generator.")
    blocks = [f"{prefix}{index}" for index in range(_FIRST_BLOCK, end)]
    shapes = [
        shape_of(checkpoint, _convolution_at(checkpoint, block, "conv1", "weight"), 4) for block in blocks
    ]
    first, norm, last = f"{prefix}0", f"{prefix}{end}", f"{prefix}{end + 2}"
    z_dim = shape_of(checkpoint, f"{first}.weight", 2)[1]
    channels = shape_of(checkpoint, f"{last}.weight", 4)[0]
    check_channels(checkpoint, channels)
    widths = [shapes[0][1], *(shape[0] for shape in shapes)]
    config = {"z_dim": z_dim, "widths": widths, "img_channels": channels, "eps": eps}
    generator = built(_build, config, checkpoint)
    model = f"sn_resnet{generator.img_resolution}"
    check_settings(checkpoint, {"model": model, "latent_dim": z_dim, "image_channels": channels})

    # Which tensor of the file stands where in the generator.
    sources: dict[str, Source] = {}
    for stage, block in enumerate(blocks, start=1):
        body, bypass = f"stages.{stage}.body.0.body", f"stages.{stage}.body.0.bypass.1"
        for place in _NORMS:
            sources |= {f"{body}.{place}.{part}": f"{block}.model.{place}.{part}" for part in _NORM_PARTS}
        for part in _PARTS:
            for attribute, place in _CONVOLUTIONS.items():
                sources[f"{body}.{place}.{part}"] = _convolution_at(checkpoint, block, attribute, part)
            if f"{bypass}.{part}" in generator.state_dict():
                sources[f"{bypass}.{part}"] = f"{block}.bypass.1.{part}"
    closing = f"stages.{len(blocks) + 1}.body"
    sources |= {f"{closing}.0.{part}": f"{norm}.{part}" for part in _NORM_PARTS}
    sources |= {f"stages.0.body.1.{part}": f"{first}.{part}" for part in _PARTS}
    sources |= {f"{closing}.2.{part}": f"{last}.{part}" for part in _PARTS}
    fill(generator, checkpoint, sources, unused=[rf"{re.escape(prefix)}\d+\.model\.[36]\.(weight|bias)"])
    check_positive(checkpoint, r".*running_var", zero=True)
    _check_copies(checkpoint, blocks)
    generator.provenance = provenance_of(checkpoint, assumed)
    return generator


def _convolution_at(checkpoint: Checkpoint, block: str, attribute: str, part: str) -> str:
    """The name under which a convolution is found; files without doubles may have kept either."""
    usual, double = f"{block}.{attribute}.{part}", f"{block}.model.{_CONVOLUTIONS[attribute]}.{part}"
    return double if usual not in checkpoint.tensors and double in checkpoint.tensors else usual


def _check_copies(checkpoint: Checkpoint, blocks: list[str]) -> None:
    """Raises CheckpointError where the two copies of a convolution differ, so that neither can be trusted."""
    tensors = checkpoint.tensors
    for block in blocks:
        for attribute, place in _CONVOLUTIONS.items():
            for part in _PARTS:
                usual, double = f"{block}.{attribute}.{part}", f"{block}.model.{place}.{part}"
                both = usual in tensors and double in tensors
                if both and not torch.equal(tensors[usual], tensors[double]):
                    raise CheckpointError(
                        f"{checkpoint.path} holds one convolution as {usual!r} and as {double!r}, but with "
                        "different values: the file was changed or damaged. Download it again."
                    )


GENERATOR = Family(
    summary="SN-GAN, residual blocks with batch norms (GANLatentDiscovery folders)",
    build=_build,
    infer=_infer,
    recognises=_recognises,
    options=_OPTIONS,
)
