"""The user's own torch module as a generator."""

from functools import partial

import torch
from torch import Tensor, nn

from fastdirs.errors import ContractError
from fastdirs.generators import Factor, Provenance, ZGenerator
from fastdirs.latents import sample_z


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
