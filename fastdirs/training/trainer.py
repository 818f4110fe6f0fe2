"""One training step, and what it needs: frozen images, two optimisers, one process or several."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.deformators import Deformator
from fastdirs.errors import SelectionError
from fastdirs.images import GREY_LEVELS, Pixels, grid, strip, to_uint8
from fastdirs.pairs import Pairs, draw_pairs
from fastdirs.reconstructors import Reconstructor
from fastdirs.shift_space import ShiftSpace
from fastdirs.training.fabric import open_fabric
from fastdirs.training.frozen import FrozenGenerator
from fastdirs.training.settings import TrainingSettings

FIGURES = ("loss", "label_loss", "shift_loss", "centroid_loss", "accuracy")
"""What a step reports, in order."""
_PICTURE_DIRECTIONS, _PICTURE_STEPS = 10, 7


class _Step(nn.Module):
    """Everything between latents and losses: shift, render, and tell what was done."""

    def __init__(
        self, space: ShiftSpace, synthesis: FrozenGenerator, deformator: Deformator,
        reconstructor: Reconstructor, centroid: nn.Module | None, settings: TrainingSettings,
        centroid_weight: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.deformator = deformator
        self.reconstructor = reconstructor
        self.centroid = centroid
        # Not a submodule: it is not trained, and processes need not compare it.
        self._frozen = (space, synthesis)
        self._settings = settings
        self._centroid_weight = centroid_weight

    def render(
        self, latents: Tensor, c: Tensor | None, directions: Tensor, epsilons: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Unshifted and shifted images, in the synthesis' precision."""
        space, synthesis = self._frozen
        with torch.no_grad():
            unshifted = synthesis(latents, c)
        return unshifted, synthesis(latents + space.spread(self.deformator(directions, epsilons)), c)

    def answers(self, unshifted: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, epsilon and features of pairs, float32."""
        fast = self._settings.precision == "bf16"
        with torch.autocast(unshifted.device.type, torch.bfloat16, enabled=fast):
            logits, epsilon, features = self.reconstructor(unshifted, shifted)
        return logits.float(), epsilon.float(), features.float()

    def forward(
        self, latents: Tensor, c: Tensor | None, directions: Tensor, epsilons: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss, and figures in the order of `FIGURES`."""
        logits, epsilon, features = self.answers(*self.render(latents, c, directions, epsilons))
        label_loss = F.cross_entropy(logits, directions)
        shift_loss = (epsilon - epsilons).abs().mean()
        loss = self._settings.label_weight * label_loss + self._settings.shift_weight * shift_loss
        centroid_loss = loss.new_zeros(())
        if self.centroid is not None:
            centroid_loss = self.centroid(features, directions)
            loss = loss + self._centroid_weight * centroid_loss
        accuracy = (logits.argmax(dim=1) == directions).float().mean()
        return loss, torch.stack([loss, label_loss, shift_loss, centroid_loss, accuracy]).detach()


@dataclass(frozen=True)
class HeldOut:
    """What a reconstructor recognises.

    Attributes:
        accuracy: Share of all pairs.
        accuracies: Share of the pairs of each direction. `[num_directions]`, float32.
        changes: Mean absolute change of the picture, in grey levels. `[num_directions]`, float32.
    """

    accuracy: float
    accuracies: Tensor
    changes: Tensor


class Trainer:
    """A deformator and a reconstructor in training, on one of its processes.

    Attributes:
        fabric: The processes and the device.
        module: What is trained.
        optimizers: By name.

    Args:
        space: The generator and the layers to edit.
        deformator: Directions; may have nothing to train.
        reconstructor: Tells pairs apart.
        settings: Resolved.
        centroid: (features `[batch, width]`, directions `[batch]`) -> loss, added with its weight.
        centroid_weight: Its weight.
        per_direction: Pairs of each direction in a batch, as `draw_pairs` has it.

    Raises:
        SelectionError: A batch that processes or directions cannot share.
    """

    def __init__(
        self, space: ShiftSpace, deformator: Deformator, reconstructor: Reconstructor,
        settings: TrainingSettings, centroid: nn.Module | None = None, centroid_weight: float = 0.0,
        per_direction: int = 1,
    ) -> None:  # fmt: skip
        self.fabric = open_fabric(settings.device)
        world = self.fabric.world_size
        if settings.batch % (world * per_direction):
            raise SelectionError(
                f"A batch of {settings.batch} cannot be shared by {world} processes with {per_direction} "
                f"pairs of each direction. Choose a multiple of {world * per_direction}."
            )
        # Every so manieth row: a batch that holds its directions several times over is dealt out evenly.
        self._mine = slice(self.fabric.global_rank, None, world)
        self._space, self._settings, self._per_direction = space, settings, per_direction
        self._synthesis = FrozenGenerator(space.generator, self.fabric.device, settings.precision)
        self.module = _Step(
            space, self._synthesis, deformator, reconstructor, centroid, settings, centroid_weight
        )
        self.module.to(self.fabric.device)
        reconstructor.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        judged = [*reconstructor.parameters(), *(centroid.parameters() if centroid else ())]
        self.optimizers = {"reconstructor": torch.optim.Adam(judged, settings.reconstructor_lr)}
        trained = [parameter for parameter in deformator.parameters() if parameter.requires_grad]
        if trained:
            self.optimizers["directions"] = torch.optim.Adam(trained, settings.directions_lr)
        self._wrapped, *self._stepping = self.fabric.setup(self.module, *self.optimizers.values())

    def step(self, number: int) -> Tensor:
        """One step. It depends on its number and the state alone; returns `FIGURES`, `[5]`, float32."""
        # Only for generators that draw noise of their own.
        torch.manual_seed(self._settings.seed * 1_000_003 + number)
        self.module.train()
        loss, figures = self._wrapped(*self._inputs(self._pairs(number), self._mine))
        self.fabric.backward(loss)
        for optimizer in self._stepping:
            optimizer.step()
            optimizer.zero_grad()
        reported: Tensor = figures
        return reported

    @torch.no_grad()
    def warm_up(self) -> None:
        """Pictures for nothing: on some machines the first of a process differ in the last bits."""
        self.module.eval()
        self.module.answers(*self.module.render(*self._inputs(self._pairs(0), self._mine)))

    @torch.no_grad()
    def held_out(self, pairs: int) -> HeldOut:
        """What is recognised on seeds that no step uses, over at least so many pairs."""
        count = self.module.deformator.num_directions
        sums, seen = torch.zeros(2, count), torch.zeros(count)
        self.module.eval()
        for batch in range(-(-pairs // self._settings.batch)):
            drawn = draw_pairs(
                self._space.generator, count, self._settings.shifts, self._settings.batch, batch,
                first_seed=0,
            )  # fmt: skip
            latents, c, directions, epsilons = self._inputs(drawn, slice(None))
            unshifted, shifted = self.module.render(latents, c, directions, epsilons)
            hits = (self.module.answers(unshifted, shifted)[0].argmax(dim=1) == directions).float()
            changes = (shifted.float() - unshifted.float()).abs().mean(dim=(1, 2, 3)) * GREY_LEVELS
            sums.index_add_(1, drawn.directions, torch.stack([hits, changes]).cpu())
            seen.index_add_(0, drawn.directions, torch.ones(len(hits)))
        accuracies, changes = sums / seen.clamp(min=1)
        return HeldOut(float(sums[0].sum() / seen.sum().clamp(min=1)), accuracies, changes)

    @torch.no_grad()
    def picture(self) -> Pixels:
        """Strips of the first directions, one seed: `[height, width, channels]`, uint8."""
        reach, generator = self._settings.shift_scale, self._space.generator
        self.module.eval()
        knots = torch.linspace(-reach, reach, _PICTURE_STEPS, device=self.fabric.device)
        paths = self._space.spread(self.module.deformator.paths(knots)[:_PICTURE_DIRECTIONS])
        latents, c = self._synthesis.latents(generator.sample([0]), generator.sample_classes([0]))
        weights = None if c is None else c.expand(_PICTURE_STEPS, -1)
        return grid([strip(to_uint8(self._synthesis(latents + path, weights))) for path in paths])

    def _pairs(self, step: int) -> Pairs:
        return draw_pairs(
            self._space.generator, self.module.deformator.num_directions, self._settings.shifts,
            self._settings.batch, step, self._settings.seed, per_direction=self._per_direction,
        )  # fmt: skip

    def _inputs(self, pairs: Pairs, rows: slice) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """What the module takes, for these rows of a batch that every process draws whole."""
        classes = None if pairs.classes is None else pairs.classes[rows]
        latents, c = self._synthesis.latents(pairs.z[rows], classes)
        device = self.fabric.device
        return latents, c, pairs.directions[rows].to(device), pairs.epsilons[rows].to(device)
