"""Training steps per second of `discover --method voynov`, and how well directions are told apart after them.

python benchmarks/discover.py [--steps 600] [--rounds 9] [--generator celeba-faces-64] [--dry-run]

Against the straightforward loop: the generator is not frozen, both images are made with gradients, everything
in float32, a loop over the batch for the shifts. Same networks, same pairs, same batch.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from harness import write_result
from torch import Tensor
from torch.nn import functional as F

from fastdirs.deformators import Deformator, build_deformator
from fastdirs.generators import Generator
from fastdirs.loading import load_generator
from fastdirs.machine import bf16_unit
from fastdirs.pairs import draw_pairs
from fastdirs.reconstructors import Reconstructor, build_reconstructor
from fastdirs.shift_space import ShiftSpace
from fastdirs.training.settings import TrainingSettings
from fastdirs.training.trainer import HeldOut, Trainer

DIRECTIONS = 20
_STEPS_A_ROUND = 4
_HELD_OUT = 640
_LOOKS = 6
_PUBLISHED_RATE = 1e-4


class Loop(Protocol):
    """What is raced."""

    def step(self, number: int) -> Tensor:
        """One step; the first figure is the loss."""

    def held_out(self, pairs: int) -> HeldOut:
        """What is recognised of held-out pairs."""


class Straightforward:
    """The loop as one writes it down first."""

    def __init__(self, space: ShiftSpace, deformator: Deformator, reconstructor: Reconstructor,
                 settings: TrainingSettings) -> None:  # fmt: skip
        self.generator = copy.deepcopy(space.generator).requires_grad_(True)
        self.space, self.deformator, self.reconstructor = space, deformator, reconstructor
        self.settings = settings
        self.optimizers = [
            torch.optim.Adam(deformator.parameters(), settings.directions_lr),
            torch.optim.Adam(reconstructor.parameters(), settings.reconstructor_lr),
        ]

    def _answers(self, step: int, first_seed: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        seeds = {} if first_seed is None else {"first_seed": first_seed}
        pairs = draw_pairs(
            self.generator, DIRECTIONS, self.settings.shifts, self.settings.batch, step, **seeds
        )
        basis = torch.zeros(self.settings.batch, DIRECTIONS)
        for row in range(self.settings.batch):
            basis[row, pairs.directions[row]] = pairs.epsilons[row]
        latents = self.generator.mapping(pairs.z)
        shifted = latents + self.space.spread(self.deformator.deform(basis))
        images = self.generator.synthesis(latents)
        logits, epsilon, _ = self.reconstructor(images, self.generator.synthesis(shifted))
        return logits, epsilon, pairs.directions, pairs.epsilons

    def step(self, number: int) -> Tensor:
        """One step; returns the loss, `[1]`."""
        self.reconstructor.train()
        logits, epsilon, directions, epsilons = self._answers(number)
        loss = F.cross_entropy(logits, directions) + 0.25 * (epsilon - epsilons).abs().mean()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()[None]

    @torch.no_grad()
    def held_out(self, pairs: int) -> HeldOut:
        """As `Trainer.held_out`, over all directions only."""
        self.reconstructor.eval()
        right = [
            (logits.argmax(dim=1) == directions).float()
            for logits, _, directions, _ in (self._answers(b, 0) for b in range(pairs // self.settings.batch))
        ]
        return HeldOut(float(torch.cat(right).mean()), torch.empty(0), torch.empty(0))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to train.

    Attributes:
        name: What a user would call it.
        settings: What it trains with.
        loop: What runs it.
    """

    name: str
    settings: TrainingSettings
    loop: Callable[[ShiftSpace, Deformator, Reconstructor, TrainingSettings], Loop] = Trainer

    def build(self, generator: Generator) -> Loop:
        """The loop, at its beginning."""
        torch.manual_seed(0)
        space = ShiftSpace(generator, generator.editable)
        deformator = build_deformator("proj", DIRECTIONS, space.size)
        reconstructor = build_reconstructor(
            self.settings.reconstructor, DIRECTIONS, generator.img_channels, self.settings.resize
        )
        return self.loop(space, deformator, reconstructor, self.settings)


def candidates(generator: Generator) -> list[Candidate]:
    """The straightforward loop, ours, and ours with the networks and rates that were published."""
    f32 = TrainingSettings(precision="f32").resolved(generator)
    fast = replace(f32, precision="bf16") if bf16_unit() else f32
    published = replace(fast, directions_lr=_PUBLISHED_RATE, reconstructor_lr=_PUBLISHED_RATE)
    found = [
        Candidate(name="straightforward loop", settings=f32, loop=Straightforward),
        Candidate(name="fastdirs", settings=f32),
        Candidate(name="fastdirs", settings=fast),
        Candidate(name="published: LeNet, rates 1e-4", settings=replace(published, reconstructor="lenet")),
        Candidate(
            name="published: ResNet-18, rates 1e-4", settings=replace(published, reconstructor="resnet18")
        ),
    ]
    return [c for i, c in enumerate(found) if c not in found[:i]]


def measure(generator: Generator, steps: int, rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rates in turns, then the accuracy along `steps` steps of each.

    Args:
        generator: The generator.
        steps: Steps of each candidate.
        rounds: Timings of each.
    """
    chosen = candidates(generator)
    loops = [candidate.build(generator) for candidate in chosen]
    losses = [float(loop.step(0)[0]) for loop in loops]
    taken: list[list[float]] = [[] for _ in loops]
    for turn in range(rounds):
        for index, loop in enumerate(loops):
            begun = time.perf_counter()
            for step in range(_STEPS_A_ROUND):
                loop.step(1 + turn * _STEPS_A_ROUND + step)
            taken[index].append(_STEPS_A_ROUND / (time.perf_counter() - begun))
        print(f"round {turn + 1} of {rounds}", flush=True)
    rows: list[dict[str, Any]] = []
    for candidate, rates, loss in zip(chosen, taken, losses, strict=True):
        low, rate, high = statistics.quantiles(rates, n=4, method="inclusive")
        row = {
            "name": candidate.name, "precision": candidate.settings.precision,
            "reconstructor": candidate.settings.reconstructor,
            "steps_per_second": rate, "low": low, "high": high,
            "first_loss_error": abs(loss - losses[0]) / losses[0],
            "accuracy": _accuracies(candidate.build(generator), steps),
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    settings = {
        "generator": generator.provenance.name, "batch": chosen[0].settings.batch, "directions": DIRECTIONS,
        "steps": steps, "rounds": rounds, "held_out_pairs": _HELD_OUT,
        "ratio": rows[-3]["steps_per_second"] / rows[0]["steps_per_second"],
    }  # fmt: skip
    return settings, rows


def _accuracies(loop: Loop, steps: int) -> dict[str, float]:
    """Held-out accuracy by steps done."""
    found = {}
    for step in range(steps):
        loop.step(step)
        if (step + 1) % max(1, steps // _LOOKS) == 0:
            found[str(step + 1)] = loop.held_out(_HELD_OUT).accuracy
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--generator", default="celeba-faces-64")
    parser.add_argument("--dry-run", action="store_true", help="print, but keep nothing")
    arguments = parser.parse_args()
    settings, rows = measure(load_generator(arguments.generator), arguments.steps, arguments.rounds)
    print(f"{settings['ratio']:.2f}x the straightforward loop's steps per second")
    if not arguments.dry_run:
        print(f"kept in {write_result('discover', settings, rows)}")


if __name__ == "__main__":
    main()
