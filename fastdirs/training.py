"""Training a reconstructor, and the directions with it: one loop for every method that trains."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.deformators import Deformator, Fixed
from fastdirs.directions import DirectionBank
from fastdirs.errors import SelectionError, TrainingError
from fastdirs.frozen import FrozenGenerator
from fastdirs.generators import Generator
from fastdirs.images import Pixels, grid, strip, to_uint8
from fastdirs.manifest import Json
from fastdirs.pairs import Pairs, draw_pairs
from fastdirs.reconstructors import Reconstructor, build_reconstructor
from fastdirs.shift_space import ShiftSpace
from fastdirs.training_log import TrainingLog
from fastdirs.training_settings import USUAL, TrainingSettings
from fastdirs.training_state import STATE_FILE, load_state, run_folder, save_state

_PICTURE_DIRECTIONS, _PICTURE_STEPS = 10, 7
_PAIRS_EACH = 32
"""Held-out pairs of each direction that it is ranked by in the end."""
_FIGURES = ("loss", "label_loss", "shift_loss", "centroid_loss", "accuracy")


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

    def answers(
        self, latents: Tensor, c: Tensor | None, directions: Tensor, epsilons: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, epsilon and features of pairs, float32."""
        space, synthesis = self._frozen
        with torch.no_grad():
            unshifted = synthesis(latents, c)
        shifted = synthesis(latents + space.spread(self.deformator(directions, epsilons)), c)
        fast = self._settings.precision == "bf16"
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=fast):
            logits, epsilon, features = self.reconstructor(unshifted, shifted)
        return logits.float(), epsilon.float(), features.float()

    def forward(
        self, latents: Tensor, c: Tensor | None, directions: Tensor, epsilons: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss, and figures in the order of `_FIGURES`."""
        logits, epsilon, features = self.answers(latents, c, directions, epsilons)
        label_loss = F.cross_entropy(logits, directions)
        shift_loss = (epsilon - epsilons).abs().mean()
        loss = self._settings.label_weight * label_loss + self._settings.shift_weight * shift_loss
        centroid_loss = loss.new_zeros(())
        if self.centroid is not None:
            centroid_loss = self.centroid(features, directions)
            loss = loss + self._centroid_weight * centroid_loss
        accuracy = (logits.argmax(dim=1) == directions).float().mean()
        return loss, torch.stack([loss, label_loss, shift_loss, centroid_loss, accuracy]).detach()


def train(
    space: ShiftSpace,
    deformator: Deformator,
    reconstructor: Reconstructor,
    settings: TrainingSettings,
    *,
    folder: Path | None = None,
    asked: Json | None = None,
    centroid: nn.Module | None = None,
    centroid_weight: float = 0.0,
    per_direction: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Tensor:
    """Train a reconstructor and a deformator in place.

    Args:
        space: The generator and the layers to edit.
        deformator: Directions; may have nothing to train.
        reconstructor: Tells pairs apart.
        settings: Resolved.
        folder: Where checkpoint, log and pictures are kept; a run that lies there is continued.
        asked: What else the weights depend on, to be compared with an earlier run.
        centroid: (features `[batch, width]`, directions `[batch]`) -> loss, added with its weight.
        centroid_weight: Its weight.
        per_direction: Pairs of each direction in a batch, as `draw_pairs` has it.
        progress: Called with steps done and in all.
        report: Called with a line about what is going on.

    Returns:
        Share of held-out pairs of each direction that were recognised. `[num_directions]`, float32.

    Raises:
        TrainingError: The loss is no number any more; the last good checkpoint is kept.
        OutputError: The folder holds something else, or a run with other settings.
        SelectionError: A batch that processes or directions cannot share.

    Source:
        Voynov & Babenko 2020, eq. 2 (cross entropy + 0.25 * mean absolute error of epsilon), two Adam
        optimisers. Differs: the generator is frozen, lowered and in bf16 where that is fast, and the
        unshifted image is made without gradients, which changes no gradient of the directions; losses in
        float32.
    """
    fabric = _fabric(settings)
    if settings.batch % (fabric.world_size * per_direction):
        raise SelectionError(
            f"A batch of {settings.batch} cannot be shared by {fabric.world_size} processes with "
            f"{per_direction} pairs of each direction. Choose a multiple of "
            f"{fabric.world_size * per_direction}."
        )
    synthesis = FrozenGenerator(space.generator, fabric.device, settings.precision)
    step_module = _Step(space, synthesis, deformator, reconstructor, centroid, settings, centroid_weight)
    step_module.to(fabric.device)
    reconstructor.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    judged = [*reconstructor.parameters(), *(centroid.parameters() if centroid else ())]
    optimizers = {"reconstructor": torch.optim.Adam(judged, settings.reconstructor_lr)}
    trained = [parameter for parameter in deformator.parameters() if parameter.requires_grad]
    if trained:
        optimizers["directions"] = torch.optim.Adam(trained, settings.directions_lr)
    kept = folder if fabric.is_global_zero else None
    with run_folder(kept, asked or {}) if kept else nullcontext(), torch.random.fork_rng():
        first = load_state(folder / STATE_FILE, step_module, optimizers) if folder else 0
        if first > settings.steps:
            raise SelectionError(
                f"steps={settings.steps} is below the {first} that {folder} has done. Ask for more."
            )
        fabric.barrier()
        log = TrainingLog(kept, first) if kept else None
        if first:
            report(f"continued after step {first:,}")
        loop = _Loop(fabric, step_module, synthesis, optimizers, settings, per_direction, log, kept, progress)
        try:
            loop.run(first)
            return loop.held_out(max(settings.held_out, _PAIRS_EACH * deformator.num_directions))[1]
        finally:
            if log:
                log.close()


def train_reconstructor(
    generator: Generator,
    bank: DirectionBank,
    *,
    kind: str = "auto",
    steps: int = 2000,
    batch: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Reconstructor, Json]:
    """A reconstructor that learns to tell apart directions that are there already.

    Args:
        generator: The generator of the bank.
        bank: The directions, which stay as they are.
        kind: Registered name of the network; "auto" takes the usual one.
        steps: Training steps.
        batch: Pairs in a step.
        seed: Of weights and pairs.
        progress: Called with steps done and in all.

    Returns:
        The reconstructor, frozen, in evaluation mode, on the CPU; and what `save_reconstructor` records.

    Raises:
        TrainingError: The loss is no number any more.
    """
    settings = replace(
        TrainingSettings().resolved(generator), steps=steps, batch=batch, seed=seed, held_out=0,
        reconstructor=USUAL["reconstructor"] if kind == "auto" else kind,
        reconstructor_lr=USUAL["reconstructor_lr"],
    )  # fmt: skip
    layers = generator.editable
    knots = torch.tensor([-1.0, 0.0, 1.0]) if bank.knots is None else bank.knots
    paths = torch.stack([bank.shifts(index, knots.tolist()) for index in range(len(bank))])[
        :, :, list(layers)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reconstructor = build_reconstructor(
            settings.reconstructor, len(bank), generator.img_channels, settings.resize
        )
    train(
        ShiftSpace(generator, layers, per_layer=True),
        Fixed(paths.flatten(2), knots),
        reconstructor,
        settings,
        progress=progress,
    )
    content = {
        "generator": generator.identity(),
        "shifts": asdict(settings.shifts),
        "lengths": [1.0] * len(bank),
        "training": {"seed": seed, "batch": batch, "steps": steps},
        "bank_sha256": bank.sha256,
    }
    return reconstructor.cpu().eval().requires_grad_(False), content


class _Loop:
    """The steps of one run, on one of its processes."""

    def __init__(
        self, fabric: Fabric, module: _Step, synthesis: FrozenGenerator,
        optimizers: dict[str, torch.optim.Adam], settings: TrainingSettings, per_direction: int,
        log: TrainingLog | None, folder: Path | None, progress: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        self.fabric = fabric
        self.module = module
        self.synthesis = synthesis
        self.optimizers = optimizers
        self.settings = settings
        self.per_direction = per_direction
        self.log = log
        self.folder = folder
        self.progress = progress

    def run(self, first: int) -> None:
        """All steps from `first` on."""
        settings, share = self.settings, self.settings.batch // self.fabric.world_size
        mine = slice(self.fabric.global_rank * share, (self.fabric.global_rank + 1) * share)
        wrapped, *optimizers = self.fabric.setup(self.module, *self.optimizers.values())
        # The first picture of a process may differ in the last bits from all later ones, on some machines.
        self._inputs(self._pairs(first), mine)
        totals, counted, begun = torch.zeros(len(_FIGURES), device=self.fabric.device), 0, time.perf_counter()
        wrapped.train()
        for step in range(first, settings.steps):
            # Only for generators that draw noise of their own.
            torch.manual_seed(settings.seed * 1_000_003 + step)
            loss, figures = wrapped(*self._inputs(self._pairs(step), mine))
            self.fabric.backward(loss)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            totals, counted, done = totals + figures, counted + 1, step + 1
            self.progress(done, settings.steps)
            last = done == settings.steps
            if done % settings.log_every == 0 or last:
                means = self.fabric.all_reduce(totals / counted)
                assert isinstance(means, Tensor)
                self._check(means, done)
                rate, begun = counted / (time.perf_counter() - begun), time.perf_counter()
                totals, counted = torch.zeros_like(totals), 0
                named = dict(zip(_FIGURES, means.tolist(), strict=True))
                if self.module.centroid is None:
                    del named["centroid_loss"]
                self._log(done, named, rate, last)
            if (done % settings.save_every == 0 or last) and self.folder:
                self._save(done)

    def _check(self, means: Tensor, done: int) -> None:
        if torch.isfinite(means).all():
            return
        state = self.folder / STATE_FILE if self.folder else None
        kept = f"The checkpoint before it is kept in {state}. " if state and state.exists() else ""
        raise TrainingError(
            f"The loss is not finite any more at step {done}. {kept}Lower directions_lr "
            f"({self.settings.directions_lr:g}) or reconstructor_lr ({self.settings.reconstructor_lr:g}), or "
            "train with precision=f32."
        )

    def _log(self, done: int, figures: dict[str, float], rate: float, last: bool) -> None:
        if self.log is None:
            return
        settings = self.settings
        if done % settings.save_every == 0 or last:
            figures["held_out_accuracy"] = self.held_out(settings.held_out)[0]
            self.module.train()
        self.log.figures(done, figures, rate)
        if settings.picture_every and (done % settings.picture_every == 0 or last):
            self.log.strips(done, self._picture())

    def _save(self, done: int) -> None:
        assert self.folder is not None
        try:
            save_state(self.folder / STATE_FILE, done, self.module, self.optimizers)
        except TrainingError as error:
            raise TrainingError(
                f"{error} This is step {done}; the checkpoint before it is kept. Lower the learning rates."
            ) from error

    @torch.no_grad()
    def held_out(self, pairs: int) -> tuple[float, Tensor]:
        """Accuracy on seeds that no step uses: over all, and `[num_directions]`."""
        count = self.module.deformator.num_directions
        right, seen = torch.zeros(count), torch.zeros(count)
        self.module.eval()
        for batch in range(-(-pairs // self.settings.batch)):
            drawn = draw_pairs(
                self.synthesis.generator, count, self.settings.shifts, self.settings.batch, batch,
                first_seed=0,
            )  # fmt: skip
            latents, c, directions, epsilons = self._inputs(drawn, slice(None))
            logits = self.module.answers(latents, c, directions, epsilons)[0]
            hits = (logits.argmax(dim=1) == directions).float()
            right.index_add_(0, drawn.directions, hits.cpu())
            seen.index_add_(0, drawn.directions, torch.ones(len(hits)))
        return float(right.sum() / seen.sum()), right / seen.clamp(min=1)

    def _pairs(self, step: int) -> Pairs:
        return draw_pairs(
            self.synthesis.generator, self.module.deformator.num_directions, self.settings.shifts,
            self.settings.batch, step, self.settings.seed, per_direction=self.per_direction,
        )  # fmt: skip

    def _inputs(self, pairs: Pairs, rows: slice) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """What the step takes, for these rows of a batch that every process draws whole."""
        classes = None if pairs.classes is None else pairs.classes[rows]
        latents, c = self.synthesis.latents(pairs.z[rows], classes)
        device = self.fabric.device
        return latents, c, pairs.directions[rows].to(device), pairs.epsilons[rows].to(device)

    @torch.no_grad()
    def _picture(self) -> Pixels:
        """Strips of the first directions, one seed: `[height, width, channels]`, uint8."""
        space, synthesis = self.module._frozen
        reach = self.settings.shift_scale
        knots = torch.linspace(-reach, reach, _PICTURE_STEPS, device=self.fabric.device)
        paths = space.spread(self.module.deformator.paths(knots)[:_PICTURE_DIRECTIONS])
        seeds = [0]
        latents, c = synthesis.latents(space.generator.sample(seeds), space.generator.sample_classes(seeds))
        weights = None if c is None else c.expand(_PICTURE_STEPS, -1)
        return grid([strip(to_uint8(synthesis(latents + path, weights))) for path in paths])


def _fabric(settings: TrainingSettings) -> Fabric:
    """One process, or those that torchrun started."""
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    with _quiet_fabric():
        fabric = Fabric(
            accelerator=settings.device, devices=local, num_nodes=max(1, world // local),
            strategy="ddp" if world > 1 else "auto",
        )  # fmt: skip
        fabric.launch()
    return fabric


@contextmanager
def _quiet_fabric() -> Iterator[None]:
    """Fabric logs what it was told to do."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
