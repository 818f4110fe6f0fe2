"""BigGAN as trained by BigGAN-PyTorch: classes through batch norms, z in chunks, spectral norms from u0."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import Factor, Family, Generator, built
from fastdirs.generators._biggan_settings import check_architecture, check_variant, usual_eps
from fastdirs.generators._layout import (
    Source,
    check_channels,
    check_positive,
    chosen,
    count_of,
    fill,
    number,
    provenance_of,
    shape_of,
)
from fastdirs.generators._spectral import (
    SelfAttention,
    SpectralConv2d,
    SpectralLinear,
    check_norms,
    double,
    doubled,
    normalised_weight,
    scale_and_offset,
)
from fastdirs.manifest import Json

_BLOCK = r"blocks\.(\d+)\..*"
_NORM = r"blocks\.\d+\.0\.bn1\.(gain\..+|stored_.+|bn\..+)"
# The norm before the image was made without the epsilon that the others take.
_OUTPUT_EPS = 1e-5
_EPS = ("SN_eps", "BN_eps")
_Z_BOUNDS: Mapping[str, float | None] = {"none": None, "2": 2.0}
_OPTIONS = {
    "sn_eps": "epsilon of the spectral norms (default 1e-6; 1e-4 for BigBiGAN)",
    "bn_eps": "epsilon of the conditional batch norms (default 1e-5; 1e-4 for BigBiGAN)",
    "z_bound": "where normal z is cut: none (default, as in training) or 2",
}


@dataclass(frozen=True)
class Architecture:
    """What a BigGAN is built from.

    Attributes:
        widths: Channels of the first features and after each block.
        bottom: Height and width of the first features, in pixels.
        channels: Of the image.
        attention: The blocks that are followed by self-attention.
        classes: How many.
        shared_dim: Size of the class embedding that all blocks read; 0: each batch norm has its own tables.
        dim: Size of z, or of one of its chunks.
        hier: Whether each block reads a chunk of z of its own.
        sn_eps: Epsilon of the spectral norms.
        bn_eps: Epsilon of the conditional batch norms.
        z_bound: "none", or where normal z is cut.
    """

    widths: list[int]
    bottom: int
    channels: int
    attention: list[int]
    classes: int
    shared_dim: int
    dim: int
    hier: bool
    sn_eps: float
    bn_eps: float
    z_bound: str = "none"


class _ClassTable(nn.Module):
    """A row for each class."""

    def __init__(self, classes: int, size: int, std: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, size) * std)
        self.spread = std**2

    def forward(self, c: Tensor) -> Tensor:
        """Weights of the classes `[batch, classes]` -> rows, mixed by them `[batch, size]`."""
        return c @ self.weight


def _from_condition(channels: int, architecture: Architecture) -> SpectralLinear | _ClassTable:
    if not architecture.shared_dim:
        return _ClassTable(architecture.classes, channels, std=0.3)
    size = architecture.shared_dim + (architecture.dim if architecture.hier else 0)
    return SpectralLinear(size, channels, False, architecture.sn_eps)


class _Norm(nn.Module):
    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, channels: int, variance: float) -> None:
        super().__init__()
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.full((channels,), variance))


class _ConditionalNorm(_Norm):
    """Batch norm whose gain and offset depend on the condition."""

    def __init__(self, channels: int, architecture: Architecture, variance: float) -> None:
        super().__init__(channels, variance)
        self.gain = _from_condition(channels, architecture)
        self.bias = _from_condition(channels, architecture)
        self.eps = architecture.bn_eps
        # Of random weights: what gain and offset make of variance one, half of which passes the rectifier.
        self.energy = 0.5 + self.gain.spread

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Features `[batch, channels, height, width]`, condition `[batch, size]` -> normalised features."""
        gain, offset = 1 + self.gain(condition), self.bias(condition)
        return scale_and_offset(x, self.stored_mean, self.stored_var, gain, offset, self.eps)


class _OutputNorm(_Norm):
    """Batch norm with a learned gain and offset."""

    def __init__(self, channels: int, variance: float) -> None:
        super().__init__(channels, variance)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Features `[batch, channels, height, width]` -> normalised features."""
        mean, variance = self.stored_mean, self.stored_var
        return scale_and_offset(x, mean, variance, self.gain[None], self.bias[None], _OUTPUT_EPS)


class _Block(nn.Module):
    """Doubles the size: two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, architecture: Architecture, variance: float) -> None:
        super().__init__()
        eps = architecture.sn_eps
        conv1 = SpectralConv2d(inputs, outputs, 3, eps=eps)
        self.conv1 = doubled(conv1)
        self.conv2 = SpectralConv2d(outputs, outputs, 3, eps=eps)
        self.conv_sc = SpectralConv2d(inputs, outputs, 1, eps=eps)
        self.bn1 = _ConditionalNorm(inputs, architecture, variance)
        self.bn2 = _ConditionalNorm(outputs, architecture, conv1.spread * self.bn1.energy)
        self.variance = self.conv_sc.spread * variance + self.conv2.spread * self.bn2.energy

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`[batch, inputs, height, width]` -> `[batch, outputs, 2 height, 2 width]`."""
        hidden = self.conv1(F.relu(self.bn1(x, condition)))
        hidden = F.relu(self.bn2(hidden, condition))
        # A 1x1 convolution may as well come before the doubling, on a quarter of the pixels.
        features: Tensor = self.conv2(hidden) + double(self.conv_sc(x))
        return features


class _FirstStage(nn.Module):
    """z to the first features, and the class to what all blocks read of it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, bottom = architecture.widths[0], architecture.bottom
        self.shape = (width, bottom, bottom)
        self.shared = (
            _ClassTable(architecture.classes, architecture.shared_dim) if architecture.shared_dim else None
        )
        self.linear = SpectralLinear(architecture.dim, math.prod(self.shape), eps=architecture.sn_eps)

    def forward(self, state: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the classes `[batch, classes]` -> features and embedding `[batch, size]`."""
        features = self.linear(latents[:, 0]).unflatten(1, self.shape)
        return features, state if self.shared is None else self.shared(state)


class _BlockStage(nn.Module):
    """A block, which may read a chunk of z, and perhaps self-attention."""

    def __init__(self, block: _Block, layer: int | None, attention: SelfAttention | None) -> None:
        super().__init__()
        self.block = block
        self.layer = layer
        self.attention = attention

    def forward(self, state: tuple[Tensor, Tensor], latents: Tensor) -> tuple[Tensor, Tensor]:
        """Features and embedding -> the next features and the same embedding."""
        features, embedding = state
        condition = embedding
        if self.layer is not None:
            condition = torch.cat([embedding, latents[:, self.layer]], dim=1)
        features = self.block(features, condition)
        return features if self.attention is None else self.attention(features), embedding


class _LastStage(nn.Module):
    """The last block, and the image."""

    def __init__(self, before: _BlockStage, norm: _OutputNorm, conv: SpectralConv2d) -> None:
        super().__init__()
        self.before = before
        self.norm = norm
        self.conv = conv

    def forward(self, state: tuple[Tensor, Tensor], latents: Tensor) -> Tensor:
        """Features and embedding -> images `[batch, channels, height, width]` in [-1, 1]."""
        features, _ = self.before(state, latents)
        return torch.tanh(self.conv(F.relu(self.norm(features))))


class Biggan(Generator):
    """Brock et al. 2019, figure 15, with spectral norms as BigGAN-PyTorch leaves them in evaluation mode.

    Source:
        Brock et al. 2019 (arXiv:1809.11096), appendix B; ajbrock/BigGAN-PyTorch. BigBiGAN's generator in
        BigGANsAreWatching has the same tensors without `sv0` (or ones in it), epsilons of 1e-4, and all
        classes alike: take class 0. Differs: norms are computed once, a shortcut's convolution comes before
        its doubling.
    """

    # The arguments published with GANLatentDiscovery's BigGAN directions, of which there are 120.
    discovery_defaults: ClassVar[Mapping[str, int | float | str]] = {
        "reconstructor": "resnet18", "deformator": "ortho", "batch": 32, "steps": 100_000,
        "directions_lr": 1e-4, "reconstructor_lr": 1e-4,
    }  # fmt: skip

    def __init__(self, architecture: Architecture) -> None:
        widths, hier = architecture.widths, architecture.hier
        first = _FirstStage(architecture)
        stages: list[nn.Module] = [first]
        variance = first.linear.spread
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            block = _Block(inputs, outputs, architecture, variance)
            attention = (
                SelfAttention(outputs, architecture.sn_eps) if index in architecture.attention else None
            )
            stages.append(_BlockStage(block, index + 1 if hier else None, attention))
            variance = block.variance
        output = SpectralConv2d(widths[-1], architecture.channels, 3, eps=architecture.sn_eps)
        before = stages[-1]
        assert isinstance(before, _BlockStage)
        stages[-1] = _LastStage(before, _OutputNorm(widths[-1], variance), output)
        layers = len(widths) if hier else 1
        super().__init__(
            family="biggan", space="z", z_dim=layers * architecture.dim, num_layers=layers,
            dim=architecture.dim, img_resolution=architecture.bottom * 2 ** (len(widths) - 1),
            img_channels=architecture.channels, stages=stages,
            reads=[(i,) if i == 0 or hier else () for i in range(len(widths))],
            config=asdict(architecture), c_dim=architecture.classes, class_in="synthesis",
            z_bound=_Z_BOUNDS[chosen({"z_bound": architecture.z_bound}, "z_bound", "none", list(_Z_BOUNDS))],
        )  # fmt: skip

    @property
    def has_mapping(self) -> bool:
        """Whether z is cut into chunks; else it is the one layer of the latents as it is."""
        return self.num_layers > 1

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z `[batch, z_dim]` -> its chunks `[batch, layers, dim]`; the class plays no part."""
        return z.reshape(-1, self.num_layers, self.dim)

    def factors(self) -> list[Factor]:
        """The columns of z in the first linear layer, and in the gain and bias of each conditional norm.

        Divided by their spectral norms, as they meet z.

        Source:
            SeFa's code does not know BigGAN, and its authors' pictures come from BigGAN-deep. These are the
            only places where z enters; the first gives the content, the others what is done to it.
        """
        linear = self.get_submodule("stages.0.linear")
        found = [Factor("stages.0.linear", 0, normalised_weight(linear))]
        for name, module in self.named_modules():
            if self.num_layers > 1 and re.search(r"\.bn[12]\.(gain|bias)$", name):
                # The condition is the class embedding, then the chunk.
                columns = normalised_weight(module)[:, -self.dim :]
                found.append(Factor(name, int(name.split(".")[1]), columns))
        return found


def _build(config: Json) -> Generator:
    return Biggan(Architecture(**config)).eval().requires_grad_(False)


def _infer(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    assumed: list[str] = []
    check_variant(checkpoint)
    # The option, else what the settings beside the weights say, else the usual value.
    settings = {name.lower(): str(checkpoint.settings[name]) for name in _EPS if name in checkpoint.settings}
    settled = {**settings, **options}
    eps = {
        name: number(settled, name, value, 1e-12, 1.0, assumed)
        for name, value in usual_eps(checkpoint).items()
    }
    z_bound = chosen(options, "z_bound", "none", list(_Z_BOUNDS), assumed)
    architecture = _architecture(checkpoint, eps, z_bound)
    generator = built(_build, asdict(architecture), checkpoint)
    check_architecture(checkpoint, generator.config, generator.img_resolution)
    sources = {name: _source(name) for name in generator.state_dict() if name != "latent_mean"}
    # Singular values were only logged, and those after the first are not divided by.
    fill(generator, checkpoint, sources, unused=[r".*\.sv\d+", r".*\.u[1-9]\d*"])
    check_positive(checkpoint, r".*\.stored_var", zero=True)
    check_norms(generator, sources, checkpoint.path)
    generator.provenance = provenance_of(checkpoint, assumed)
    return generator


def _architecture(checkpoint: Checkpoint, eps: Mapping[str, float], z_bound: str) -> Architecture:
    path, tensors = checkpoint.path, checkpoint.tensors
    blocks = count_of(checkpoint, _BLOCK)
    widths = [shape_of(checkpoint, "blocks.0.0.bn1.stored_mean", 1)[0]]
    widths += [shape_of(checkpoint, f"blocks.{i}.0.bn2.stored_mean", 1)[0] for i in range(blocks)]
    units, dim = shape_of(checkpoint, "linear.weight", 2)
    bottom = math.isqrt(units // widths[0])
    if not bottom or widths[0] * bottom**2 != units:
        raise CheckpointError(
            f"{path} holds 'linear.weight' of shape {[units, dim]}, which is no square of {widths[0]} "
            "channels. The file is damaged or of another variant."
        )
    gain = shape_of(checkpoint, "blocks.0.0.bn1.gain.weight", 2)
    if "shared.weight" in tensors or "blocks.0.0.bn1.gain.u0" in tensors:
        classes, shared_dim = shape_of(checkpoint, "shared.weight", 2)
        if gain[1] not in (shared_dim, shared_dim + dim):
            raise CheckpointError(
                f"{path} holds 'blocks.0.0.bn1.gain.weight' of shape {list(gain)}. Expected {shared_dim} "
                f"columns for the class, and {dim} more if each block reads z. The file is damaged: download "
                "or save it again."
            )
        hier = gain[1] == shared_dim + dim
    else:
        classes, shared_dim, hier = gain[0], 0, False
    channels = shape_of(checkpoint, "output_layer.2.weight", 4)[0]
    check_channels(checkpoint, channels)
    attention = [i for i in range(blocks) if any(name.startswith(f"blocks.{i}.1.") for name in tensors)]
    return Architecture(
        widths, bottom, channels, attention, classes, shared_dim, dim, hier, **eps, z_bound=z_bound
    )


def _source(target: str) -> Source:
    """Where a tensor of the generator stands in a state dict of BigGAN-PyTorch."""
    _, stage, *parts = target.replace(".before.", ".").replace(".conv1.1.", ".conv1.").split(".")
    if int(stage):
        block = f"blocks.{int(stage) - 1}"
        places = {"block": f"{block}.0", "attention": f"{block}.1", "norm": "output_layer.0"}
        parts[0] = {**places, "conv": "output_layer.2"}[parts[0]]
    if parts[-1] == "u":
        return ".".join(parts) + "0", lambda u0: u0.squeeze(0)
    return ".".join(parts)


def _recognises(checkpoint: Checkpoint) -> bool:
    return any(re.fullmatch(_NORM, name) for name in checkpoint.tensors)


GENERATOR = Family(
    summary="BigGAN of BigGAN-PyTorch (G_ema.pth), BigBiGAN's generator; classes, z in chunks",
    build=_build,
    infer=_infer,
    recognises=_recognises,
    options=_OPTIONS,
    adjustable=("z_bound",),
)
