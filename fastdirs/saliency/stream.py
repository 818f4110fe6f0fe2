"""Batches of images and masks, streamed from the shards of a dataset in an order that only a seed decides."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdirs.errors import DatasetError
from fastdirs.images import GREY_LEVELS, Pixels, resize, to_grey
from fastdirs.manifest import sha256_file
from fastdirs.mask_dataset import MaskDataset, Shard
from fastdirs.shards import Pair, read_shard

_BLOCK_BYTES = 2**28
"""Memory of the pixels that are shuffled among each other; as much again is read ahead."""
_BLOCK_SHARDS = 16
_BATCHES_AHEAD = 4
_READERS = 4


@dataclass(frozen=True)
class _Rows:
    """Pixels of pairs: images `[rows, height, width, channels]`, masks `[rows, height, width]`."""

    images: Pixels
    masks: NDArray[np.bool_]


class PairStream:
    """The pairs of a dataset as an endless row of batches, and the last of them, held out.

    The pairs are read in blocks of a few shards. In each epoch shards come in another order, and pairs in
    another order within their block; an epoch ends within a batch, which goes on with the next one. So where
    a batch begins says what is in it, whatever was read before.

    Args:
        dataset: The dataset.
        size: Height and width to resize to, in pixels.
        channels: 1 (grey) or 3 (RGB), to convert to.
        batch: Pairs in a batch.
        seed: Of the order.
        held_out: Pairs at the end of the dataset that no batch holds.

    Raises:
        DatasetError: Nothing is left to train on.
    """

    def __init__(
        self, dataset: MaskDataset, size: int, channels: int, batch: int, seed: int = 0, held_out: int = 0
    ) -> None:
        self._dataset, self._size, self._channels = dataset, size, channels
        self._batch, self._seed = batch, seed
        self.held_out, self.total = held_out, len(dataset) - held_out
        # Each shard, and how many of its pairs are trained on, from its beginning.
        self._shards: list[tuple[Shard, int]] = []
        self._rest: list[tuple[Shard, int]] = []
        begin = 0
        for shard in dataset.shards:
            used = max(0, min(shard.count, self.total - begin))
            begin += shard.count
            if used:
                self._shards.append((shard, used))
            if used < shard.count:
                self._rest.append((shard, used))
        if self.total < 1:
            raise DatasetError(
                f"{dataset.folder} holds {len(dataset)} pairs, so none are left to train on with "
                f"{held_out} held out. Make more of them."
            )
        self._checked: set[str] = set()
        largest = max(count for _, count in self._shards) * size * size * (channels + 1)
        self._block = min(_BLOCK_SHARDS, max(1, _BLOCK_BYTES // largest))
        # A dataset that is one block stays in memory.
        self._kept: dict[str, Future[_Rows]] | None = {} if len(self._shards) <= self._block else None

    def batches(
        self, first: int, end: int, rows: slice = slice(None)
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """The batches of steps `first` to `end`, read ahead in a thread.

        Args:
            first: Number of the first step.
            end: Number after the last one.
            rows: Which rows of each batch to give: several processes take different ones.

        Yields:
            Images `[rows, channels, size, size]`, float32 in [-1, 1], and masks `[rows, size, size]`,
            float32, 0 or 1.

        Raises:
            DatasetError: A shard is missing, changed, or does not hold what the dataset says.
        """
        source = self._batches(first, end, rows)
        with closing(source), ThreadPoolExecutor(1, "fastdirs-batches") as reader:
            ahead = deque(reader.submit(next, source, None) for _ in range(_BATCHES_AHEAD))
            try:
                while (batch := ahead.popleft().result()) is not None:
                    ahead.append(reader.submit(next, source, None))
                    yield batch
            finally:
                for each in ahead:
                    each.cancel()

    def held_out_batches(self, rows: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """The pairs that no step is trained on, in order; the last batch may be smaller.

        Args:
            rows: Which rows of each batch to give.

        Yields:
            As `batches`.

        Raises:
            DatasetError: A shard is missing, changed, or does not hold what the dataset says.
        """
        for shard, used in self._rest:
            pairs = self._read(shard, used, shard.count)
            for start in range(0, len(pairs.masks), self._batch):
                taken = slice(start, start + self._batch)
                yield _tensors(pairs.images[taken][rows], pairs.masks[taken][rows])

    def _batches(self, first: int, end: int, rows: slice) -> Generator[tuple[Tensor, Tensor], None, None]:
        """As `batches`, read when asked for; the block after the one in use is read in threads."""
        wanted = end - first
        parts: list[_Rows] = []
        with closing(self._loaded(first * self._batch)) as blocks:
            while wanted > 0:
                block, order = next(blocks)
                while wanted and len(order):
                    missing = self._batch - sum(len(part.masks) for part in parts)
                    taken, order = order[:missing], order[missing:]
                    parts.append(_Rows(block.images[taken], block.masks[taken]))
                    if len(taken) == missing:
                        whole, parts, wanted = _joined(parts), [], wanted - 1
                        yield _tensors(whole.images[rows], whole.masks[rows])

    def _loaded(self, position: int) -> Generator[tuple[_Rows, NDArray[np.int64]], None, None]:
        """Blocks from a position on, each with the order of what is left of it."""
        with (
            closing(self._blocks(position)) as plan,
            ThreadPoolExecutor(_READERS, "fastdirs-shards") as readers,
        ):
            shards, order = next(plan)
            reading = self._begin(shards, readers)
            try:
                while True:
                    shards, following = next(plan)
                    current, reading = reading, self._begin(shards, readers)
                    yield _joined([each.result() for each in current]), order
                    order = following
            finally:
                for each in reading:
                    each.cancel()

    def _begin(self, shards: list[tuple[Shard, int]], readers: ThreadPoolExecutor) -> list[Future[_Rows]]:
        """Begin to read the first so many pairs of each shard, unless they are kept."""
        if self._kept is None:
            return [readers.submit(self._read, shard, 0, count) for shard, count in shards]
        for shard, count in shards:
            if shard.name not in self._kept or self._kept[shard.name].cancelled():
                self._kept[shard.name] = readers.submit(self._read, shard, 0, count)
        return [self._kept[shard.name] for shard, _ in shards]

    def _blocks(
        self, position: int
    ) -> Generator[tuple[list[tuple[Shard, int]], NDArray[np.int64]], None, None]:
        """The shards of each block from a position on, and the order of the pairs that are left of it."""
        epoch, skipped = divmod(position, self.total)
        while True:
            random = np.random.RandomState([self._seed, epoch])
            order = random.permutation(len(self._shards))
            for first in range(0, len(order), self._block):
                shards = [self._shards[index] for index in order[first : first + self._block]]
                pairs = random.permutation(sum(count for _, count in shards))
                left, skipped = pairs[skipped:], max(0, skipped - len(pairs))
                if len(left):
                    yield shards, left
            epoch += 1

    def _read(self, shard: Shard, first: int, end: int) -> _Rows:
        """The pairs of a shard from `first` to before `end`."""
        path = self._dataset.path(shard)
        self._check(shard, path)
        pairs = [self._fitted(pair) for pair in islice(read_shard(path), first, end)]
        if len(pairs) < end - first:
            raise DatasetError(
                f"{path} holds {first + len(pairs)} pairs, not the {shard.count} that the dataset counts. "
                f"Find every file that changed with: fastdirs dataset check {self._dataset.folder}"
            )
        return _Rows(np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs]))

    def _check(self, shard: Shard, path: Path) -> None:
        """Compare a shard with its hash, before it is read for the first time."""
        if shard.name in self._checked:
            return
        try:
            found = sha256_file(path)
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror}. Make the dataset again.") from error
        if found != shard.sha256:
            raise DatasetError(
                f"{path} changed since it was written. "
                f"Find every file that changed with: fastdirs dataset check {self._dataset.folder}"
            )
        self._checked.add(shard.name)

    def _fitted(self, pair: Pair) -> tuple[Pixels, NDArray[np.bool_]]:
        """A pair in the wanted size and channels."""
        image, mask = pair.image, pair.mask
        if image.shape[:2] != mask.shape:
            raise DatasetError(
                f"{self._dataset.folder} pairs an image of {image.shape[0]} x {image.shape[1]} pixels with a "
                f"mask of {mask.shape[0]} x {mask.shape[1]} (seed {pair.seed}). Make the dataset again."
            )
        side = self._size
        image = resize(image, side, side)
        if mask.shape != (side, side):
            # What covers at least half of a pixel.
            mask = resize(mask.astype(np.float32), side, side) >= 0.5
        if image.shape[2] == 3 and self._channels == 1:
            image = np.rint(to_grey(image)).astype(np.uint8)
        return np.broadcast_to(image[..., : self._channels], (side, side, self._channels)), mask


def _joined(parts: list[_Rows]) -> _Rows:
    if len(parts) == 1:
        return parts[0]
    return _Rows(np.concatenate([p.images for p in parts]), np.concatenate([p.masks for p in parts]))


def _tensors(images: Pixels, masks: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Images `[rows, channels, size, size]` in [-1, 1] and masks `[rows, size, size]`, float32."""
    values = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
    return values / GREY_LEVELS - 1, torch.from_numpy(np.ascontiguousarray(masks)).float()
