"""Evaluation of a bank: RCA, confusions, DVN and direction scores, on a model or on compiled graphs."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdirs.artifact import Artifact
from fastdirs.backends import Array
from fastdirs.directions import DirectionBank
from fastdirs.errors import (
    BackendError,
    BankError,
    MissingDependencyError,
    SelectionError,
)
from fastdirs.evaluation import direction_scores, dvn
from fastdirs.evaluation.real_pictures import load_real
from fastdirs.evaluation.recognition import Recognition
from fastdirs.evaluation.single_images import Row, SingleImages
from fastdirs.evaluation.strip_figures import StripFigures, cells
from fastdirs.evaluation.taught import taught_lengths, taught_pairs, taught_shifts
from fastdirs.generators import Generator
from fastdirs.images import encode, strip, to_uint8
from fastdirs.manifest import Json, manifest
from fastdirs.pairs import FIRST_TRAINING_SEED, draw_pairs
from fastdirs.reconstructor_runtime import ReconstructorRuntime, open_reconstructor
from fastdirs.reconstructors import save_reconstructor
from fastdirs.registry import install_hint
from fastdirs.runtime import Runtime, open_runtime
from fastdirs.selection import AUTO

KIND = "evaluation"
RECONSTRUCTOR_FILE = "reconstructor.safetensors"
Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""
STEPS = 9
"""Pictures in a strip, the unshifted one in the middle."""
SHOWN_SEEDS = 4
_SHOWN_PIXELS, _SHOWN_FORMAT = 128, "jpg"
_PAIRS = 32
_DIGITS = 6


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is rendered, and with what.

    Attributes:
        seeds: Strips of each direction that scores are taken over, 2 or more: seeds 0, 1, ...
        batches: Batches of 32 pairs that a reconstructor is judged on, with seeds of training and again with
            others.
        steps: Training steps of a reconstructor, if none is given; 0 leaves out what needs one.
        backend: Registered name, or "auto".
        precision: "f32" or "bf16"; None = the fastest that is accepted.

    Raises:
        SelectionError: A number out of range.
    """

    seeds: int = 16
    batches: int = 100
    steps: int = 2000
    backend: str = "auto"
    precision: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("seeds", 2), ("batches", 1), ("steps", 0)):
            value = getattr(self, name)
            if not least <= value <= 1_000_000:
                raise SelectionError(f"{name}={value} is out of range. Expected {least} to 1000000.")


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        content: All figures; None where something was not measured.
        strips: For each direction, the strips of the first seeds as image files.
        image_format: Of the strips.
    """

    content: Json
    strips: list[list[bytes]]
    image_format: str = _SHOWN_FORMAT


def evaluate(
    source: Artifact | Generator,
    bank: DirectionBank,
    folder: Path,
    settings: EvaluationSettings | None = None,
    *,
    reconstructor: str | Path | None = None,
    real: str | Path | None = None,
    progress: Progress = lambda phase, done, total: None,
    opened: Callable[[Runtime], None] = lambda runtime: None,
) -> Evaluation:
    """Measure how good each direction is.

    Args:
        source: A model, or an exported artefact.
        bank: The directions; made for this generator.
        folder: Where a reconstructor that is trained here is kept.
        settings: How much is rendered, and with what.
        reconstructor: One that was trained on this bank: its file, the folder of its run, or an exported
            folder; None trains one, which takes a model.
        real: Pictures of what the generator was trained on, an npz file or a folder; None = DVN is not
            measured.
        progress: Called with (phase, done, total).
        opened: Called with the runtime in effect.

    Raises:
        BankError: A bank of another generator, or a reconstructor of another bank.
        SelectionError: A number out of range, unreadable real pictures, or nothing to tell directions apart.
        ShapeError: Real pictures with other channels.
        CheckpointError: An unreadable reconstructor.
        ArtifactError: A broken exported reconstructor.
        MissingDependencyError: What training needs is not installed; the pip command is named.
        BackendError: The runtime does not run this source, or its images are not finite.
    """
    settings = settings or EvaluationSettings()
    identity = source.identity() if isinstance(source, Generator) else source.generator
    bank.check_generator(identity)
    channels, resolution = int(identity["img_channels"]), int(identity["img_resolution"])
    pictures = None if real is None else load_real(real, dvn.NUM_TRAINING, channels, resolution)
    trained = reconstructor is None and settings.steps > 0
    if trained:
        reconstructor = _train(source, bank, folder, settings.steps, partial(progress, "training"))
    with open_runtime(source, settings.backend, settings.precision, streaming=True) as runtime:
        opened(runtime)
        if reconstructor is None:
            return _Evaluator(runtime, bank, settings, None, False, pictures, progress).run()
        path = Path(reconstructor)
        path = path / RECONSTRUCTOR_FILE if (path / RECONSTRUCTOR_FILE).is_file() else path
        # A graph runs where the generator's does: a choice by measurement might differ from call to call.
        graphs = path.is_dir() and runtime.parity is not None
        with open_reconstructor(path, runtime.backend if graphs else AUTO) as judge:
            _check_reconstructor(judge, bank)
            return _Evaluator(runtime, bank, settings, judge, trained, pictures, progress).run()


def _train(
    source: Artifact | Generator, bank: DirectionBank, folder: Path, steps: int,
    progress: Callable[[int, int], None],
) -> Path:  # fmt: skip
    if not isinstance(source, Generator):
        raise SelectionError(
            "Nothing here tells directions apart, and an artefact cannot train it. Pass --reconstructor with "
            "the file of the run that found the bank, or the model instead of the artefact to train one, or "
            "--steps 0 to leave out what needs one."
        )
    try:
        # Only here: whoever has a reconstructor needs nothing that trains one.
        from fastdirs.training.loop import train_reconstructor
    except ModuleNotFoundError as error:
        missing = error.name or ""
        raise MissingDependencyError(
            f"Training a reconstructor needs {missing}, which is not installed: {install_hint(missing)}"
        ) from error
    network, content = train_reconstructor(source, bank, steps=steps, progress=progress)
    save_reconstructor(network, folder / RECONSTRUCTOR_FILE, content)
    return folder / RECONSTRUCTOR_FILE


def _check_reconstructor(judge: ReconstructorRuntime, bank: DirectionBank) -> None:
    """Raises BankError unless a reconstructor belongs to a bank, as far as its file says."""
    if judge.num_directions != len(bank):
        raise BankError(
            f"The reconstructor tells {judge.num_directions} directions apart, but the bank has {len(bank)}. "
            "Pass the one that was trained on this bank, or none to train one."
        )
    if "generator" in judge.content:
        bank.check_generator(judge.content["generator"])
    if judge.content.get("bank_sha256", bank.sha256) != bank.sha256:
        raise BankError(
            "The reconstructor was trained on other directions than those of the bank. Pass the one that was "
            "trained on this bank, or none to train one."
        )


class _Evaluator:
    """One evaluation: what it renders, and what it makes of it."""

    def __init__(
        self, runtime: Runtime, bank: DirectionBank, settings: EvaluationSettings,
        judge: ReconstructorRuntime | None, trained: bool, real: Tensor | None, progress: Progress,
    ) -> None:  # fmt: skip
        self.images = SingleImages(runtime)
        self.bank = bank
        self.settings = settings
        self.judge = judge
        self.trained = trained
        self.real = None if real is None else dvn.resize(real)
        self.progress = progress
        self.shifts = taught_shifts(judge)
        # The bank fixes signs and lengths; the reconstructor was taught those of its deformator.
        self.lengths = taught_lengths(judge, bank)
        reach = np.linspace(-self.shifts.scale, self.shifts.scale, STEPS)
        self.epsilons = [round(float(epsilon), 9) for epsilon in reach]

    def run(self) -> Evaluation:
        """All phases, in order."""
        held_out = training = None
        if self.judge is not None:
            held_out = self._recognition(
                self.judge, "held-out pairs", 0, _PAIRS, self.settings.batches, seed=0
            )
            taught = taught_pairs(self.judge, self.settings.batches * _PAIRS)
            if taught is not None:
                training = self._recognition(self.judge, "training pairs", FIRST_TRAINING_SEED, *taught)
        overlaps = direction_scores.overlaps(self.bank.chords().numpy())
        rows, strips, centroids = [], [], []
        for index, (figures, shown) in enumerate(self._strips()):
            row = {
                "index": index,
                "label": self.bank.labels[index],
                "tags": list(self.bank.tags[index]),
                **(held_out.of_direction(index) if held_out else UNKNOWN),
                **figures.scores(),
                "overlap": float(overlaps[index].max()),
                "overlap_with": int(overlaps[index].argmax()) if overlaps[index].any() else None,
                "dvn": None if self.real is None else self._dvn(index, self.real),
            }
            rows.append({**row, "score": _score(row)})
            strips.append(shown)
            if self.judge is not None:
                centroids.append(figures.centroids())
        content = {
            "generator": self.images.runtime.generator,
            "bank": {
                "sha256": self.bank.sha256, "method": self.bank.method, "settings": self.bank.settings,
                "layers": list(self.bank.layers), "curved": self.bank.curved,
            },
            "runtime": self.images.runtime.describe(),
            "reconstructor": self._describe_judge(),
            "settings": {
                **asdict(self.settings), "shifts": asdict(self.shifts), "epsilons": self.epsilons,
                "real_pictures": None if self.real is None else len(self.real),
            },
            "rca": None if held_out is None else held_out.overall(),
            "rca_training": None if training is None else training.overall(),
            "dvn": None if self.real is None else float(np.mean([row["dvn"] for row in rows])),
            "likeness": direction_scores.likeness(centroids),
            "confusion": None if held_out is None else held_out.confusion.tolist(),
            "order": sorted(range(len(rows)), key=lambda index: (-rows[index]["score"], index)),
            "directions": rows,
        }  # fmt: skip
        return Evaluation(_rounded(manifest(KIND, content)), strips)

    def _describe_judge(self) -> Json | None:
        if self.judge is None:
            return None
        in_effect = {name: getattr(self.judge, name) for name in ("backend", "precision", "provider")}
        return {**in_effect, "trained_here": self.trained}

    def _recognition(
        self, judge: ReconstructorRuntime, phase: str, first_seed: int, size: int, batches: int, seed: int
    ) -> Recognition:
        """What the reconstructor says of pairs drawn as in training."""
        found = Recognition.of(len(self.bank))
        draw = partial(
            draw_pairs, self.images.sampler, len(self.bank), self.shifts, size, seed=seed,
            first_seed=first_seed,
        )  # fmt: skip

        def rows() -> Iterator[Row]:
            for step in range(batches):
                pairs = draw(step)
                directions, epsilons = pairs.directions.tolist(), pairs.epsilons.tolist()
                for pair, (latents, c) in enumerate(self.images.rows_of_z(pairs.z, pairs.classes)):
                    yield latents, c
                    direction = directions[pair]
                    shift = self.bank.shift(direction, epsilons[pair] * self.lengths[direction])
                    yield latents + shift.numpy(), c

        images = self.images.render(rows())
        for step in range(batches):
            both = np.stack(list(islice(images, 2 * size)))
            logits, predicted, _ = _predict(judge, both[::2], both[1::2])
            pairs = draw(step)
            lengths = np.array(self.lengths, dtype=np.float32)[pairs.directions.numpy()]
            epsilons = pairs.epsilons.numpy() * lengths
            found.add(pairs.directions.numpy(), epsilons, logits, predicted * lengths)
            self.progress(phase, step + 1, batches)
        return found

    def _strips(self) -> Iterator[tuple[StripFigures, list[bytes]]]:
        """Figures of each direction, and the strips to show; unshifted images are made once for all."""
        unshifted = self.images.rows_of_seeds(range(self.settings.seeds))
        origin, count = STEPS // 2, len(self.bank)
        lengths = [epsilon for epsilon in self.epsilons if epsilon != 0]

        def rows() -> Iterator[Row]:
            yield from unshifted
            for direction in range(count):
                shifts = self.bank.shifts(direction, lengths).numpy()
                for latents, c in unshifted:
                    yield from ((latents + shift, c) for shift in shifts)

        images = self.images.render(rows())
        first = list(islice(images, len(unshifted)))
        for direction in range(count):
            figures, shown = StripFigures(self.epsilons), []
            for seed, image in enumerate(first):
                shifted = np.stack(list(islice(images, len(lengths))))
                whole = np.insert(shifted, origin, image, axis=0)
                figures.add(whole)
                if self.judge is not None:
                    same = np.repeat(image[None], len(shifted), axis=0)
                    _, predicted, features = _predict(self.judge, same, shifted)
                    figures.add_answers(predicted * self.lengths[direction], features)
                if seed < SHOWN_SEEDS:
                    shown.append(encode(strip(to_uint8(cells(whole, _SHOWN_PIXELS))), _SHOWN_FORMAT))
                self.progress("strips", direction * len(first) + seed + 1, count * len(first))
            yield figures, shown

    def _dvn(self, direction: int, real: Tensor) -> float:
        """The same seeds for every direction; every other one is shifted the other way."""
        ends = self.bank.shifts(direction, [-self.shifts.scale, self.shifts.scale]).numpy()

        def rows(first: int, count: int) -> Iterator[Row]:
            for seed in range(first, first + count):
                ((latents, c),) = self.images.rows_of_seeds([seed])
                yield latents + ends[seed % 2], c

        def fakes(first: int, count: int) -> tuple[Tensor, Tensor]:
            small = [
                dvn.resize(torch.from_numpy(image[None])) for image in self.images.render(rows(first, count))
            ]
            return torch.cat(small), torch.arange(first, first + count) % 2

        found = dvn.naturalness(fakes, real)
        self.progress("DVN", direction + 1, len(self.bank))
        return found


UNKNOWN: Json = {
    "accuracy": None, "interval": None, "epsilon_error": None, "pairs": 0, "confusions": None,
}  # fmt: skip


def _predict(judge: ReconstructorRuntime, images: Array, shifted: Array) -> tuple[Array, Array, Array]:
    logits, epsilon, features = judge.predict(images, shifted)
    if not (np.isfinite(logits).all() and np.isfinite(epsilon).all() and np.isfinite(features).all()):
        raise BackendError(
            f"The reconstructor's answers on {judge.backend} {judge.precision} are not finite. "
            "Train it again."
        )
    return logits, epsilon, features


def _score(row: Json) -> float:
    """Geometric mean of accuracy, consistency, smoothness and visibility.

    What was not measured is left out; without a reconstructor the consistency of the changes stands in.
    """
    consistency = row["change_consistency"] if row["consistency"] is None else row["consistency"]
    return direction_scores.combined([row["accuracy"], consistency, row["smoothness"], row["visibility"]])


def _rounded(value: Any) -> Any:
    """The same with six significant digits, which is more than any figure here is known to."""
    if isinstance(value, float):
        return value if value == 0 else round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
