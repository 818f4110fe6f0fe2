"""Image pairs per second of each reconstructor: torch one by one and batched, and exported on each runtime.

python benchmarks/reconstructor.py [--batch 64] [--resolution 64] [--rounds 9] [--dry-run]
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Row, matrix_rates, print_rows, race, write_result
from torch.utils.flop_counter import FlopCounterMode

from fastdirs.backends import BACKENDS, Array, graph_backends
from fastdirs.errors import FastdirsError
from fastdirs.reconstructor_export import export_reconstructor, make_pairs
from fastdirs.reconstructors import RECONSTRUCTORS, Reconstructor, build_reconstructor

DIRECTIONS = 64
Work = Callable[[], Sequence[Array]]


def main() -> None:
    """Measure every reconstructor, print the rows and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dry-run", action="store_true", help="print, but keep nothing")
    arguments = parser.parse_args()
    settings, rows = reconstructors(arguments.batch, arguments.resolution, arguments.rounds)
    if not arguments.dry_run:
        print(f"\nkept in {write_result('reconstructor', settings, rows)}")


def reconstructors(batch: int, resolution: int, rounds: int) -> tuple[dict[str, object], list[Row]]:
    """Measure one network after the other, and print what is found.

    Args:
        batch: Pairs in a batch.
        resolution: Height and width of the images.
        rounds: Timings of each candidate.
    """
    rates = matrix_rates(rounds)
    gflop: dict[str, float] = {}
    rows: list[Row] = []
    for kind in RECONSTRUCTORS.names():
        reconstructor = lived_in(kind, resolution)
        gflop[kind] = _gflop(reconstructor)
        print(f"\n{kind}: {gflop[kind]:.3g} GFLOP per pair", flush=True)
        found = _measure(reconstructor, batch, rounds, gflop[kind] / 1000 / rates["f32"])
        print_rows(found)
        rows += found
    settings: dict[str, object] = {
        "batch": batch, "rounds": rounds, "img_resolution": resolution, "num_directions": DIRECTIONS,
        "gflop_per_pair": gflop, "matrix_tflops": {name: round(rate, 3) for name, rate in rates.items()},
    }  # fmt: skip
    return settings, rows


def lived_in(kind: str, resolution: int) -> Reconstructor:
    """Random weights, the same each time, with the statistics of some pictures; in evaluation mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        reconstructor = build_reconstructor(kind, DIRECTIONS, 3, resolution)
        for _ in range(20):
            reconstructor(*make_pairs(3, resolution, 16))
    return reconstructor.eval().requires_grad_(False)


def _gflop(reconstructor: Reconstructor) -> float:
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        reconstructor(*make_pairs(reconstructor.img_channels, reconstructor.img_resolution, 1))
    return float(f"{counter.get_total_flops() / 1e9:.4g}")


def _measure(reconstructor: Reconstructor, batch: int, rounds: int, share_of_one: float) -> list[Row]:
    """A row for each way to run a network; one pair per second is `share_of_one` of the matrix rate."""
    images, shifted = make_pairs(reconstructor.img_channels, reconstructor.img_resolution, batch)
    inputs = [np.ascontiguousarray(each.numpy()) for each in (images, shifted)]
    eager = BACKENDS.load("eager").open(reconstructor, "f32", False)

    def one_by_one() -> list[Array]:
        answers = [eager.run_all([each[row : row + 1] for each in inputs]) for row in range(batch)]
        return [np.concatenate(each) for each in zip(*answers, strict=True)]

    work: dict[str, Work] = {
        "torch eager, one at a time": one_by_one,
        "torch eager, batched": partial(eager.run_all, inputs),
    }
    failures: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fastdirs-reconstructor-") as name:
        artifact = export_reconstructor(reconstructor, {}, Path(name) / "artifact", max_batch=batch)
        for backend, precision in graph_backends(("f32",))[0]:
            try:
                session = BACKENDS.load(backend).open(artifact.graph_path, precision, False)
            except FastdirsError as error:
                failures.append(
                    Row(name=f"{reconstructor.kind}: {backend}", precision="f32", failure=str(error))
                )
                continue
            work[backend] = partial(session.run_all, inputs)
        wanted = one_by_one()
        errors = {candidate: _errors(run(), wanted) for candidate, run in work.items()}
        speeds = race(work, batch, rounds)
    measured = [
        Row(
            name=f"{reconstructor.kind}: {candidate}", precision="f32", images_per_second=median, low=low,
            high=high, error_mean=errors[candidate][0], error_max=errors[candidate][1],
            matrix_share=median * share_of_one,
        )
        for candidate, (median, low, high) in speeds.items()
    ]  # fmt: skip
    return measured + failures


def _errors(found: Sequence[Array], wanted: Sequence[Array]) -> tuple[float, float]:
    """Mean and largest error of logits and epsilon, each as a share of its largest value in torch."""
    shares = [
        np.abs(mine.astype(np.float64) - theirs).reshape(-1) / np.abs(theirs).max()
        for mine, theirs in zip(found[:2], wanted[:2], strict=True)
    ]
    joined = np.concatenate(shares)
    return float(joined.mean()), float(joined.max())


if __name__ == "__main__":
    main()
