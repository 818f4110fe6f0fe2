"""The plan of a traversal: which images are rendered, in which batches, and how they become strips."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdirs.directions import DirectionBank
from fastdirs.errors import SelectionError
from fastdirs.images import Pixels

LatentsOf = Callable[[Sequence[int]], Tensor]
"""Seeds -> unshifted latents `[seeds, layers, dim]`, float32: a generator's or an exported mapping."""

Rows = NDArray[Any] | Tensor
"""An array, or a tensor on a GPU, whose first axis is what is spoken of."""

# A graph that is cut elsewhere must be compiled, which is not worth it for fewer batches.
_WORTH_BATCHES = 4


@dataclass(frozen=True)
class Strip:
    """One seed, one direction, epsilon ascending.

    Attributes:
        seed: The seed.
        direction: Index of the direction in the bank.
        images: `[steps, height, width, channels]`, uint8.
    """

    seed: int
    direction: int
    images: Pixels


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Seeds x directions x epsilons, without rendering anything twice within it.

    Images are ordered by seed; a seed's unshifted image comes first, rendered once for all its directions.
    Every batch has the same size: the last one is filled up with copies of its last row.

    Attributes:
        seeds: In the order of the output.
        directions: Indices into the bank.
        epsilons: Ascending.
        batch_size: Rows of every batch.

    Raises:
        SelectionError: No seed, direction or epsilon, or a batch size below 1.
    """

    seeds: tuple[int, ...]
    directions: tuple[int, ...]
    epsilons: tuple[float, ...]
    batch_size: int

    def __post_init__(self) -> None:
        for values, noun in (
            (self.seeds, "seed"),
            (self.directions, "direction"),
            (self.epsilons, "epsilon"),
        ):
            if not values:
                raise SelectionError(f"The plan has no {noun}. Name at least one.")
        if self.batch_size < 1:
            raise SelectionError(f"Batch size {self.batch_size} is out of range. Expected 1 or more.")

    @property
    def shared(self) -> int:
        """1 if epsilon = 0 is asked for, so that each seed has an unshifted image to share; else 0."""
        return int(0.0 in self.epsilons)

    @property
    def images_per_seed(self) -> int:
        """Images rendered for one seed."""
        return self.shared + len(self.directions) * (len(self.epsilons) - self.shared)

    @property
    def num_rendered(self) -> int:
        """Images rendered in all."""
        return len(self.seeds) * self.images_per_seed

    @property
    def num_images(self) -> int:
        """Images shown in all, the unshifted one counted once in every strip."""
        return len(self.seeds) * len(self.directions) * len(self.epsilons)

    @property
    def num_batches(self) -> int:
        """Batches of `batch_size` rows that hold all rendered images."""
        return -(-self.num_rendered // self.batch_size)

    def batch_of_seed(self, position: int) -> int:
        """The batch in which the images of the seed at this position begin."""
        return position * self.images_per_seed // self.batch_size

    def batch_of_seed_end(self, position: int) -> int:
        """The first batch that holds no image of the seeds up to this position."""
        return -(-(position + 1) * self.images_per_seed // self.batch_size)

    def seed_shifts(self, bank: DirectionBank) -> Tensor:
        """What is added to a seed's latents, image by image: `[images_per_seed, layers, dim]`, float32."""
        shifts = [torch.zeros(1, *bank.directions.shape[-2:])] if self.shared else []
        epsilons = [epsilon for epsilon in self.epsilons if epsilon != 0.0]
        shifts += [bank.shifts(direction, epsilons) for direction in self.directions]
        return torch.cat(shifts)

    def batches(
        self, latents_of: LatentsOf, bank: DirectionBank, first: int = 0, device: str = "cpu"
    ) -> Iterator[Rows]:
        """Shifted latents, batch by batch.

        Args:
            latents_of: Where the unshifted latents come from.
            bank: The directions.
            first: Batch to begin with; all batches are the same whatever this is.
            device: Where to add the shifts; on another one than "cpu" the batches are tensors there.

        Yields:
            `[batch_size, layers, dim]`, float32.
        """
        shifts: Any = _placed(self.seed_shifts(bank), device)
        batches = self.by_row(lambda seeds: [_placed(latents_of(seeds), device)], first)
        for batch, (latents,) in enumerate(batches, first):
            yield latents + _taken(shifts, self._rows(batch) % self.images_per_seed)

    def by_row(self, compute: Callable[[Sequence[int]], list[Rows]], first: int = 0) -> Iterator[list[Any]]:
        """What is computed of the seeds, laid out for the images of each batch; each seed is computed once.

        Args:
            compute: `seeds_at_once` seeds -> values whose first axis is the seeds. Each `[seeds, ...]`.
            first: Batch to begin with.

        Yields:
            The values of each image's seed. Each `[batch_size, ...]`.
        """
        known: dict[int, list[Rows]] = {}
        for batch in range(first, self.num_batches):
            positions = self._rows(batch) // self.images_per_seed
            chunks, places = np.divmod(positions, self.seeds_at_once)
            # Positions ascend, and a batch has no more rows than two chunks have seeds.
            known = {
                chunk: known[chunk] if chunk in known else compute(self._chunk(chunk))
                for chunk in dict.fromkeys(chunks.tolist())
            }
            taken = [[_taken(each, places[chunks == chunk]) for each in known[chunk]] for chunk in known]
            yield [_joined(parts) for parts in zip(*taken, strict=True)]

    @property
    def seeds_at_once(self) -> int:
        """How many seeds `by_row` computes together, each time.

        Two at least where batches hold more than one image: runtimes multiply a single row in another order,
        which would change the last bits.
        """
        return min(self.batch_size, max(2, len(self.seeds)))

    def _chunk(self, number: int) -> list[int]:
        """The seeds computed together, filled up with the last one."""
        places = range(number * self.seeds_at_once, (number + 1) * self.seeds_at_once)
        return [self.seeds[min(place, len(self.seeds) - 1)] for place in places]

    def _rows(self, batch: int) -> NDArray[np.int64]:
        """Numbers of the images in a batch, in the order of all: `[batch_size]`, int64."""
        rows = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        kept: NDArray[np.int64] = np.minimum(rows, self.num_rendered - 1)
        return kept

    def strips(self, images: Iterable[Pixels], first: int = 0) -> Iterator[Strip]:
        """Rendered batches put together as strips, each as soon as its last image is there.

        Args:
            images: Batches as `batches` ordered them. Each `[batch_size, height, width, channels]`, uint8.
            first: The batch that `images` begins with; strips of seeds that began before it are left out.

        Yields:
            Strips by seed, then direction. Memory holds one strip and one unshifted image, however long the
            plan.
        """
        done = first * self.batch_size
        position = -(-done // self.images_per_seed)
        skip = position * self.images_per_seed - done
        flat = islice((image for batch in images for image in batch), skip, None)
        steps = len(self.epsilons) - self.shared
        zero = self.epsilons.index(0.0) if self.shared else 0
        for seed in self.seeds[position:]:
            unshifted = list(islice(flat, self.shared))
            for direction in self.directions:
                shifted = list(islice(flat, steps))
                if len(shifted) < steps or len(unshifted) < self.shared:
                    return
                yield Strip(seed, direction, np.stack([*shifted[:zero], *unshifted, *shifted[zero:]]))


@dataclass(frozen=True)
class Portion:
    """The part of a plan whose edits all leave the stages before `stage` alone.

    Attributes:
        stage: First stage that is run for every image; those before it are run once for every seed.
        plan: The directions that this holds for.
    """

    stage: int
    plan: Plan

    def evaluations(self, num_stages: int) -> int:
        """How many times a stage is run, for an image or a seed; seeds that fill up a batch count, too."""
        chunks = -(-len(self.plan.seeds) // self.plan.seeds_at_once)
        return (
            self.plan.num_rendered * (num_stages - self.stage) + chunks * self.plan.seeds_at_once * self.stage
        )


def portions(plan: Plan, stage_of: Callable[[int], int], num_stages: int) -> list[Portion]:
    """A plan sorted by how much of the generator its directions leave alone, least first.

    Each portion needs a graph of its own, and renders the unshifted images anew. So directions join those
    before them where their images fill only a few batches, or nothing would be saved.

    Args:
        plan: The whole plan.
        stage_of: Direction -> first stage that its edits touch.
        num_stages: Stages of the generator.
    """
    found: list[Portion] = []
    for stage, directions in groupby(sorted(plan.directions, key=stage_of), stage_of):
        mine = Portion(stage, replace(plan, directions=tuple(directions)))
        if found:
            last = found[-1]
            joined = Portion(
                last.stage, replace(plan, directions=last.plan.directions + mine.plan.directions)
            )
            apart = last.evaluations(num_stages) + mine.evaluations(num_stages)
            if min(last.plan.num_batches, mine.plan.num_batches) < _WORTH_BATCHES or (
                joined.evaluations(num_stages) <= apart
            ):
                found[-1] = joined
                continue
        found.append(mine)
    whole = Portion(0, plan)
    needed = sum(portion.evaluations(num_stages) for portion in found)
    if plan.num_batches < _WORTH_BATCHES or needed >= whole.evaluations(num_stages):
        return [whole]
    return found


def _placed(values: Tensor, device: str) -> Rows:
    # In numpy on CPUs: torch would split the sum over the cores that the runtime keeps busy.
    return values.numpy() if device == "cpu" else values.to(device)


def _taken(values: Rows, rows: NDArray[np.int64]) -> Rows:
    return values[torch.from_numpy(rows).to(values.device)] if isinstance(values, Tensor) else values[rows]


def _joined(parts: Sequence[Any]) -> Rows:
    if len(parts) == 1:
        return parts[0]  # type: ignore[no-any-return]
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else np.concatenate(parts)
