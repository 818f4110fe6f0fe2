"""The plan of a traversal: which images are rendered, in which batches, and how they become strips."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdirs.directions import DirectionBank
from fastdirs.errors import SelectionError
from fastdirs.images import Pixels

LatentsOf = Callable[[Sequence[int]], Tensor]
"""Seeds -> unshifted latents `[seeds, layers, dim]`, float32: a generator's or an exported mapping."""


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
    """Seeds x directions x epsilons, without rendering anything twice.

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

    def seed_shifts(self, bank: DirectionBank) -> Tensor:
        """What is added to a seed's latents, image by image: `[images_per_seed, layers, dim]`, float32."""
        shifts = [torch.zeros(1, *bank.directions.shape[-2:])] if self.shared else []
        epsilons = [epsilon for epsilon in self.epsilons if epsilon != 0.0]
        shifts += [bank.shifts(direction, epsilons) for direction in self.directions]
        return torch.cat(shifts)

    def batches(
        self, latents_of: LatentsOf, bank: DirectionBank, first: int = 0
    ) -> Iterator[NDArray[np.float32]]:
        """Shifted latents, batch by batch.

        Args:
            latents_of: Where the unshifted latents come from.
            bank: The directions.
            first: Batch to begin with; all batches are the same whatever this is.

        Yields:
            `[batch_size, layers, dim]`, float32.
        """
        shifts = self.seed_shifts(bank).numpy()
        size = self.images_per_seed
        for batch in range(first, self.num_batches):
            rows = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
            rows = np.minimum(rows, self.num_rendered - 1)
            needed, row_of = np.unique(rows // size, return_inverse=True)
            latents = latents_of([self.seeds[position] for position in needed]).numpy()
            yield latents[row_of] + shifts[rows % size]

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
