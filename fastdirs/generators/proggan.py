"""ProgGAN (PGGAN): growing pairs of convolutions with pixel norms, in the two layouts that people keep."""

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
    check_grown,
    check_positive,
    chosen,
    count_of,
    fill,
    provenance_of,
    shape_of,
)
from fastdirs.manifest import Json

_FIRST_SIZE = 4
_EPS = 1e-8
_SLOPE = 0.2
_OPTIONS = {
    "fused_scale": "how a genforce network doubles: none (default), or all by transposed convolutions",
    "output": "last activation of a genforce network: linear (default) or tanh",
}
_OUTPUTS = ("linear", "tanh")


class _PixelNorm(nn.Module):
    """Each pixel's features scaled to a mean square of one, times the scale of the weights that come next.

    The scale ("equalised learning rate") costs nothing here, where one number for each pixel is multiplied.
    """

    scale: Tensor

    def __init__(self, gain: float, fan_in: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([gain / math.sqrt(fan_in)]))

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, channels, height, width]` -> the same shape."""
        norm = (features.square().mean(dim=1, keepdim=True) + _EPS).rsqrt()
        return features * (norm * self.scale)


class _Opening(nn.Module):
    """A product that opens z, as a 1x1 picture, into 4x4 pixels: one row for each channel of each pixel."""

    def __init__(self, z_dim: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels * _FIRST_SIZE**2, z_dim))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, z_dim, 1, 1]` -> `[batch, channels, 4, 4]`."""
        product = nn.functional.linear(features.flatten(1), self.weight)
        return product.reshape(-1, len(self.bias), _FIRST_SIZE, _FIRST_SIZE) + self.bias[:, None, None]


def _convolution(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.normal_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


class ProgGan(ZGenerator):
    """Karras et al. 2018, fully grown. Images are not clipped, though the last layer is usually linear.

    The first step normalises z, so that only its direction counts: truncation changes nothing, whatever
    psi above 0 is asked for.

    Args:
        z_dim: Size of z.
        widths: Channels of each layer, two for each resolution from 4x4 on.
        img_channels: 1 (grey) or 3 (RGB).
        output: Last activation, "linear" or "tanh".

    Source:
        Karras et al. 2018 (arXiv:1710.10196), table 2. Differs: the scale of each layer's weights is applied
        in the pixel norm before it, which is the same but for rounding.
    """

    # GANLatentDiscovery's defaults; the batch of WarpedGANSpace.
    discovery_defaults: ClassVar[Mapping[str, int | float | str]] = {
        "reconstructor": "resnet18", "deformator": "proj", "batch": 8, "steps": 100_000,
        "directions_lr": 1e-4, "reconstructor_lr": 1e-4,
    }  # fmt: skip

    def __init__(self, z_dim: int, widths: list[int], img_channels: int, output: str) -> None:
        opening = nn.Sequential(
            _PixelNorm(math.sqrt(2), z_dim * _FIRST_SIZE**2),
            _Opening(z_dim, widths[0]),
            nn.LeakyReLU(_SLOPE),
        )
        stages: list[nn.Module] = [LatentStage(opening)]
        for layer, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stages.append(FeatureStage(nn.Sequential(
                _PixelNorm(math.sqrt(2), inputs * 9),
                nn.Identity() if layer % 2 else nn.Upsample(scale_factor=2),
                _convolution(inputs, outputs, 3),
                nn.LeakyReLU(_SLOPE),
            )))  # fmt: skip
        closing = [_PixelNorm(1.0, widths[-1]), _convolution(widths[-1], img_channels, 1)]
        stages.append(FeatureStage(nn.Sequential(*closing, *([nn.Tanh()] if output == "tanh" else []))))
        super().__init__(
            family="proggan", space="z", z_dim=z_dim, num_layers=1, dim=z_dim,
            img_resolution=_FIRST_SIZE * 2 ** (len(widths) // 2 - 1), img_channels=img_channels,
            stages=stages, reads=[(0,)] + [()] * len(widths),
            config={"z_dim": z_dim, "widths": widths, "img_channels": img_channels, "output": output},
        )  # fmt: skip

    def factors(self) -> list[Factor]:
        """The first layer, whose rows each make one channel of one of the 4x4 pixels."""
        return [Factor("stages.0.body.1", 0, self.get_parameter("stages.0.body.1.weight").detach())]


def published(resolution: int) -> Json:
    """The config of the published networks, to build one with random weights.

    Args:
        resolution: 8, 16, ... 1024, in pixels.

    Raises:
        CheckpointError: Another resolution.
    """
    if resolution not in [2**power for power in range(3, 11)]:
        raise CheckpointError(
            f"No ProgGAN of {resolution} pixels was published. Expected a power of two from 8 to 1024."
        )
    sizes = [size for size in (2**power for power in range(2, 11)) if size <= resolution]
    widths = [min(16384 // size, 512) for size in sizes for _ in range(2)]
    return {"z_dim": 512, "widths": widths, "img_channels": 3, "output": "linear"}


def _build(config: Json) -> Generator:
    generator = ProgGan(config["z_dim"], list(config["widths"]), config["img_channels"], config["output"])
    return generator.eval().requires_grad_(False)


_WSCALE = re.compile(r"(features\.\d+|output)\.wscale\.(scale|b)")
_GENFORCE_LAYER = re.compile(r"layer\d+\.(weight|bias)")
_GENFORCE_OUTPUT = re.compile(r"output\d+\.(weight|bias)")


def _is_genforce(checkpoint: Checkpoint) -> bool:
    names = list(checkpoint.tensors)
    # Their discriminators have layers of these names too, and "input0" where this has "output0".
    return (
        any(map(_GENFORCE_LAYER.fullmatch, names))
        and any(map(_GENFORCE_OUTPUT.fullmatch, names))
        and not any(name.startswith("input") for name in names)
    )


def _recognises(checkpoint: Checkpoint) -> bool:
    return _is_genforce(checkpoint) or any(map(_WSCALE.fullmatch, checkpoint.tensors))


def _infer(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    assumed: list[str] = []
    if _is_genforce(checkpoint):
        generator = _from_genforce(checkpoint, options, assumed)
    else:
        generator = _from_features(checkpoint, options)
    generator.provenance = provenance_of(checkpoint, assumed)
    return generator


def _from_features(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    """`features.{i}.conv.weight`, `features.{i}.wscale.{scale,b}`, `output.*`: a scale for each layer."""
    for option in ("fused_scale", "output"):
        if option in options:
            raise CheckpointError(
                f"{option} settles a doubt of genforce files, and {checkpoint.path} is none. Leave it out."
            )
    count = count_of(checkpoint, r"features\.(\d+)\.(?:conv\.weight|wscale\.\w+)")
    _check_count(checkpoint, count)
    widths = [shape_of(checkpoint, f"features.{index}.wscale.b", 1)[0] for index in range(count)]
    channels = shape_of(checkpoint, "output.wscale.b", 1)[0]
    generator = _generator(checkpoint, "features.0.conv.weight", widths, channels, "linear")
    sources: dict[str, Source] = {}
    for index in range(count + 1):
        layer = f"features.{index}" if index < count else "output"
        convolution = _convolution_in(index, count)
        sources[f"stages.{index}.body.0.scale"] = f"{layer}.wscale.scale"
        weight = f"{layer}.conv.weight"
        sources[f"{convolution}.weight"] = weight if index else (weight, _rows)
        sources[f"{convolution}.bias"] = f"{layer}.wscale.b"
    fill(generator, checkpoint, sources)
    check_positive(checkpoint, r".*\.wscale\.scale")
    return generator


def _from_genforce(checkpoint: Checkpoint, options: Mapping[str, str], assumed: list[str]) -> Generator:
    """`layer{i}.*`, `output{b}.*` (a picture of each resolution), `lod`; the scales are not in the file."""
    count = count_of(checkpoint, r"layer(\d+)\.(?:weight|bias)")
    _check_count(checkpoint, count)
    widths = [shape_of(checkpoint, f"layer{index}.bias", 1)[0] for index in range(count)]
    output = f"output{count // 2 - 1}"
    channels = shape_of(checkpoint, f"{output}.bias", 1)[0]
    last = chosen(options, "output", "linear", _OUTPUTS, assumed)
    generator = _generator(checkpoint, "layer0.weight", widths, channels, last)
    check_grown(checkpoint, "lod")
    # A label, where there is one, is joined to z before the first layer: together they are its inputs.
    assumed.append("label_size=0")
    fused = _fused_scale(checkpoint, widths, options, assumed) == "all"
    sources: dict[str, Source] = {}
    for index in range(count + 1):
        layer = f"layer{index}" if index < count else output
        convolution, weight = _convolution_in(index, count), f"{layer}.weight"
        doubles = 0 < index < count and index % 2 == 0
        sources[f"{convolution}.weight"] = (
            (weight, _rows) if index == 0 else (weight, _transposed) if doubles and fused else weight
        )
        sources[f"{convolution}.bias"] = f"{layer}.bias"
    fill(generator, checkpoint, sources, unused=["lod", r"output\d+\.(weight|bias)"])
    return generator


def _check_count(checkpoint: Checkpoint, count: int) -> None:
    """Raises CheckpointError unless the layers come in pairs."""
    if not count or count % 2:
        raise CheckpointError(
            f"{checkpoint.path} holds {count} layers called features.0 or layer0 and on. Expected two for "
            "each resolution: the file is incomplete or no ProgGAN."
        )


def _generator(
    checkpoint: Checkpoint, first: str, widths: list[int], channels: int, output: str
) -> Generator:
    """A generator of these sizes, with any weights; z is read off the first layer's tensor."""
    check_channels(checkpoint, channels)
    outputs, z_dim, *kernel = shape_of(checkpoint, first, 4)
    if kernel != [_FIRST_SIZE, _FIRST_SIZE]:
        raise CheckpointError(
            f"{checkpoint.path} holds {first!r} of shape {[outputs, z_dim, *kernel]}. Expected a 4x4 kernel, "
            "which opens z into the first picture."
        )
    config = {"z_dim": z_dim, "widths": widths, "img_channels": channels, "output": output}
    return built(_build, config, checkpoint)


def _fused_scale(
    checkpoint: Checkpoint, widths: list[int], options: Mapping[str, str], assumed: list[str]
) -> str:
    """Whether "all" doubling is by transposed convolutions; a doubling layer that changes the width tells."""
    told = [
        list(shape_of(checkpoint, f"layer{index}.weight", 4)[:2]) == widths[index - 1 : index + 1]
        for index in range(2, len(widths), 2)
        if widths[index - 1] != widths[index]
    ]
    usual = "all" if told and all(told) else "none"
    return chosen(options, "fused_scale", usual, ("none", "all"), None if told else assumed)


def _convolution_in(index: int, count: int) -> str:
    """Where the weights of the layer at `index` stand; the one at `count` makes the image."""
    return f"stages.{index}.body.{2 if 0 < index < count else 1}"


def _rows(weight: Tensor) -> Tensor:
    """A 4x4 convolution of a 1x1 picture padded by 3, as rows: `[out, in, 4, 4]` -> `[out * 16, in]`."""
    return weight.flip((2, 3)).permute(0, 2, 3, 1).flatten(0, 2)


def _transposed(weight: Tensor) -> Tensor:
    """The kernel that gives the same after nearest doubling: `[in, out, 3, 3]` -> `[out, in, 3, 3]`.

    "Fused" doubling is a transposed convolution with stride 2 and the kernel summed over 2x2 neighbours. Each
    of its taps meets the pixel that nearest doubling would have put there, in the opposite order.
    """
    return weight.transpose(0, 1).flip((2, 3))


GENERATOR = Family(
    summary="ProgGAN (PGGAN), from prog_gans_pytorch_inference or genforce; psi changes nothing",
    build=_build,
    infer=_infer,
    recognises=_recognises,
    options=_OPTIONS,
)
