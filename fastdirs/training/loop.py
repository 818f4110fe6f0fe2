"""Training a reconstructor, and the directions with it: one loop for every method that trains."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdirs.deformators import Deformator, Fixed
from fastdirs.directions import DirectionBank
from fastdirs.errors import SelectionError, TrainingError
from fastdirs.generators import Generator
from fastdirs.manifest import Json
from fastdirs.reconstructors import Reconstructor, build_reconstructor
from fastdirs.shift_space import ShiftSpace
from fastdirs.training.log import TrainingLog
from fastdirs.training.settings import USUAL, TrainingSettings
from fastdirs.training.state import STATE_FILE, load_state, run_folder, save_state
from fastdirs.training.trainer import FIGURES, HeldOut, Trainer

_PAIRS_EACH = 32
"""Held-out pairs of each direction that it is ranked by in the end."""


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
) -> HeldOut:
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
        What is recognised of held-out pairs in the end.

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
    trainer = Trainer(space, deformator, reconstructor, settings, centroid, centroid_weight, per_direction)
    kept = folder if trainer.fabric.is_global_zero else None
    asked = {**(asked or {}), "processes": trainer.fabric.world_size}
    with run_folder(kept, asked) if kept else nullcontext(), torch.random.fork_rng():
        # Whether the folder is right is said by the one that holds it; the others read it afterwards.
        trainer.fabric.barrier()
        state = None if folder is None else folder / STATE_FILE
        first = load_state(state, trainer.module, trainer.optimizers) if state else 0
        if first > settings.steps:
            raise SelectionError(
                f"steps={settings.steps} is below the {first} that {folder} has done. Ask for more."
            )
        if first:
            report(f"continued after step {first:,}")
        # Nobody writes before all have read.
        trainer.fabric.barrier()
        log = TrainingLog(kept, first) if kept else None
        try:
            _run(trainer, settings, first, log, state if kept else None, progress)
        finally:
            if log:
                log.close()
        _check_weights(trainer)
        return trainer.held_out(max(settings.held_out, _PAIRS_EACH * deformator.num_directions))


def _run(
    trainer: Trainer, settings: TrainingSettings, first: int, log: TrainingLog | None, state: Path | None,
    progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """All steps from `first` on, with a line, a picture and a checkpoint every so often."""
    fabric, begun = trainer.fabric, time.perf_counter()
    trainer.warm_up()
    totals, counted = torch.zeros(len(FIGURES), device=fabric.device), 0
    for step in range(first, settings.steps):
        totals, counted, done = totals + trainer.step(step), counted + 1, step + 1
        progress(done, settings.steps)

        def due(every: int, done: int = done) -> bool:
            return every > 0 and (done % every == 0 or done == settings.steps)

        if due(settings.log_every):
            means = fabric.all_reduce(totals / counted)
            assert isinstance(means, Tensor)
            _check(means, done, settings, state)
            figures = dict(zip(FIGURES, means.tolist(), strict=True))
            if trainer.module.centroid is None:
                del figures["centroid_loss"]
            rate, begun = counted / (time.perf_counter() - begun), time.perf_counter()
            totals, counted = torch.zeros_like(totals), 0
            if log:
                if due(settings.save_every) and settings.held_out:
                    figures["held_out_accuracy"] = trainer.held_out(settings.held_out).accuracy
                log.figures(done, figures, rate)
        if log and due(settings.picture_every):
            log.strips(done, trainer.picture())
        if state and due(settings.save_every):
            _save(state, done, trainer)


def _check(means: Tensor, done: int, settings: TrainingSettings, state: Path | None) -> None:
    if torch.isfinite(means).all():
        return
    kept = f"The checkpoint before it is kept in {state}. " if state and state.exists() else ""
    raise TrainingError(
        f"The loss is not finite any more at step {done}. {kept}Lower directions_lr "
        f"({settings.directions_lr:g}) or reconstructor_lr ({settings.reconstructor_lr:g}), or train with "
        "precision=f32."
    )


def _check_weights(trainer: Trainer) -> None:
    """The last update may have spoiled what no loss was computed from any more."""
    for name, tensor in trainer.module.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise TrainingError(
                f"{name} has values that are not finite in the end. Lower the learning rates."
            )


def _save(state: Path, done: int, trainer: Trainer) -> None:
    try:
        save_state(state, done, trainer.module, trainer.optimizers)
    except TrainingError as error:
        kept = f"; the checkpoint before it is kept in {state}" if state.exists() else ""
        raise TrainingError(f"{error} This is step {done}{kept}. Lower the learning rates.") from error


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
