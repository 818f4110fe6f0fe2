"""How close each method comes to the five true directions of the toy: cosines, spread over seeds, seconds.

python benchmarks/toy_directions.py [--method NAME ...] [--seeds 5] [--steps 2000] [--dry-run]
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from harness import write_result
from numpy.typing import NDArray

from fastdirs.directions import DirectionBank
from fastdirs.discovery import METHODS, discover
from fastdirs.generators.toy import ATTRIBUTES, Toy
from fastdirs.loading import load_generator
from fastdirs.manifest import Json

RESOLUTION = 32
COUNTS = (len(ATTRIBUTES), 16)
# Where a method has more than one published form; all others run as they are.
VARIANTS: Mapping[str, Sequence[Mapping[str, str]]] = {
    "sefa": ({"normalize": "rows"}, {"normalize": "none"}),
    "voynov": ({"deformator": "linear"}, {"deformator": "proj"}, {"deformator": "ortho"}),
}
Cosines = NDArray[np.float64]


def main() -> None:
    """Search with every method and seed, print the rows and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", action="append", choices=METHODS.names(), help="these alone; repeatable")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000, help="of methods that train")
    parser.add_argument("--dry-run", action="store_true", help="print, but keep nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    toy = load_generator("toy", options={"resolution": str(RESOLUTION)})
    assert isinstance(toy, Toy)
    rows = []
    # What seeks one thing is not compared with what looks for all.
    general = [name for name in METHODS.names() if not METHODS.load(name).seeks]
    for name, options in variants(arguments.method or general):
        for count in COUNTS:
            rows.append(row(toy, name, options, count, arguments.seeds, arguments.steps))
            print(line(rows[-1]), flush=True)
    settings = {
        "generator": "toy", "img_resolution": RESOLUTION, "attributes": list(ATTRIBUTES),
        "seeds": arguments.seeds, "steps": arguments.steps, "threads": 1,
        "chance": {str(count): round(chance(count), 3) for count in COUNTS},
    }  # fmt: skip
    if not arguments.dry_run:
        print(f"\nkept in {write_result('toy-directions', settings, rows)}")


def variants(methods: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Methods with the options of each of their forms."""
    for name in methods:
        yield from ((name, options) for options in VARIANTS.get(name, ({},)))


def row(toy: Toy, method: str, options: Mapping[str, str], count: int, seeds: int, steps: int) -> Json:
    """One method at one number of directions: a cosine for each seed and attribute, seconds for each seed."""
    known = {option.name for option in fields(METHODS.load(method).settings)}
    cosines, seconds = [], []
    for seed in range(seeds):
        # The toy's edges are too fine for bf16, and there is nothing in it to speed up.
        asked = {"seed": str(seed), "steps": str(steps), "precision": "f32"}
        settings = {**{name: value for name, value in asked.items() if name in known}, **options}
        started = time.perf_counter()
        bank = discover(toy, method, count, settings=settings)
        seconds.append(time.perf_counter() - started)
        cosines.append([round(float(cosine), 4) for cosine in assigned(true_cosines(toy, bank))])
    return {
        "name": ", ".join([method, *(f"{name}={value}" for name, value in options.items())]),
        "directions": count,
        "trains": METHODS.load(method).trains,
        "cosines": cosines,
        "seconds": [round(each, 3) for each in seconds],
    }


def true_cosines(toy: Toy, bank: DirectionBank) -> Cosines:
    """Absolute cosine of each true direction with each found one: `[5, num_directions]`."""
    found = torch.nn.functional.normalize(bank.chords().flatten(1), dim=1)
    cosines: Cosines = (toy.true_directions().flatten(1) @ found.T).abs().double().numpy()
    return cosines


def assigned(cosines: Cosines) -> Cosines:
    """The cosine of each row with a column of its own, so chosen that their sum is largest.

    Args:
        cosines: `[rows, columns]`, no more rows than columns and few of them.

    Returns:
        `[rows]`.
    """
    rows = len(cosines)
    # The best choice for each set of rows that have found a column among those looked at so far.
    best: dict[int, tuple[float, dict[int, float]]] = {0: (0.0, {})}
    for column in cosines.T:
        for taken, (total, chosen) in list(best.items()):
            for index in range(rows):
                wider, value = taken | 1 << index, float(column[index])
                if wider != taken and total + value > best.get(wider, (-1.0, {}))[0]:
                    best[wider] = (total + value, {**chosen, index: value})
    chosen = best[(1 << rows) - 1][1]
    return np.array([chosen[index] for index in range(rows)])


def chance(count: int, draws: int = 500) -> float:
    """The mean cosine that random vectors reach which change the picture, but are no attribute of it.

    They are drawn from the space that the true directions span: a method that finds this space alone does
    as well.
    """
    random, means = np.random.RandomState(0), []
    for _ in range(draws):
        vectors = random.randn(len(ATTRIBUTES), count)
        means.append(assigned(np.abs(vectors / np.linalg.norm(vectors, axis=0))).mean())
    return float(np.mean(means))


def line(row: Json) -> str:
    """A row for the terminal."""
    cosines, seconds = np.array(row["cosines"]), row["seconds"]
    each = " ".join(f"{cosine:.2f}" for cosine in cosines.mean(axis=0))
    mean = f"{cosines.mean():.3f} ± {cosines.mean(axis=1).std():.3f}"
    return f"{row['name']:28} K = {row['directions']:<3} {mean}  ({each})  {np.median(seconds):8.2f} s"


if __name__ == "__main__":
    main()
