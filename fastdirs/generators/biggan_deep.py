"""BigGAN-deep of pytorch-pretrained-BigGAN: z in every block, batch norm statistics for each truncation."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import Factor, Family, Generator, built
from fastdirs.generators._biggan_deep_settings import check_architecture, doubling_blocks
from fastdirs.generators._layout import (
    Source,
    check_positive,
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

_LAYER = r"generator\.layers\.(\d+)\..*"
_ATTENTION = r"generator\.layers\.(\d+)\.snconv1x1_.*"
_OWN_NAMES = r"generator\.gen_z\..+|generator\.layers\.\d+\.(bn_\d\..+|snconv1x1_.+)"
_BOTTOM = 4
# The bottleneck of a block has this part of its channels.
_REDUCTION = 4
_CHANNELS = 3
_Z_BOUND = 2.0
_OPTIONS = {"eps": "epsilon of the batch norms (default 1e-4)"}


@dataclass(frozen=True)
class Architecture:
    """What a BigGAN-deep is built from.

    Attributes:
        widths: Channels of the first features and after each block.
        doubles: Whether each block doubles the size.
        attention: The block that self-attention comes before; None: there is none.
        z_dim: Size of z.
        embedding_dim: Size of the class embedding.
        classes: How many.
        rows: Sets of batch norm statistics, for truncations 0 to 1.
        eps: Epsilon of the batch norms.
    """

    widths: list[int]
    doubles: list[bool]
    attention: int | None
    z_dim: int
    embedding_dim: int
    classes: int
    rows: int
    eps: float


class _Norm(nn.Module):
    """Batch norm with statistics for several truncations, mixed from the two nearest."""

    running_means: Tensor
    running_vars: Tensor

    def __init__(self, channels: int, architecture: Architecture, variance: float) -> None:
        super().__init__()
        self.register_buffer("running_means", torch.zeros(architecture.rows, channels))
        self.register_buffer("running_vars", torch.full((architecture.rows, channels), variance))
        self.eps = architecture.eps

    def rectified(self, x: Tensor, shares: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
        """Features and the share of each row `[batch, rows]` -> normalised features, rectified."""
        mean, variance = shares @ self.running_means, shares @ self.running_vars
        return F.relu(scale_and_offset(x, mean, variance, gain, offset, self.eps))


class _ConditionalNorm(_Norm):
    """Gain and offset depend on z and the class."""

    def __init__(self, channels: int, architecture: Architecture, variance: float) -> None:
        super().__init__(channels, architecture, variance)
        size = architecture.z_dim + architecture.embedding_dim
        self.scale = SpectralLinear(size, channels, bias=False)
        self.offset = SpectralLinear(size, channels, bias=False)
        # Of random weights: what gain and offset make of variance one, half of which passes the rectifier.
        self.energy = 0.5 + self.scale.spread

    def forward(self, x: Tensor, condition: Tensor, shares: Tensor) -> Tensor:
        """Features `[batch, channels, height, width]` -> normalised features, rectified."""
        return self.rectified(x, shares, 1 + self.scale(condition), self.offset(condition))


class _OutputNorm(_Norm):
    """A learned gain and offset."""

    def __init__(self, channels: int, architecture: Architecture, variance: float) -> None:
        super().__init__(channels, architecture, variance)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        """Features `[batch, channels, height, width]` -> normalised features, rectified."""
        return self.rectified(x, shares, self.weight[None], self.bias[None])


class _Block(nn.Module):
    """Four convolutions with a bottleneck, beside a shortcut that drops channels."""

    def __init__(self, index: int, architecture: Architecture, variance: float) -> None:
        super().__init__()
        inputs, outputs = architecture.widths[index : index + 2]
        middle = inputs // _REDUCTION
        self.outputs = outputs
        self.doubles = architecture.doubles[index]
        sizes = [(inputs, middle, 1), (middle, middle, 3), (middle, middle, 3), (middle, outputs, 1)]
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        before = variance
        for from_channels, to_channels, kernel in sizes:
            conv = SpectralConv2d(from_channels, to_channels, kernel)
            norm = _ConditionalNorm(from_channels, architecture, before)
            self.norms.append(norm)
            self.convs.append(doubled(conv) if self.doubles and len(self.convs) == 1 else conv)
            before = conv.spread * norm.energy
        self.variance = variance + before

    def forward(self, x: Tensor, condition: Tensor, shares: Tensor) -> Tensor:
        """`[batch, inputs, height, width]` -> `[batch, outputs, ...]`, perhaps of twice the size."""
        hidden = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(norm(hidden, condition, shares))
        shortcut = x[:, : self.outputs]
        return hidden + (double(shortcut) if self.doubles else shortcut)


class _FirstStage(nn.Module):
    """z and the class to the first features; the class embedding goes on to all blocks."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim, width = architecture.embedding_dim, architecture.widths[0]
        self.width = width
        self.embeddings = nn.Linear(architecture.classes, dim, bias=False)
        nn.init.normal_(self.embeddings.weight)
        self.gen_z = SpectralLinear(architecture.z_dim + dim, _BOTTOM * _BOTTOM * width)

    def forward(self, state: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the classes `[batch, classes]` -> features and embedding `[batch, embedding_dim]`."""
        embedding = self.embeddings(state)
        features = self.gen_z(torch.cat([latents[:, 0], embedding], dim=1))
        # As in TensorFlow, whose pixels come before their channels.
        return features.reshape(-1, _BOTTOM, _BOTTOM, self.width).permute(0, 3, 1, 2), embedding


class _BlockStage(nn.Module):
    """A block, perhaps after self-attention."""

    def __init__(self, layer: int, rows: int, block: _Block, attention: SelfAttention | None) -> None:
        super().__init__()
        self.layer = layer
        self.rows = rows
        self.attention = attention
        self.block = block

    def forward(self, state: tuple[Tensor, Tensor], latents: Tensor) -> tuple[Tensor, Tensor]:
        """Features and embedding -> the next features and the same embedding."""
        features, embedding = state
        if self.attention is not None:
            features = self.attention(features)
        condition = torch.cat([latents[:, self.layer], embedding], dim=1)
        return self.block(features, condition, _shares(latents, self.rows)), embedding


class _LastStage(nn.Module):
    """The last block, and the image."""

    def __init__(self, before: _BlockStage, architecture: Architecture, variance: float) -> None:
        super().__init__()
        width = architecture.widths[-1]
        self.before = before
        self.norm = _OutputNorm(width, architecture, variance)
        self.conv = SpectralConv2d(width, width, 3, kept=_CHANNELS)

    def forward(self, state: tuple[Tensor, Tensor], latents: Tensor) -> Tensor:
        """Features and embedding -> images `[batch, 3, height, width]` in [-1, 1]."""
        features, _ = self.before(state, latents)
        return torch.tanh(self.conv(self.norm(features, _shares(latents, self.before.rows))))


def _shares(latents: Tensor, rows: int) -> Tensor:
    """What each set of statistics counts, by the place in the last layer of the latents: `[batch, rows]`."""
    places = torch.arange(rows, dtype=latents.dtype, device=latents.device)
    return F.relu(1 - (latents[:, -1, :1] - places).abs())


class BigganDeep(Generator):
    """Brock et al. 2019, figure 16.

    The layers are copies of z: one for the first features, one for each block; the last layer is the place
    among the sets of batch norm statistics (see `fastdirs.latents.statistics_place`).

    Source:
        Brock et al. 2019 (arXiv:1809.11096), appendix B; huggingface/pytorch-pretrained-BigGAN. Differs: the
        truncation of each image is its own; of the last convolution only the channels that are shown are
        computed; classes may be mixed.
    """

    def __init__(self, architecture: Architecture) -> None:
        widths, rows = architecture.widths, architecture.rows
        first = _FirstStage(architecture)
        stages: list[nn.Module] = [first]
        # z and the embedding are both of variance 1.
        variance = first.gen_z.spread
        for index, _ in enumerate(pairwise(widths)):
            block = _Block(index, architecture, variance)
            attention = SelfAttention(widths[index]) if index == architecture.attention else None
            before = _BlockStage(index + 1, rows, block, attention)
            stages.append(before)
            variance = block.variance
        stages[-1] = _LastStage(before, architecture, variance)
        layers = len(stages) + 1
        super().__init__(
            family="biggan_deep", space="z", z_dim=architecture.z_dim, num_layers=layers,
            dim=architecture.z_dim, img_resolution=_BOTTOM * 2 ** sum(architecture.doubles),
            img_channels=_CHANNELS, stages=stages,
            reads=[(0,), *((i, layers - 1) for i in range(1, len(stages)))],
            config=asdict(architecture), c_dim=architecture.classes, class_in="synthesis",
            z_bound=_Z_BOUND, truncation_rows=rows,
        )  # fmt: skip

    @property
    def has_mapping(self) -> bool:
        """True: a graph copies z and puts the place among the statistics beside it."""
        return True

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z `[batch, z_dim]` -> a copy for each layer, and ones in the last `[batch, layers, z_dim]`.

        The last layer is where truncation writes the place among the statistics; the class plays no part.
        """
        copies = z[:, None].expand(-1, self.num_layers - 1, -1)
        return torch.cat([copies, torch.ones_like(z)[:, None]], dim=1)

    def factors(self) -> list[Factor]:
        """The columns of z in the first linear layer, and in scale and offset of each conditional norm.

        Divided by their spectral norms, as they meet z.

        Source:
            SeFa's code does not know BigGAN, but its authors' pictures come from these weights. These are the
            only places where z enters.
        """
        found = []
        for name, module in self.named_modules():
            if re.search(r"\.(gen_z|scale|offset)$", name):
                # The condition is z, then the class embedding.
                columns = normalised_weight(module)[:, : self.dim]
                found.append(Factor(name, int(name.split(".")[1]), columns))
        return found


def _build(config: Json) -> Generator:
    return BigganDeep(Architecture(**config)).eval().requires_grad_(False)


def _infer(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    assumed: list[str] = []
    # The option, else what config.json says, else the usual value.
    said = {"eps": str(checkpoint.settings["eps"])} if "eps" in checkpoint.settings else {}
    eps = number({**said, **options}, "eps", 1e-4, 1e-12, 1.0, assumed)
    architecture = _architecture(checkpoint, eps, assumed)
    generator = built(_build, asdict(architecture), checkpoint)
    sources = _sources(generator, architecture.attention)
    check_architecture(checkpoint, generator.config, generator.img_resolution)
    fill(generator, checkpoint, sources)
    check_positive(checkpoint, r".*\.running_vars", zero=True)
    check_norms(generator, sources, checkpoint.path)
    generator.provenance = provenance_of(checkpoint, assumed)
    return generator


def _architecture(checkpoint: Checkpoint, eps: float, assumed: list[str]) -> Architecture:
    path = checkpoint.path
    layers = count_of(checkpoint, _LAYER)
    matches = (re.fullmatch(_ATTENTION, name) for name in checkpoint.tensors)
    attended = sorted({int(match[1]) for match in matches if match})
    if len(attended) > 1 or attended == [layers - 1]:
        raise CheckpointError(
            f"{path} has self-attention in layers {attended[:9]} of {layers}. Expected at most one, "
            "before a block: the file is of another variant. Take a published one."
        )
    blocks = (f"generator.layers.{i}" for i in range(layers) if i not in attended)
    widths = [shape_of(checkpoint, f"{block}.bn_0.running_means", 2)[1] for block in blocks]
    rows, last = shape_of(checkpoint, "generator.bn.running_means", 2)
    widths.append(last)
    chained = all(outputs in (inputs, inputs // 2) for inputs, outputs in pairwise(widths))
    if len(widths) < 2 or not chained or last < _CHANNELS or rows < 2:
        raise CheckpointError(
            f"{path} has blocks of {widths} channels and {rows} sets of statistics. Expected blocks that "
            f"keep or halve their channels, to {_CHANNELS} or more, and at least 2 sets: the file is "
            "damaged. Download or save it again."
        )
    embedding_dim, classes = shape_of(checkpoint, "embeddings.weight", 2)
    condition = shape_of(checkpoint, "generator.gen_z.weight_orig", 2)[1]
    if condition <= embedding_dim:
        raise CheckpointError(
            f"{path} holds 'generator.gen_z.weight_orig' for {condition} numbers. Expected more than the "
            f"{embedding_dim} of the class embedding: the file is damaged. Download or save it again."
        )
    attention = attended[0] if attended else None
    doubles = doubling_blocks(checkpoint, widths, attention, assumed)
    return Architecture(
        widths, doubles, attention, condition - embedding_dim, embedding_dim, classes, rows, eps
    )


def _sources(generator: Generator, attention: int | None) -> dict[str, Source]:
    """Where each tensor of the generator stands in a state dict of pytorch-pretrained-BigGAN."""
    sources: dict[str, Source] = {}
    state = generator.state_dict()
    for target in state:
        module, _, leaf = target.rpartition(".")
        if f"{module}.u" in state:
            leaf = {"weight": "weight_orig", "u": "weight_u", "v": "weight_v"}.get(leaf, leaf)
        if module:
            source = f"{_place(module, attention)}.{leaf}"
            sources[target] = (source, lambda gamma: gamma.squeeze(0)) if leaf == "gamma" else source
    return sources


def _place(module: str, attention: int | None) -> str:
    _, stage, *parts = module.replace(".before", "").split(".")
    # Attention takes a number of its own, before that of its block.
    block = int(stage) - 1
    layer = f"generator.layers.{block + (attention is not None and block >= attention)}"
    match parts:
        case ["block", "norms" | "convs" as kind, index, *inner]:
            # What stands behind a doubling is the convolution.
            kept = inner if kind == "norms" else []
            return ".".join([layer, f"{'bn' if kind == 'norms' else 'conv'}_{index}", *kept])
        case ["attention", *inner]:
            names = [f"snconv1x1_{'o_conv' if name == 'o' else name}" for name in inner]
            return ".".join([f"generator.layers.{attention}", *names])
    return {
        "embeddings": "embeddings", "gen_z": "generator.gen_z", "norm": "generator.bn",
        "conv": "generator.conv_to_rgb",
    }[parts[0]]  # fmt: skip


def _recognises(checkpoint: Checkpoint) -> bool:
    return any(re.fullmatch(_OWN_NAMES, name) for name in checkpoint.tensors)


GENERATOR = Family(
    summary="BigGAN-deep of pytorch-pretrained-BigGAN (config.json + pytorch_model.bin)",
    build=_build,
    infer=_infer,
    recognises=_recognises,
    options=_OPTIONS,
)
