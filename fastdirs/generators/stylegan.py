"""StyleGAN, the first of that name, as genforce keeps it: styles scale and shift normalised features."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import Factor, Family, FeatureStage, Generator, built
from fastdirs.generators._layout import (
    Source,
    check_channels,
    check_grown,
    check_known,
    chosen,
    count_of,
    fill,
    provenance_of,
    shape_of,
)
from fastdirs.generators._mapping import SLOPE, EqualLinear, MappingNetwork
from fastdirs.generators._resample import Resample, binomial
from fastdirs.manifest import Json

_FIRST_SIZE = 4
_EPS = 1e-8
# 4096 pixels.
_MAX_LAYERS = 22
_FUSED_FROM = 128
_NOISES = ("const", "none", "random")
_OUTPUTS = ("linear", "tanh")
_OPTIONS = {
    "fused_scale": "what doubles by transposed convolutions: auto (default: from 128 pixels on), all or none",
    "noise": "const (default: the stored noise), none, or random (drawn anew in every call, so that the same "
    "seed gives different pictures; cannot be exported)",
    "output": "last activation: linear (default) or tanh",
}


class _Layer(nn.Module):
    """One layer: features of its own resolution, normalised for each image, then scaled and shifted by w.

    Args:
        layer: The latent layer that it reads.
        inputs: Channels that come in; None: the layer starts from a constant.
        outputs: Channels that go out.
        w_dim: Size of one latent layer.
        gain: Factor of the result: the scale of the weights that come next ("equalised learning rate"), which
            is cheapest where the style multiplies anyway.
        noise: "const", "none" or "random".
    """

    noise: Tensor

    def __init__(
        self, layer: int, inputs: int | None, outputs: int, w_dim: int, gain: float, noise: str
    ) -> None:
        super().__init__()
        self.layer = layer
        self.gain = gain
        self.noise_kind = noise
        size = _FIRST_SIZE * 2 ** (layer // 2)
        doubles = layer > 0 and layer % 2 == 0
        if inputs is None:
            self.const = nn.Parameter(torch.randn(1, outputs, size, size))
        else:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            nn.init.normal_(convolution.weight)
            before = [nn.Upsample(scale_factor=2)] if doubles else []
            after = [Resample(binomial((1, 2, 1)), padding=(1, 1, 1, 1))] if doubles else []
            self.convolution = nn.Sequential(*before, convolution, *after)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.full((outputs,), 0.1))
        self.register_buffer("noise", torch.randn(1, 1, size, size))
        self.style = EqualLinear(w_dim, 2 * outputs)

    def forward(self, state: Tensor | None, latents: Tensor) -> Tensor:
        """Features `[batch, inputs, h, h]`, latents `[batch, layers, dim]` -> `[batch, outputs, h', h']`."""
        offset = self.bias[:, None, None]
        if self.noise_kind == "random":
            offset = offset + torch.randn_like(self.noise.expand(len(latents), -1, -1, -1)) * self._strength
        elif self.noise_kind == "const":
            offset = torch.addcmul(offset, self.noise, self._strength)
        # The constant has no batch; unless from random noise, it gets one from the style at the end.
        features = self.const + offset if state is None else self.convolution(state).add_(offset)
        normalised = F.instance_norm(F.leaky_relu_(features, SLOPE), eps=_EPS)
        scale, shift = self.style(latents[:, self.layer])[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift * self.gain, normalised, (scale + 1) * self.gain)

    @property
    def _strength(self) -> Tensor:
        return self.noise_strength[:, None, None]


class StyleGan(Generator):
    """Karras et al. 2019. Images are not clipped, though the last layer is usually linear.

    Args:
        z_dim: Size of z.
        w_dim: Size of one latent layer.
        mapping_widths: Outputs of the mapping network's layers; the last is `w_dim`, or that for each layer.
        widths: Channels of each layer, two for each resolution from 4x4 on.
        img_channels: 1 (grey) or 3 (RGB).
        noise: "const" (as stored), "none" or "random" (drawn anew for each image).
        output: Last activation, "linear" or "tanh".

    Raises:
        UnknownNameError: No such noise.

    Source:
        Karras et al. 2019 (arXiv:1812.04948), figure 1b; genforce/genforce, models/stylegan_generator.py.
        Differs: all doublings are nearest neighbours followed by the convolution, with the kernel flipped
        where the original's is a transposed one, which is the same; each layer's scale of weights is applied
        in the style before it, which is the same but for rounding.
    """

    def __init__(
        self,
        *,
        z_dim: int,
        w_dim: int,
        mapping_widths: list[int],
        widths: list[int],
        img_channels: int,
        noise: str,
        output: str,
    ) -> None:
        check_known("noise", noise, _NOISES)
        count = len(widths)
        stages: list[nn.Module] = []
        for layer, outputs in enumerate(widths):
            gain = math.sqrt(2 / (9 * outputs)) if layer < count - 1 else math.sqrt(1 / outputs)
            inputs = widths[layer - 1] if layer else None
            stages.append(_Layer(layer, inputs, outputs, w_dim, gain, noise))
        to_image = nn.Conv2d(widths[-1], img_channels, 1)
        # Smaller than the published start, so that untrained images lie mostly in [-1, 1].
        nn.init.normal_(to_image.weight, std=0.3)
        stages.append(FeatureStage(nn.Sequential(to_image, *([nn.Tanh()] if output == "tanh" else []))))
        super().__init__(
            family="stylegan", space="w+", z_dim=z_dim, num_layers=count, dim=w_dim,
            img_resolution=_FIRST_SIZE * 2 ** (count // 2 - 1), img_channels=img_channels,
            stages=stages, reads=[*((layer,) for layer in range(count)), ()],
            config={
                "z_dim": z_dim, "w_dim": w_dim, "mapping_widths": mapping_widths, "widths": widths,
                "img_channels": img_channels, "noise": noise, "output": output,
            },
        )  # fmt: skip
        self.network = MappingNetwork(z_dim, 0, w_dim, mapping_widths, scaled_bias=False)
        self.exportable = noise != "random"

    @property
    def has_mapping(self) -> bool:
        """True: eight layers in the published networks."""
        return True

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z `[batch, z_dim]` -> latents `[batch, layers, dim]`, float32; mostly one w for all layers."""
        w: Tensor = self.network(z, None)
        # The length of z would be a constant of an exported graph; rare networks make one w for each layer.
        return w.reshape(-1, w.shape[1] // self.dim, self.dim).expand(-1, self.num_layers, -1)

    def factors(self) -> list[Factor]:
        """The style of each layer: rows that scale the channels, then rows that shift them."""
        return [
            Factor(
                f"stages.{layer}.style", layer, self.get_parameter(f"stages.{layer}.style.weight").detach()
            )
            for layer in range(self.num_layers)
        ]


def published(resolution: int) -> Json:
    """The config of the published networks, to build one with random weights.

    Args:
        resolution: 8, 16, ... 1024, in pixels.

    Raises:
        CheckpointError: Another resolution.
    """
    if resolution not in [2**power for power in range(3, 11)]:
        raise CheckpointError(
            f"No StyleGAN of {resolution} pixels was published. Expected a power of two from 8 to 1024."
        )
    sizes = [size for size in (2**power for power in range(2, 11)) if size <= resolution]
    return {
        "z_dim": 512,
        "w_dim": 512,
        "mapping_widths": [512] * 8,
        "widths": [min(16384 // size, 512) for size in sizes for _ in range(2)],
        "img_channels": 3,
        "noise": "const",
        "output": "linear",
    }


def _build(config: Json) -> Generator:
    return StyleGan(**config).eval().requires_grad_(False)


_NOISE_NAME = re.compile(r"synthesis\.layer\d+\.apply_noise\.(weight|noise)")


def _recognises(checkpoint: Checkpoint) -> bool:
    # StyleGAN2 of the same authors has a "noise_strength" in each layer instead.
    return any(map(_NOISE_NAME.fullmatch, checkpoint.tensors))


def _infer(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    assumed: list[str] = []
    _refuse_variants(checkpoint)
    count = count_of(checkpoint, r"synthesis\.layer(\d+)\..+")
    if count % 2 or not 0 < count <= _MAX_LAYERS:
        raise CheckpointError(
            f"{checkpoint.path} holds {count} layers called synthesis.layer0 and on. Expected two for each "
            f"resolution, at most {_MAX_LAYERS}: the file is incomplete or no StyleGAN. Download it again, "
            "or leave --family out."
        )
    layers = [f"synthesis.layer{index}" for index in range(count)]
    output = f"synthesis.output{count // 2 - 1}"
    channels = shape_of(checkpoint, f"{output}.bias", 1)[0]
    check_channels(checkpoint, channels)
    dense = [f"mapping.dense{index}" for index in range(count_of(checkpoint, r"mapping\.dense(\d+)\..+"))]
    fused_scale = chosen(options, "fused_scale", "auto", ("auto", "all", "none"), assumed)
    w_dim = shape_of(checkpoint, "synthesis.layer0.style.weight", 2)[1]
    config = {
        "z_dim": shape_of(checkpoint, "mapping.dense0.weight", 2)[1],
        "w_dim": w_dim,
        "mapping_widths": [shape_of(checkpoint, f"{each}.bias", 1)[0] for each in dense],
        "widths": [shape_of(checkpoint, f"{each}.bias", 1)[0] for each in layers],
        "img_channels": channels,
        "noise": options.get("noise", "const"),
        "output": chosen(options, "output", "linear", _OUTPUTS, assumed),
    }
    generator = built(_build, config, checkpoint)
    # Which tensor of the file stands where in the generator.
    sources: dict[str, Source] = {
        "latent_mean": ("truncation.w_avg", lambda mean: mean.reshape(-1, w_dim).expand(count, -1)),
        f"stages.{count}.body.0.weight": f"{output}.weight",
        f"stages.{count}.body.0.bias": f"{output}.bias",
    }
    for index, each in enumerate(dense):
        sources |= {f"network.layers.{index}.{part}": f"{each}.{part}" for part in ("weight", "bias")}
    # It is no parameter, so some copies lack it.
    blurs = any(name.endswith("blur.kernel") for name in checkpoint.tensors)
    if not blurs and count > 2:
        assumed.append("blur_kernel=1,2,1")
    for index, each in enumerate(layers):
        sources |= _sources_of_layer(index, each, _is_fused(index, fused_scale), blurs)
    fill(generator, checkpoint, sources, unused=[r"synthesis\.lod", r"synthesis\.output\d+\.(weight|bias)"])
    generator.provenance = provenance_of(checkpoint, assumed)
    return generator


def _sources_of_layer(index: int, name: str, fused: bool, blurs: bool) -> dict[str, Source]:
    """Where the tensors of one layer stand in the checkpoint."""
    stage, doubles = f"stages.{index}", index > 0 and index % 2 == 0
    sources: dict[str, Source] = {
        f"{stage}.bias": f"{name}.bias",
        f"{stage}.noise_strength": f"{name}.apply_noise.weight",
        f"{stage}.noise": f"{name}.apply_noise.noise",
        f"{stage}.style.weight": f"{name}.style.weight",
        f"{stage}.style.bias": f"{name}.style.bias",
    }
    if index == 0:
        sources[f"{stage}.const"] = f"{name}.const"
    elif doubles:
        sources[f"{stage}.convolution.1.weight"] = (f"{name}.weight", _flipped) if fused else f"{name}.weight"
        if blurs:
            sources[f"{stage}.convolution.2.taps"] = (f"{name}.blur.kernel", _taps)
    else:
        sources[f"{stage}.convolution.0.weight"] = f"{name}.weight"
    return sources


def _is_fused(index: int, fused_scale: str) -> bool:
    """Whether the original doubles by a transposed convolution at this layer."""
    return fused_scale == "all" or (fused_scale == "auto" and _FIRST_SIZE * 2 ** (index // 2) >= _FUSED_FROM)


def _flipped(weight: Tensor) -> Tensor:
    """The kernel that gives the same after nearest doubling: `[out, in, 3, 3]` -> the same shape.

    "Fused" doubling is a transposed convolution with stride 2 and the kernel summed over 2x2 neighbours. Each
    of its taps meets the pixel that nearest doubling would have put there, in the opposite order.
    """
    return weight.flip((2, 3))


def _taps(kernel: Tensor) -> Tensor:
    """One filter for all channels, applied as a convolution: `[channels, 1, 3, 3]` -> `[3, 3]`."""
    return kernel[0, 0].flip((0, 1))


def _refuse_variants(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where the tensors tell of something that is not built here."""
    path, tensors = checkpoint.path, checkpoint.tensors
    strengths = [tensor for name, tensor in tensors.items() if name.endswith("apply_noise.weight")]
    kernels = {name: tensor for name, tensor in tensors.items() if name.endswith("blur.kernel")}
    variants = {
        "label_size > 0 (classes)": "mapping.label_weight" in tensors,
        "const_input=False (a first layer that reads w)": "synthesis.layer0.weight" in tensors,
        "noise_type='channel'": any(strength.ndim == 2 for strength in strengths),
    }
    for variant, found in variants.items():
        if found:
            raise CheckpointError(
                f"{path} is a StyleGAN with {variant}, which fastdirs does not build. Expected the published "
                "kind: no classes, a constant input and spatial noise. Use its authors' code for it by "
                "--generator, or take another file."
            )
    for name, kernel in kernels.items():
        if kernel.ndim == 4 and not torch.equal(kernel, kernel[:1].expand_as(kernel)):
            raise CheckpointError(
                f"{path} holds {name!r}, which blurs each channel in another way. Expected one filter for "
                "all: the file is damaged or of another variant. Download it again, or take another."
            )
    check_grown(checkpoint, "synthesis.lod")


GENERATOR = Family(
    summary="StyleGAN (the first), from genforce",
    build=_build,
    infer=_infer,
    recognises=_recognises,
    options=_OPTIONS,
    adjustable=("noise",),
)
