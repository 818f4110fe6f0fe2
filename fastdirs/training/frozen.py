"""A generator as training uses it: a lowered copy, never trained, in the fastest layout and precision."""

import copy

import torch
from torch import Tensor

from fastdirs.generators import FeatureStage, Generator, LatentStage
from fastdirs.lowering import FORMS, lower

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class FrozenGenerator:
    """A copy of a generator for images with gradients to the latents alone.

    Args:
        generator: The original, which is left alone.
        device: Where to compute.
        precision: "f32", or "bf16" for the synthesis; the mapping stays in float32.
    """

    def __init__(self, generator: Generator, device: torch.device, precision: str) -> None:
        # "folded": the rewrites of the other form pay in compiled graphs, not here.
        self.generator = lower(generator, FORMS["folded"]).to(device).eval().requires_grad_(False)
        self._synthesis = self.generator
        self._dtype = _DTYPES[precision]
        if self._dtype != torch.float32:
            self._synthesis = copy.deepcopy(self.generator).to(self._dtype)
        for stage in self._synthesis.stages:
            if isinstance(stage, LatentStage | FeatureStage):
                stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device

    @torch.no_grad()
    def latents(self, z: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Unshifted latents, and what the synthesis takes of the classes.

        z `[batch, z_dim]` and classes `[batch]` -> `[batch, layers, dim]` and `[batch, c_dim]`, float32.
        """
        z, classes = z.to(self._device), None if classes is None else classes.to(self._device)
        weights = self.generator.class_weights(classes, len(z), "synthesis") if classes is not None else None
        return self.generator.mapping(z, classes), weights

    def __call__(self, latents: Tensor, c: Tensor | None) -> Tensor:
        """Images `[batch, channels, height, width]`, in the synthesis' precision, of `latents`."""
        weights = None if c is None else c.to(self._dtype)
        return self._synthesis.run_stages(latents.to(self._dtype), weights)
