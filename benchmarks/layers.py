"""Edits of some layers: the stages before them run once for a seed, against the same graph run whole.

python benchmarks/layers.py [--network NAME] [--layers 8-13] [--directions 10] [--seeds 2] [--dry-run]
python benchmarks/layers.py --shares [--network NAME]    # how much lies before each stage: the limit of a cut
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families import networks, random_generator
from harness import Row, print_rows, race, write_result
from torch.utils.flop_counter import FlopCounterMode

import fastdirs
from fastdirs.backends import Array
from fastdirs.bank_editing import restrict
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.export import export_generator
from fastdirs.generators import Generator
from fastdirs.graphs import SynthesisGraph
from fastdirs.halves import Halves
from fastdirs.latents import parse_indices
from fastdirs.recipe import Batch, Recipe
from fastdirs.runtime import Runtime
from fastdirs.throughput import stream
from fastdirs.traversal import Plan, portions

_EPSILONS = (-6.0, -4.5, -3.0, -1.5, 0.0, 1.5, 3.0, 4.5, 6.0)


def main() -> None:
    """Measure one network, print the rows and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="StyleGAN2 256")
    parser.add_argument("--layers", default="8-13")
    parser.add_argument("--directions", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny network of the same families, not kept")
    parser.add_argument("--dry-run", action="store_true", help="print, but keep nothing")
    parser.add_argument("--shares", action="store_true", help="print what lies before each stage, and stop")
    arguments = parser.parse_args()
    if arguments.shares:
        for stage, share in enumerate(
            shares_before(random_generator(networks(arguments.quick)[arguments.network]))
        ):
            print(f"before stage {stage}: {share:.1%} of the operations, so at most {1 / (1 - share):.2f}x")
        return
    settings, rows = layers(
        arguments.network, arguments.layers, arguments.directions, arguments.seeds, arguments.rounds,
        arguments.quick,
    )  # fmt: skip
    print_rows(rows)
    for key, value in settings.items():
        print(f"  {key}: {value}")
    if not (arguments.quick or arguments.dry_run):
        print(f"  kept in {write_result('layers', settings, rows)}")


def shares_before(generator: Generator) -> list[float]:
    """The share of one image's operations, as torch counts them, that lies before each stage."""
    latents, *c = SynthesisGraph(generator).example()
    state, counts = c[0] if c else None, [0]
    with torch.inference_mode():
        for stage in generator.stages:
            counter = FlopCounterMode(display=False)
            with counter:
                state = stage(state, latents)
            counts.append(counts[-1] + counter.get_total_flops())
    return [count / counts[-1] for count in counts[:-1]]


def layers(
    name: str, edited: str, directions: int, seeds: int, rounds: int, quick: bool = False
) -> tuple[dict[str, Any], list[Row]]:
    """One traversal without files, on the fastest backend here, with and without a cut."""
    network = networks(tiny=quick)[name]
    generator = random_generator(network)
    bank = restrict(
        discover(generator, "random", num_directions=directions),
        parse_indices(edited, generator.num_layers, "layer"),
        range(directions),
    )
    batch = network.batch
    plan = Plan(
        seeds=tuple(range(seeds)), directions=tuple(range(directions)), epsilons=_EPSILONS, batch_size=batch
    )
    with tempfile.TemporaryDirectory(prefix="fastdirs-layers-") as folder:
        recipe = Recipe(generator=name, batch=Batch(opt=batch, max=max(2, batch)))
        artifact = export_generator(generator, Path(folder) / "artifact", recipe)
        with fastdirs.open_runtime(artifact, batch_size=batch, streaming=True) as runtime:
            (portion,) = portions(
                plan, lambda index: runtime.first_stage(bank.edited_layers(index)), len(runtime.reads)
            )
            with runtime.halves(0, batch) as whole, runtime.halves(portion.stage, batch) as cut:
                work = {
                    "whole graph": partial(_render, runtime, whole, plan, bank),
                    f"cut before stage {portion.stage}": partial(_render, runtime, cut, plan, bank),
                }
                images = {title: make() for title, make in work.items()}
                error = np.abs(np.subtract(*images.values())).max() * 127.5
                speeds = race(work, plan.num_rendered, rounds)
            parity, precision, backend = runtime.parity, runtime.precision, runtime.backend
    assert parity is not None
    rows = [
        Row(
            name=title, precision=precision, images_per_second=median, low=low, high=high,
            error_mean=parity.mean, error_max=parity.max,
        )
        for title, (median, low, high) in speeds.items()
    ]  # fmt: skip
    stages = len(generator.stages)
    settings = {
        "generator": name, "batch": batch, "rounds": rounds, "backend": backend, "edited_layers": edited,
        "seeds": seeds, "directions": directions, "steps": len(_EPSILONS), "rendered": plan.num_rendered,
        "evaluations": [portion.evaluations(stages), plan.num_rendered * stages],
        "difference": float(error), "ratio": round(rows[1].images_per_second / rows[0].images_per_second, 2),
    }  # fmt: skip
    return settings, rows


def _render(runtime: Runtime, halves: Halves, plan: Plan, bank: DirectionBank) -> Array:
    """All images of the plan: `[images, channels, height, width]`, float32."""
    c = 0 if runtime.generator["c_dim"] else None
    latents_of = runtime.latents_of(c=c)

    def states_of(seeds: Sequence[int]) -> list[Any]:
        return halves.state(runtime.inputs(latents_of(seeds).numpy(), c))

    batches = (
        halves.inputs(runtime.inputs(shifted, c), state)
        for shifted, state in zip(plan.batches(latents_of, bank), plan.by_row(states_of), strict=True)
    )
    return np.concatenate(list(stream(halves.suffix, batches)))[: plan.num_rendered]


if __name__ == "__main__":
    main()
