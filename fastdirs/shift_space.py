"""The space that directions are looked for in: the edited layers as one vector, and the way to a bank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdirs.directions import DirectionBank, fix_signs, signs
from fastdirs.errors import SelectionError, check_shape
from fastdirs.generators import Generator
from fastdirs.manifest import Json

_SCALE_SAMPLES = 1024
_SIGMAS_EACH_WAY = 6.0


@dataclass(frozen=True)
class ShiftSpace:
    """Where shifts live: one vector for all edited layers, or one for each where these are parts of z.

    Attributes:
        generator: The generator.
        layers: Latent layers that shifts touch, ascending.
        per_layer: A vector of its own for each layer, also where one could do for all.

    Raises:
        SelectionError: No layer, or one that the generator does not have or that is not to be edited.
    """

    generator: Generator
    layers: tuple[int, ...]
    per_layer: bool = False

    def __post_init__(self) -> None:
        name, last = self.generator.provenance.name, max(self.generator.editable)
        if not self.layers:
            raise SelectionError("No layer to edit. Name at least one.")
        for layer in self.layers:
            if not 0 <= layer < self.generator.num_layers:
                raise SelectionError(
                    f"There is no layer {layer}. {name} has layers 0 to {self.generator.num_layers - 1}."
                )
            if layer not in self.generator.editable:
                raise SelectionError(
                    f"Layer {layer} of {name} is no latent to edit: it carries the place among its batch "
                    f"norm statistics, which psi chooses. Layers 0 to {last} can be edited."
                )

    @property
    def size(self) -> int:
        """Numbers in one vector of the space: `dim`, or `layers * dim` where the layers are parts of z."""
        return self.generator.dim * (len(self.layers) if self._apart else 1)

    @property
    def _apart(self) -> bool:
        return self.per_layer or self.generator.chunked

    def spread(self, vectors: Tensor) -> Tensor:
        """Vectors of the space as shifts of latents.

        Args:
            vectors: `[..., size]`, float.

        Returns:
            `[..., num_layers, dim]`, of the same dtype and device, zero in the layers that are not edited.

        Raises:
            ShapeError: Another size.
        """
        check_shape(vectors.reshape(-1, vectors.shape[-1]), "vectors size", "vectors", size=self.size)
        num_layers, dim = self.generator.num_layers, self.generator.dim
        if self._apart:
            parts = vectors.reshape(*vectors.shape[:-1], len(self.layers), dim)
        else:
            parts = vectors[..., None, :].expand(*vectors.shape[:-1], len(self.layers), dim)
        if self.layers == tuple(range(num_layers)):
            return parts
        index = torch.tensor(self.layers, device=vectors.device)
        shifts: Tensor = vectors.new_zeros(*vectors.shape[:-1], num_layers, dim)
        return shifts.index_copy(-2, index, parts)

    def gather(self, latents: Tensor) -> Tensor:
        """Latents as vectors of the space; the mean over the edited layers where all share one vector.

        Args:
            latents: `[batch, num_layers, dim]`, float.

        Returns:
            `[batch, size]`, float.
        """
        chosen = latents[:, list(self.layers)]
        return chosen.flatten(1) if self._apart else chosen.mean(dim=1)

    def bank(
        self,
        vectors: Tensor,
        scores: Tensor,
        method: str,
        settings: Json,
        knots: Tensor | None = None,
        labels: Sequence[str] | None = None,
        keep_signs: bool = False,
    ) -> DirectionBank:
        """What was found, as a bank: signs fixed, scales measured, ranges suggested.

        Args:
            vectors: Unit vectors `[num_directions, size]`, or shifts at the knots
                `[num_directions, knots, size]`, float; `num_layers, dim` for `size` where layers differ.
            scores: `[num_directions]`, float.
            method: Where they come from.
            settings: With which settings.
            knots: Epsilons of paths, symmetric about 0. `[knots]`, float; None if straight.
            labels: Names; None = "direction 0", "direction 1", ...
            keep_signs: Leave signs alone: what others made means something in the sign that it has.

        Raises:
            ShapeError: Tensors that do not fit each other.
            BankError: Knots that do not ascend, or paths that do not begin at zero.
        """
        each_layer = vectors.ndim == (3 if knots is None else 4)
        directions = (vectors if each_layer else self.spread(vectors)).float().contiguous()
        if not keep_signs and knots is None:
            directions = fix_signs(directions)
        elif not keep_signs:
            # A path is turned by walking it from its other end.
            turned = signs(directions[:, -1] - directions[:, 0]) < 0
            directions = torch.where(turned[:, None, None, None], directions.flip(1), directions)
        chords = directions if knots is None else directions[:, -1] - directions[:, 0]
        scales = self._scales(chords)
        reach = _SIGMAS_EACH_WAY * scales
        names = labels or [f"direction {index}" for index in range(len(directions))]
        return DirectionBank(
            directions=directions, scales=scales, scores=scores.float().contiguous(),
            ranges=torch.stack([-reach, reach], dim=1), labels=tuple(names), layers=self.layers,
            generator=self.generator.identity(), method=method, settings=settings,
            knots=None if knots is None else knots.float().contiguous(),
        )  # fmt: skip

    def _scales(self, directions: Tensor) -> Tensor:
        """Standard deviation of latents along vectors of any length: `[num_directions]`, float32."""
        seeds, chosen = range(_SCALE_SAMPLES), list(self.layers)
        with torch.no_grad():
            latents = self.generator.mapping(
                self.generator.sample(seeds), self.generator.sample_classes(seeds)
            ).float()[:, chosen]
            parts = directions[:, chosen]
            if self.generator.chunked:
                # One vector over all layers.
                latents, parts = latents.flatten(1)[:, None], parts.flatten(1)[:, None]
            length = parts.norm(dim=2, keepdim=True)
            parts = parts / torch.where(length > 0, length, 1.0)
            along = torch.einsum("bld,kld->bkl", latents, parts).std(dim=0)
            edited: Tensor = (length[..., 0] > 0).sum(dim=1).clamp(min=1)
            return along.sum(dim=1) / edited
