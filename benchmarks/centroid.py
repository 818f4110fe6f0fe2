"""What the centroid loss of `manifolds` changes: recognition, consistency, smoothness, with and without it.

python benchmarks/centroid.py [--steps 1000] [--seeds 3] [--dry-run]

On the toy (32 pixels, K = 5) and on a real generator (celeba-faces-64, K = 10); the same seeds, steps and
batches of N directions x M latents for every weight, so that the loss is the only difference.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from harness import write_result

from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.evaluation import EvaluationSettings, evaluate
from fastdirs.generators import Generator
from fastdirs.loading import load_generator

WEIGHTS = (0.0, 0.1, 1.0)
FIGURES = ("accuracy", "consistency", "change_consistency", "smoothness", "effect")
_REAL, _REAL_DIRECTIONS, _TOY_DIRECTIONS = "celeba-faces-64", 10, 5


def row(generator: Generator, count: int, weight: float, seed: int, steps: int) -> dict[str, Any]:
    """One training and its evaluation, in means over directions."""
    settings = {
        "centroid_weight": str(weight), "seed": str(seed), "steps": str(steps), "held_out": "0",
        "save_every": str(steps), "log_every": str(steps), "picture_every": "0",
        "precision": "f32" if generator.family == "toy" else "auto",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        bank = discover(generator, "manifolds", count, settings=settings, folder=run)
        found = evaluate(
            generator, bank, Path(folder), EvaluationSettings(seeds=16, batches=40), reconstructor=run
        ).content
    figures = {name: mean(each[name] for each in found["directions"]) for name in FIGURES}
    return {
        "generator": generator.provenance.name, "directions": count, "weight": weight, "seed": seed,
        "rca": found["rca"]["accuracy"], "likeness": found["likeness"], "bend": bend(bank), **figures,
    }  # fmt: skip


def bend(bank: DirectionBank) -> float:
    """Mean angle between the first and the last stretch of a path, in degrees."""
    first = (bank.directions[:, 1] - bank.directions[:, 0]).flatten(1)
    last = (bank.directions[:, -1] - bank.directions[:, -2]).flatten(1)
    cosine = (first * last).sum(1) / (first.norm(dim=1) * last.norm(dim=1))
    return float(cosine.clamp(-1, 1).acos().rad2deg().mean())


def main() -> None:
    """Train, evaluate, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true", help="print, but keep nothing")
    arguments = parser.parse_args()
    generators = [
        (load_generator("toy", options={"resolution": "32"}), _TOY_DIRECTIONS),
        (load_generator(_REAL), _REAL_DIRECTIONS),
    ]
    rows = []
    for generator, count in generators:
        for seed in range(arguments.seeds):
            for weight in WEIGHTS:
                rows.append(row(generator, count, weight, seed, arguments.steps))
                print(
                    {name: round(v, 3) if isinstance(v, float) else v for name, v in rows[-1].items()},
                    flush=True,
                )
    settings = {"steps": arguments.steps, "seeds": arguments.seeds, "weights": list(WEIGHTS), "batch": 32}
    if not arguments.dry_run:
        print(f"kept in {write_result('centroid', settings, rows)}")


if __name__ == "__main__":
    main()
