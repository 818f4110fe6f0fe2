"""The generator contract, and one file per family."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import ContractError, check_shape
from fastdirs.latents import psi_per_layer, sample_z, truncate
from fastdirs.manifest import Json, sha256_json, sha256_tensors
from fastdirs.registry import Registry


@dataclass(frozen=True)
class Factor:
    """A weight that multiplies latents directly, so that closed-form methods may factorise it.

    Attributes:
        name: Where it stands in the generator.
        layer: The latent layer that it reads.
        weight: Raw parameters, one row per output unit. `[units, dim]`, float32.
    """

    name: str
    layer: int
    weight: Tensor


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

    Synthesis runs `stages` in order. The first stage gets the class `c` (None if unconditional) as its state,
    each returns the next state, the last one the images; `reads[i]` names the latent layers stage i looks at.

    Attributes:
        family: Registered name of the family.
        space: What the latents are: "z", "w" or "w+".
        z_dim: Size of z.
        c_dim: Number of classes, 0 if unconditional.
        num_layers: Number of latent layers.
        dim: Size of one latent layer.
        img_resolution: Height and width of the images, in pixels.
        img_channels: 1 (grey) or 3 (RGB).
        config: Settings from which the family builds the same architecture again.
        provenance: Where the weights come from.
        precisions: Arithmetic that the stages can run in.

    Raises:
        ContractError: Another number of `reads` than of stages.
    """

    precisions: tuple[str, ...] = ("f32", "bf16")
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
    ) -> None:
        super().__init__()
        if len(reads) != len(stages):
            raise ContractError(f"{family} has {len(stages)} stages but says what {len(reads)} of them read.")
        self.family = family
        self.space = space
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.num_layers = num_layers
        self.dim = dim
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
        """Whether `map_z` is a network, exported as `mapping.onnx`, and not just a change of shape."""

    @abstractmethod
    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Latents without truncation: z `[batch, z_dim]` -> `[batch, layers, dim]`, float32. Traceable."""

    @abstractmethod
    def factors(self) -> list[Factor]:
        """Weights that multiply latents directly, in order; empty where the family has none."""

    def mapping(
        self, z: Tensor, c: Tensor | None = None, psi: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """Latents of z.

        Args:
            z: `[batch, z_dim]`, float32, standard normal.
            c: Class index `[batch]`, int64, or one-hot `[batch, c_dim]`; None if unconditional.
            psi: Truncation, 1 = off, 0 = the mean image.
            cutoff: How many of the first layers to truncate; None = all.

        Returns:
            `[batch, layers, dim]`, float32.

        Raises:
            ShapeError: z has another shape.
            ContractError: A class for an unconditional generator, or none for a conditional one.
            SelectionError: psi or cutoff out of range.
        """
        check_shape(z, "batch z_dim", "z", z_dim=self.z_dim)
        self._check_class(c)
        psi_of_layers = psi_per_layer(psi, cutoff, self.num_layers).to(z.device)
        return truncate(self.map_z(z, c), self.latent_mean, psi_of_layers)

    def synthesis(self, latents: Tensor, c: Tensor | None = None) -> Tensor:
        """Images of latents.

        Args:
            latents: `[batch, layers, dim]`, float32.
            c: Class index `[batch]`, int64, or one-hot `[batch, c_dim]`; None if unconditional.

        Returns:
            `[batch, channels, height, width]`, float32 in [-1, 1].

        Raises:
            ShapeError: The latents have another shape.
            ContractError: A class for an unconditional generator, or none for a conditional one.
        """
        check_shape(latents, "batch layers dim", "latents", layers=self.num_layers, dim=self.dim)
        self._check_class(c)
        return self.run_stages(latents, c)

    def run_stages(self, latents: Tensor, c: Tensor | None = None) -> Tensor:
        """`synthesis` without its checks, for tracing.

        Latents `[batch, layers, dim]` -> images `[batch, channels, height, width]`.
        """
        state = c
        for stage in self.stages:
            state = stage(state, latents)
        assert state is not None
        return state

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
            "c_dim": self.c_dim,
            "num_layers": self.num_layers,
            "dim": self.dim,
            "img_resolution": self.img_resolution,
            "img_channels": self.img_channels,
        }

    def _check_class(self, c: Tensor | None) -> None:
        if (c is None) != (self.c_dim == 0):
            wanted = "takes no class" if self.c_dim == 0 else f"needs a class from 0 to {self.c_dim - 1}"
            raise ContractError(
                f"{self.provenance.name} {wanted}. {'Leave c out.' if self.c_dim == 0 else 'Pass c.'}"
            )


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

    def forward(self, state: Tensor | None, latents: Tensor) -> Tensor:
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


class _ModuleStage(nn.Module):
    def __init__(self, module: nn.Module, z_axes: int) -> None:
        super().__init__()
        self.module = module
        self.z_axes = z_axes

    def forward(self, state: Tensor | None, latents: Tensor) -> Tensor:
        z = latents[:, 0]
        images: Tensor = self.module(z[:, :, None, None] if self.z_axes == 4 else z)
        return images


class ModuleGenerator(ZGenerator):
    """Any torch module from z to images, as a generator.

    Args:
        module: Takes z `[batch, z_dim]` (or `[batch, z_dim, 1, 1]`), returns images
            `[batch, channels, height, width]` in [-1, 1]. Put into evaluation mode here.
        z_dim: Size of z; None takes `module.z_dim`.
        name: What to call it.

    Raises:
        ContractError: No z_dim, or the module does not turn z into square images.
    """

    def __init__(self, module: nn.Module, z_dim: int | None = None, name: str = "custom") -> None:
        size = z_dim if z_dim is not None else getattr(module, "z_dim", None)
        if not isinstance(size, int):
            raise ContractError(
                f"{name} does not say how long its z is. "
                "Give it a z_dim attribute, or use ModuleGenerator(module, z_dim=...)."
            )
        module.eval().requires_grad_(False)
        images, z_axes = _probe(module, size, name)
        super().__init__(
            family="custom", space="z", z_dim=size, num_layers=1, dim=size, img_resolution=images.shape[2],
            img_channels=images.shape[1], stages=[_ModuleStage(module, z_axes)], reads=[(0,)], config={},
        )  # fmt: skip
        self.provenance = Provenance(name=name, source="code of the user")
        self.eval()

    def factors(self) -> list[Factor]:
        """The first linear or transposed convolution layer that is given z itself, if there is one."""
        latents = torch.zeros(2, 1, self.dim)
        found: list[Factor] = []
        hooks = []
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear | nn.ConvTranspose2d):
                hooks.append(layer.register_forward_pre_hook(partial(_keep_if_given, latents, found, name)))
        with torch.no_grad():
            self.run_stages(latents)
        for hook in hooks:
            hook.remove()
        return found[:1]


def _keep_if_given(
    latents: Tensor, found: list[Factor], name: str, layer: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    """A hook: note a layer whose input is the latents, in whatever shape, and nothing computed from them."""
    if inputs[0].untyped_storage().data_ptr() != latents.untyped_storage().data_ptr():
        return
    if isinstance(layer, nn.Linear):
        found.append(Factor(name, 0, layer.weight.detach()))
    elif isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1:
        found.append(Factor(name, 0, layer.weight.detach().flatten(1).T))


def _probe(module: nn.Module, z_dim: int, name: str) -> tuple[Tensor, int]:
    """Images of two z, and whether the module wants z with two or four axes."""
    reason = ""
    for z_axes, shape in ((2, (2, z_dim)), (4, (2, z_dim, 1, 1))):
        try:
            with torch.inference_mode():
                images = module(sample_z(range(2), z_dim).reshape(shape))
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        if isinstance(images, Tensor) and images.ndim == 4:
            batch, channels, height, width = images.shape
            if batch == 2 and channels in (1, 3) and height == width:
                if images.min() >= 0:
                    raise ContractError(
                        f"{name} returns values from {images.min():.2g} to {images.max():.2g}. "
                        "Expected images in [-1, 1]: return 2 * images - 1."
                    )
                return images, z_axes
        reason = f"it returned {list(images.shape) if isinstance(images, Tensor) else type(images).__name__}"
    raise ContractError(
        f"{name} does not turn z [batch, {z_dim}] into square images [batch, 1 or 3, size, size]: {reason}."
    )


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of generators.

    Attributes:
        summary: One line for `fastdirs list generators`.
        build: Settings -> generator with that architecture; its weights are loaded afterwards.
        infer: Checkpoint and options -> generator with weights; None for a family that needs no file. Raises
            CheckpointError where the tensors are not of this family or leave a doubt.
        options: Options that settle a doubt, with a line of help each.
        formats: Checkpoint formats that this family is looked for in.
    """

    summary: str
    build: Callable[[Json], Generator]
    infer: Callable[[Checkpoint, Mapping[str, str]], Generator] | None
    options: Mapping[str, str] = field(default_factory=dict)
    formats: tuple[str, ...] = ("safetensors_file", "torch_file")


GENERATORS: Registry[Family] = Registry("fastdirs.generators", "GENERATOR", "generator family")
