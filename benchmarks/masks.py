"""Pairs of image and mask per second against the published loop, with shards, and over 200,000 pairs.

python benchmarks/masks.py [speed|memory|all] [--pairs 200000] [--rounds 9] [--dry-run]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Row, print_rows, race, write_result
from scipy import ndimage

import fastdirs
from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.directions import DirectionBank
from fastdirs.errors import BackendError
from fastdirs.generators import Generator
from fastdirs.images import to_uint8
from fastdirs.mask_filters import Filters, Masks
from fastdirs.mask_pairs import Candidates, PairSource
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks
from fastdirs.recipe import Graph, Recipe, usual_accept
from fastdirs.runtime import open_runtime
from fastdirs.throughput import stream_all

GENERATOR = "celeba-faces-64"
BANK = Path(__file__).parents[1] / "banks" / "celeba-faces-64-k20.safetensors"
# Every filter that was published, with areas that suit faces.
SETTINGS = MaskSettings(
    direction=0, epsilon=4.029,
    filters=Filters(min_area=0.05, max_area=0.75, min_peaks=2, min_component=0.2),
)  # fmt: skip
PUBLISHED_BATCH = 95
PAIRS = 960
BEST = ("openvino_cpu", "bf16")
"""What is run end to end."""


def main() -> None:
    """Run the suites that were asked for, print them and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", nargs="?", choices=["speed", "memory", "all"], default="all")
    parser.add_argument("--pairs", type=int, default=200_000, help="of the memory suite")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dry-run", action="store_true", help="print, but keep nothing")
    arguments = parser.parse_args()
    fastdirs.pull(GENERATOR)
    generator, bank = fastdirs.load_generator(GENERATOR), fastdirs.load_bank(BANK)
    with tempfile.TemporaryDirectory(prefix="fastdirs-masks-") as name:
        precisions = ("f32", "int8")
        recipe = Recipe(
            generator=GENERATOR, graph=Graph(precisions=precisions), accept=usual_accept(precisions)
        )
        artifact = fastdirs.export_generator(generator, Path(name) / "artifact", recipe)
        if arguments.suite in ("speed", "all"):
            settings, rows = speed(generator, artifact, bank, Path(name), arguments.rounds)
            print_rows(rows)
            print(settings)
            if not arguments.dry_run:
                print(f"kept in {write_result('masks-speed', settings, rows)}")
        if arguments.suite in ("memory", "all"):
            settings, figures = memory(artifact, Path(name), arguments.pairs)
            print(settings, *figures, sep="\n")
            if not arguments.dry_run:
                print(f"kept in {write_result('masks-memory', settings, figures)}")


def speed(
    generator: Generator, artifact: Artifact, bank: DirectionBank, folder: Path, rounds: int
) -> tuple[dict[str, object], list[Row]]:
    """The published loop, ours on each backend, and ours with shards on disk."""
    shift = bank.shift(SETTINGS.direction, SETTINGS.epsilon)
    wanted = loop(generator, shift, 1)(range(PUBLISHED_BATCH))
    work: dict[tuple[str, str], Callable[[], object]] = {
        ("published loop, one pair at a time", "f32"): partial(published, generator, shift, 1, PAIRS // 4),
        (f"published loop, batch {PUBLISHED_BATCH}", "f32"): partial(
            published, generator, shift, PUBLISHED_BATCH, PAIRS
        ),
    }
    counts = {("published loop, one pair at a time", "f32"): PAIRS // 4}
    errors: dict[tuple[str, str], dict[str, float]] = {}
    for backend in BACKENDS.names():
        plugin = BACKENDS.load(backend)
        if plugin.runs != "graph":
            continue
        for precision in plugin.precisions():
            title = (f"fastdirs, {backend}", precision)
            try:
                runtime = open_runtime(artifact, backend, precision, streaming=True)
                source = PairSource(runtime, bank, SETTINGS)
            except BackendError as error:
                print(f"{title}: not measured: {error}")
                continue
            work[title] = partial(filtered, source)
            errors[title] = compared(source, wanted)
    speeds = race(work, PAIRS, rounds)
    for title, count in counts.items():
        speeds[title] = tuple(value * count / PAIRS for value in speeds[title])  # type: ignore[assignment]
    rows = [
        Row(
            name=name, precision=precision, images_per_second=median, low=low, high=high,
            error_mean=errors.get((name, precision), {}).get("mean", 0.0),
            error_max=errors.get((name, precision), {}).get("max", 0.0),
            extra={"mask_iou": errors.get((name, precision), {}).get("iou", 1.0)},
        )
        for (name, precision), (median, low, high) in speeds.items()
    ]  # fmt: skip
    acceptance = float(np.mean([not failing for failing in wanted.failing]))
    rows.append(end_to_end(artifact, bank, folder, errors[f"fastdirs, {BEST[0]}", BEST[1]]))
    rate = {(row.name, row.precision): row.images_per_second for row in rows}
    ours = max((r for r in rows if r.name.startswith("fastdirs, ") and r.precision != "int8"),
               key=lambda row: row.images_per_second)  # fmt: skip
    settings: dict[str, object] = {
        "generator": GENERATOR, "rounds": rounds, "pairs": PAIRS, "batch": PUBLISHED_BATCH,
        "best": f"{ours.name}, {ours.precision}",
        "ratios": {
            name: round(ours.images_per_second / rate[name, "f32"], 2)
            for name in ("published loop, one pair at a time", f"published loop, batch {PUBLISHED_BATCH}")
        },
        # Shards hold what was accepted; the other rates count candidates.
        "share_of_raw": round(
            rows[-1].images_per_second / acceptance / rate[f"fastdirs, {BEST[0]}", BEST[1]], 3
        ),
        "acceptance": round(acceptance, 3),
    }  # fmt: skip
    return settings, rows


def end_to_end(
    artifact: Artifact, bank: DirectionBank, folder: Path, errors: dict[str, float], pairs: int = 20_000
) -> Row:
    """Pairs per second while shards are written, of three runs: from the first progress to the last file."""
    rates = []
    for _ in range(3):
        marks: list[tuple[float, int]] = []

        def progress(phase: str, done: int, total: int, marks: list[tuple[float, int]] = marks) -> None:
            marks.append((time.perf_counter(), done))

        make_masks(
            artifact, bank, folder / "end-to-end", SETTINGS, pairs, backend=BEST[0], precision=BEST[1],
            progress=progress, force=True,
        )  # fmt: skip
        begun, first = marks[1]
        rates.append((pairs - first) / (time.perf_counter() - begun))
    low, median, high = sorted(rates)
    return Row(
        name=f"fastdirs, {BEST[0]}, with shards", precision=BEST[1], images_per_second=median, low=low,
        high=high, error_mean=errors["mean"], error_max=errors["max"], extra={"mask_iou": errors["iou"]},
    )  # fmt: skip


def filtered(source: PairSource) -> None:
    """Candidates of `PAIRS` seeds through graph and filters, nothing written."""
    chunks = [list(range(first, first + source.batch_size)) for first in range(0, PAIRS, source.batch_size)]
    for seeds, outputs in zip(chunks, stream_all(source.session, map(source.inputs, chunks)), strict=True):
        source.candidates(seeds, outputs)


def compared(source: PairSource, wanted: Candidates) -> dict[str, float]:
    """Grey levels between our pixels and the published loop's, and IoU of the masks."""
    size, seeds = source.batch_size, list(wanted.seeds)
    found = []
    for first in range(0, len(seeds) - size + 1, size):
        batch = seeds[first : first + size]
        found.append(source.candidates(batch, source.session.run_all(source.inputs(batch))))
    count = len(found) * size
    pixels = np.concatenate([each.pixels for each in found]).astype(np.float64)
    error = np.abs(pixels - wanted.pixels[:count])
    masks = np.concatenate([each.masks for each in found])
    union = (masks | wanted.masks[:count]).sum(axis=(1, 2))
    iou = (masks & wanted.masks[:count]).sum(axis=(1, 2)) / np.maximum(union, 1)
    return {"mean": float(error.mean()), "max": float(error.max()), "iou": float(iou.mean())}


def published(generator: Generator, shift: torch.Tensor, batch: int, pairs: int) -> None:
    """The loop over as many candidates."""
    make = loop(generator, shift, batch)
    for first in range(0, pairs, batch):
        make(range(first, min(first + batch, pairs)))


def loop(generator: Generator, shift: torch.Tensor, batch: int) -> Callable[[Sequence[int]], Candidates]:
    """Two eager forwards of a batch, then each image's filters on the CPU, as in the published training."""

    @torch.no_grad()
    def make(seeds: Sequence[int]) -> Candidates:
        latents = generator.mapping(generator.sample(seeds))
        unshifted = generator.synthesis(latents)
        shifted = generator.synthesis(latents + shift)
        luma = torch.tensor([0.2989, 0.5870, 0.1140])[:, None, None]
        masks: Masks = ((unshifted * luma).sum(1) < (shifted * luma).sum(1)).numpy()
        failing = []
        for row in range(len(masks)):
            masks[row], fails = _filter(masks[row], shifted[row])
            failing.append(fails)
        areas = masks.mean(axis=(1, 2))
        return Candidates(seeds, None, to_uint8(unshifted), masks, areas, failing, SETTINGS)

    return make


def _filter(mask: Masks, image: torch.Tensor) -> tuple[Masks, tuple[str, ...]]:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    if count:
        mask = np.isin(labels, 1 + np.flatnonzero(sizes > 0.2 * sizes.max()))
    area = mask.mean()
    histogram = torch.histc(image, 12, -1, 1).numpy()
    smooth = np.convolve(histogram, np.ones(3) / 3, mode="same")
    padded = np.concatenate([[0], smooth, [0]])
    peaks = ((smooth > padded[:-2]) & (smooth > padded[2:])).sum()
    return mask, () if 0.05 < area < 0.75 and peaks >= 2 else ("rejected",)


_MANY = """
import sys, time
import fastdirs
from fastdirs.machine import resident_mib
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import masks
from fastdirs.masks import make_masks
begun, seen = time.perf_counter(), []
make_masks(sys.argv[1], fastdirs.load_bank(masks.BANK), sys.argv[2], masks.SETTINGS, int(sys.argv[3]),
           backend=masks.BEST[0], precision=masks.BEST[1],
           progress=lambda phase, done, total: seen.append(resident_mib()))
print(max(seen), time.perf_counter() - begun)
"""


def memory(artifact: Artifact, folder: Path, most: int) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Peak memory of processes that make 1,000, 10,000 and all pairs."""
    rows: list[dict[str, object]] = []
    for pairs in (1000, 10_000, most):
        arguments = [artifact.folder, folder / f"many-{pairs}", pairs, Path(__file__).parent]
        command = [sys.executable, "-c", _MANY, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, seconds = map(float, done.stdout.split())
        rows.append({"pairs": pairs, "peak_mib": round(peak), "seconds": round(seconds, 1)})
    growth = rows[-1]["peak_mib"] - rows[0]["peak_mib"]  # type: ignore[operator]
    return {"generator": GENERATOR, "backend": ", ".join(BEST), "batch": 32, "growth_mib": growth}, rows


if __name__ == "__main__":
    main()
