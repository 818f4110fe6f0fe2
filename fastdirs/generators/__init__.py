"""The generator contract, and one file per family."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError, ContractError, check_shape
from fastdirs.latents import class_weights, psi_per_layer, sample_classes, sample_z, truncate
from fastdirs.manifest import Json, sha256_json, sha256_tensors
from fastdirs.registry import Registry

State = Tensor | tuple[Tensor, ...] | None
"""What one stage hands to the next: tensors whose first axis is the batch."""

Classes = int | Tensor | NDArray[np.generic]
"""One class for all images, an index for each `[batch]`, or weights `[batch, c_dim]`."""


@dataclass(frozen=True)
class Factor:
    """A weight that multiplies latents directly, so that closed-form methods may factorise it.

    Attributes:
        name: Where it stands in the generator.
        layer: The latent layer that it reads.
        weight: Raw parameters, one row per output unit. `[units, dim]`, float32.
        role: What its output acts on: "features", or "image" where it scales what becomes colours.
    """

    name: str
    layer: int
    weight: Tensor
    role: Literal["features", "image"] = "features"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where weights come from; travels into everything made with them.

    Attributes:
        name: What people call the generator.
        source: Package, address or file that they were read from.
        licence: Licence of the weights, "unknown" if nobody said.
        assumed: Settings that the file does not hold and that were taken as usual, as "name=value".
    """

    name: str = "unnamed"
    source: str = "unknown"
    licence: str = "unknown"
    assumed: tuple[str, ...] = ()


class Generator(nn.Module, ABC):
    """A pretrained generator: z -> latents -> images, cut into stages.

    Synthesis runs `stages` in order. The first stage gets the weights of the classes `[batch, c_dim]` as its
    state if `class_in` is "synthesis", else None; each returns the next state, the last one the images;
    `reads[i]` names the latent layers stage i looks at.

    Attributes:
        family: Registered name of the family.
        space: What the latents are: "z", "w" or "w+".
        z_dim: Size of z.
        z_bound: None if z is normal; else z is drawn from a normal distribution cut at plus or minus this.
        c_dim: Number of classes, 0 if unconditional.
        class_in: Which half reads the class: "mapping", "synthesis", or "" if unconditional.
        num_layers: Number of latent layers.
        dim: Size of one latent layer.
        truncation_rows: Sets of batch norm statistics to choose from by psi; 0 for nearly all families. Where
            there are some, the last latent layer carries the choice and is not to be edited.
        img_resolution: Height and width of the images, in pixels.
        img_channels: 1 (grey) or 3 (RGB).
        config: Settings from which the family builds the same architecture again.
        provenance: Where the weights come from.
        precisions: Arithmetic that the stages can run in.
        exportable: False where the pictures hold chance that no graph can repeat.
        discovery_defaults: What was published for training directions with this family, by the names of the
            methods' options; empty where nothing was.
        differentiable: False where images have no gradients with respect to latents.

    Raises:
        ContractError: Another number of `reads` than of stages, or classes that nothing reads.
    """

    precisions: tuple[str, ...] = ("f32", "bf16")
    exportable: bool = True
    differentiable: bool = True
    discovery_defaults: ClassVar[Mapping[str, int | float | str]] = {}
    latent_mean: Tensor

    def __init__(
        self,
        *,
        family: str,
        space: str,
        z_dim: int,
        num_layers: int,
        dim: int,
        img_resolution: int,
        img_channels: int,
        stages: Sequence[nn.Module],
        reads: Sequence[tuple[int, ...]],
        config: Json,
        c_dim: int = 0,
        class_in: Literal["mapping", "synthesis", ""] = "",
        z_bound: float | None = None,
        truncation_rows: int = 0,
    ) -> None:
        super().__init__()
        if len(reads) != len(stages):
            raise ContractError(f"{family} has {len(stages)} stages but says what {len(reads)} of them read.")
        if bool(c_dim) != bool(class_in):
            raise ContractError(f"{family} has {c_dim} classes, but its class_in is {class_in!r}.")
        self.family = family
        self.space = space
        self.z_dim = z_dim
        self.z_bound = z_bound
        self.c_dim = c_dim
        self.class_in = class_in
        self.num_layers = num_layers
        self.dim = dim
        self.truncation_rows = truncation_rows
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.stages = nn.ModuleList(stages)
        self.reads = tuple(reads)
        self.config = config
        self.provenance = Provenance(name=family)
        self._weights_sha256: str | None = None
        # What truncation pulls towards: zero for Gaussian z, the average w where a family has one.
        self.register_buffer("latent_mean", torch.zeros(num_layers, dim))

    @property
    @abstractmethod
    def has_mapping(self) -> bool:
        """Whether `map_z` is more than a new axis of layers, so that it is exported as `mapping.onnx`."""

    @abstractmethod
    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Latents without truncation. Traceable.

        z `[batch, z_dim]` and, if `class_in` is "mapping", weights of the classes `[batch, c_dim]` -> latents
        `[batch, layers, dim]`, float32.
        """

    @abstractmethod
    def factors(self) -> list[Factor]:
        """Weights that multiply latents directly, in order; empty where the family has none."""

    @property
    def editable(self) -> tuple[int, ...]:
        """The latent layers that directions may touch."""
        return tuple(range(self.num_layers - bool(self.truncation_rows)))

    @property
    def chunked(self) -> bool:
        """Whether each layer is a part of z; else one direction means the same in all layers."""
        return self.space == "z" and self.num_layers > 1 and self.num_layers * self.dim == self.z_dim

    def mapping(
        self, z: Tensor, c: Classes | None = None, psi: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """Latents of z.

        Args:
            z: `[batch, z_dim]`, float32, as `sample` draws it.
            c: Class for all, class index `[batch]`, or weights of the classes `[batch, c_dim]`; None if
                unconditional, or if only the synthesis reads the class.
            psi: Truncation, 1 = off, 0 = the mean image.
            cutoff: How many of the first layers to truncate; None = all.

        Returns:
            `[batch, layers, dim]`, float32.

        Raises:
            ShapeError: z or c has another shape.
            ContractError: A class for an unconditional generator, or none for one that needs it here.
            SelectionError: psi, cutoff or class out of range.
        """
        check_shape(z, "batch z_dim", "z", z_dim=self.z_dim)
        weights = self.class_weights(c, len(z), "mapping")
        psi_of_layers = psi_per_layer(psi, cutoff, self.num_layers, self.truncation_rows).to(z.device)
        return truncate(self.map_z(z, weights), self.latent_mean, psi_of_layers)

    def synthesis(self, latents: Tensor, c: Classes | None = None) -> Tensor:
        """Images of latents.

        Args:
            latents: `[batch, layers, dim]`, float32.
            c: Class for all, class index `[batch]`, or weights of the classes `[batch, c_dim]`; None if
                unconditional, or if only the mapping reads the class.

        Returns:
            `[batch, channels, height, width]`, float32, meant for [-1, 1]; families whose last layer is
            linear may leave that range, and nothing is clipped here.

        Raises:
            ShapeError: The latents or c have another shape.
            ContractError: A class for an unconditional generator, or none for one that needs it here.
            SelectionError: A class out of range.
        """
        check_shape(latents, "batch layers dim", "latents", layers=self.num_layers, dim=self.dim)
        return self.run_stages(latents, self.class_weights(c, len(latents), "synthesis"))

    def run_stages(self, latents: Tensor, c: Tensor | None = None) -> Tensor:
        """`synthesis` without its checks, for tracing.

        Latents `[batch, layers, dim]` and weights of the classes `[batch, c_dim]`, if it reads them -> images
        `[batch, channels, height, width]`.
        """
        state: State = c
        for stage in self.stages:
            state = stage(state, latents)
        assert isinstance(state, Tensor)
        return state

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """z of seeds, as this generator was trained on: `[batch, z_dim]`, float32."""
        return sample_z(seeds, self.z_dim, self.z_bound)

    def sample_classes(self, seeds: Sequence[int]) -> Tensor | None:
        """A class for each seed, to measure with: `[batch]`, int64; None if unconditional."""
        return sample_classes(seeds, self.c_dim) if self.c_dim else None

    def class_weights(self, c: Classes | None, count: int, half: str) -> Tensor | None:
        """What `map_z` or `run_stages` take for classes.

        Args:
            c: As in `mapping` and `synthesis`.
            count: Size of the batch.
            half: "mapping" or "synthesis".

        Returns:
            `[batch, c_dim]`, float32; None where this half reads no class.

        Raises:
            ContractError: A class for an unconditional generator, or none where it is needed.
            SelectionError: A class out of range.
            ShapeError: Another shape.
        """
        if c is None:
            if half == self.class_in:
                raise ContractError(
                    f"{self.provenance.name} needs a class from 0 to {self.c_dim - 1}. Pass c."
                )
            return None
        if not self.c_dim:
            raise ContractError(f"{self.provenance.name} takes no class. Leave c out.")
        weights = class_weights(c, count, self.c_dim).to(self.latent_mean.device)
        return weights if half == self.class_in else None

    @property
    def weights_sha256(self) -> str:
        """Hash over the weight tensors: the identity, shared by copies in other formats and lowered forms."""
        if self._weights_sha256 is None:
            state = {k: v for k, v in self.state_dict().items() if not k.endswith("num_batches_tracked")}
            self._weights_sha256 = sha256_tensors(state)
        return self._weights_sha256

    def identity(self) -> Json:
        """What every file made with this generator records of it."""
        return {
            "name": self.provenance.name,
            "family": self.family,
            "weights_sha256": self.weights_sha256,
            "config_sha256": sha256_json(self.config),
            "licence": self.provenance.licence,
            "source": self.provenance.source,
            "space": self.space,
            "z_dim": self.z_dim,
            "z_bound": self.z_bound,
            "c_dim": self.c_dim,
            "class_in": self.class_in,
            "num_layers": self.num_layers,
            "dim": self.dim,
            "truncation_rows": self.truncation_rows,
            "img_resolution": self.img_resolution,
            "img_channels": self.img_channels,
        }


class ZGenerator(Generator):
    """A generator whose latents are z itself, as one layer."""

    @property
    def has_mapping(self) -> bool:
        """False: z is the latent space; a mapping network, if there is one, is part of the stages."""
        return False

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z `[batch, z_dim]` -> `[batch, 1, z_dim]`."""
        return z[:, None]


class LatentStage(nn.Module):
    """A first stage: one latent layer as a 1x1 picture through a sequence of layers."""

    def __init__(self, body: nn.Sequential, layer: int = 0) -> None:
        super().__init__()
        self.body = body
        self.layer = layer

    def forward(self, state: State, latents: Tensor) -> Tensor:
        """Latents `[batch, layers, dim]` -> features `[batch, channels, height, width]`; no state yet."""
        features: Tensor = self.body(latents[:, self.layer, :, None, None])
        return features


class FeatureStage(nn.Module):
    """A later stage that reads no latents: features through a sequence of layers."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, state: Tensor, latents: Tensor) -> Tensor:
        """Features `[batch, channels, height, width]` -> the next; latents `[batch, layers, dim]` unused."""
        features: Tensor = self.body(state)
        return features


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of generators.

    Attributes:
        summary: One line for `fastdirs list generators`.
        build: Settings -> generator with that architecture, random weights, evaluation mode, frozen; its
            weights are loaded afterwards.
        infer: Checkpoint and options -> generator with weights; None for a family that needs no file. Raises
            CheckpointError where the tensors are not of this family or leave a doubt.
        recognises: Whether a checkpoint is of this family, by names of tensors that even a damaged one has.
            None: tried on whatever no other family recognises.
        options: Options that settle a doubt, with a line of help each.
        adjustable: Options that also apply to a file that fastdirs wrote: they replace what its config says.
        formats: Checkpoint formats that this family is looked for in.
    """

    summary: str
    build: Callable[[Json], Generator]
    infer: Callable[[Checkpoint, Mapping[str, str]], Generator] | None
    recognises: Callable[[Checkpoint], bool] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    adjustable: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("safetensors_file", "torch_file", "pickle_file", "folder")


# Besides a file's own tensors, a generator holds a few small ones that are computed.
_SPARE_VALUES = 2**22


def built(build: Callable[[Json], Generator], config: Json, checkpoint: Checkpoint) -> Generator:
    """A generator with room for a checkpoint's tensors, unless their shapes ask for far more than they hold.

    Args:
        build: The family's `build`.
        config: The architecture, as read off the shapes.
        checkpoint: Where the shapes come from.

    Raises:
        CheckpointError: The shapes do not belong together.
    """
    # Without memory first: two sizes from different tensors of a damaged file may make a huge product.
    with torch.device("meta"):
        wanted = sum(tensor.numel() for tensor in build(config).state_dict().values())
    given = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    if wanted > 2 * given + _SPARE_VALUES:
        raise CheckpointError(
            f"{checkpoint.path} holds {given:,} values, but the shapes of its tensors ask for {wanted:,}. "
            "The file is damaged or of another variant."
        )
    return build(config)


GENERATORS: Registry[Family] = Registry("fastdirs.generators", "GENERATOR", "generator family")
