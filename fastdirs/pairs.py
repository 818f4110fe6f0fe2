"""The image pairs that a reconstructor learns from and is judged on: which seeds, directions and epsilons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastdirs.errors import SelectionError
from fastdirs.latents import MAX_EPSILON, sample_classes, sample_z
from fastdirs.manifest import Json

Change = TypeVar("Change", float, Tensor)
VISIBLE = 8.0
"""Grey levels of mean change at which a direction counts as half visible."""
DISTRIBUTIONS = ("uniform", "normal")
FIRST_TRAINING_SEED = 2**31
"""Seeds of training begin here; those that people look at and that reconstructors are judged on lie below."""
_SEEDS = 2**32


@dataclass(frozen=True)
class ShiftDistribution:
    """How far images are shifted.

    Attributes:
        name: "uniform" from -scale to scale, or "normal" with standard deviation `scale`.
        scale: In latent units.
        minimum: Smallest shift, either way, in latent units: an image that hardly moves teaches nothing.

    Raises:
        SelectionError: An unknown name, or lengths out of range.

    Source:
        Voynov & Babenko 2020, section 3.2: uniform on [-6, 6], values nearer to 0 than 0.5 moved out to it.
    """

    name: str = "uniform"
    scale: float = 6.0
    minimum: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in DISTRIBUTIONS:
            raise SelectionError(f"distribution={self.name!r} is unknown. Expected uniform or normal.")
        if not 0 < self.scale <= MAX_EPSILON:
            raise SelectionError(f"shift_scale={self.scale:g} is out of range. Expected above 0, up to 1000.")
        if not 0 <= self.minimum <= self.scale:
            raise SelectionError(
                f"min_shift={self.minimum:g} is out of range. Expected 0 to shift_scale, {self.scale:g}."
            )

    def draw(self, random: np.random.Generator, count: int) -> Tensor:
        """Epsilons `[count]`, float32."""
        unit = random.uniform(-1, 1, count) if self.name == "uniform" else random.standard_normal(count)
        epsilon = unit * self.scale
        far_enough = np.copysign(np.maximum(np.abs(epsilon), self.minimum), epsilon)
        return torch.from_numpy(far_enough.astype(np.float32))


def visibility(change: Change) -> Change:
    """A change of the picture as a share, so that strong directions do not outweigh good ones: c / (c + 8).

    Args:
        change: Mean absolute change, in grey levels (of 255). `[...]`, float.

    Returns:
        0 = nothing changes, 0.5 at 8 grey levels, near 1 = nearly everything changes. `[...]`, float.
    """
    return change / (change + VISIBLE)


class Sampler(Protocol):
    """Where z and classes of seeds come from: a generator, or the identity of one."""

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """z of seeds: `[batch, z_dim]`, float32."""

    def sample_classes(self, seeds: Sequence[int]) -> Tensor | None:
        """A class for each seed `[batch]`, int64; None if unconditional."""


@dataclass(frozen=True)
class IdentitySampler:
    """Draws as the generator with this identity would: all that an artefact needs to know of it."""

    identity: Json

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """z of seeds: `[batch, z_dim]`, float32."""
        return sample_z(seeds, int(self.identity["z_dim"]), self.identity.get("z_bound"))

    def sample_classes(self, seeds: Sequence[int]) -> Tensor | None:
        """A class for each seed `[batch]`, int64; None if unconditional."""
        c_dim = int(self.identity.get("c_dim", 0))
        return sample_classes(seeds, c_dim) if c_dim else None


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """One batch: seeds, what they are shifted along, and how far.

    Attributes:
        z: `[batch, z_dim]`, float32.
        classes: Class of each pair, the same for both images. `[batch]`, int64; None if unconditional.
        directions: `[batch]`, int64.
        epsilons: Signed lengths in latent units. `[batch]`, float32.
    """

    z: Tensor
    classes: Tensor | None
    directions: Tensor
    epsilons: Tensor


def draw_pairs(
    generator: Sampler,
    num_directions: int,
    shifts: ShiftDistribution,
    batch: int,
    step: int,
    seed: int = 0,
    first_seed: int = FIRST_TRAINING_SEED,
    per_direction: int = 1,
) -> Pairs:
    """The pairs of one step. They depend on the arguments alone, so that a run can be continued at any step.

    Args:
        generator: The generator, or its identity as a sampler.
        num_directions: Directions to choose from.
        shifts: How far.
        batch: Pairs.
        step: From 0; no two steps share a seed of z.
        seed: Chooses directions and epsilons, and moves the seeds of z.
        first_seed: Where the seeds of z begin: those of training by default, 0 for held-out ones.
        per_direction: 1 draws directions independently. M > 1 draws `batch / M` directions, no two alike
            while there are enough, and M pairs of each, all of them in order M times: a centroid needs
            company.

    Raises:
        SelectionError: A batch that is no multiple of `per_direction`.
    """
    if batch % per_direction:
        raise SelectionError(
            f"A batch of {batch} cannot hold {per_direction} pairs of each direction. Choose a multiple."
        )
    random = np.random.Generator(np.random.Philox(key=[seed, step]))
    if per_direction == 1:
        directions = random.integers(num_directions, size=batch)
    else:
        different = batch // per_direction
        rounds = -(-different // num_directions)
        order = np.concatenate([random.permutation(num_directions) for _ in range(rounds)])
        directions = np.tile(order[:different], per_direction)
    epsilons = shifts.draw(random, batch)
    room = _SEEDS - first_seed if first_seed else FIRST_TRAINING_SEED
    begin = step * batch + seed * 1_000_003
    seeds = [first_seed + (begin + row) % room for row in range(batch)]
    return Pairs(
        z=generator.sample(seeds), classes=generator.sample_classes(seeds),
        directions=torch.from_numpy(directions), epsilons=epsilons,
    )  # fmt: skip
