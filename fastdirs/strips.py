"""Strips of a traversal: rendered and written for any range of its seeds, by any process."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Iterating
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.generators import Generator
from fastdirs.halves import Halves
from fastdirs.images import to_uint8
from fastdirs.manifest import write_bytes
from fastdirs.runtime import Runtime
from fastdirs.throughput import stream
from fastdirs.traversal import Portion, Strip
from fastdirs.writers import WRITERS, Gallery, StripWriter

_PENDING_STRIPS = 64
_PENDING_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Piece:
    """Some of the strips: those of one portion and a range of seeds.

    Attributes:
        portion: Its number.
        seeds: Places of the seeds in the plan, ascending by 1.
    """

    portion: int
    seeds: range


@dataclass(frozen=True, kw_only=True)
class TraverseJob:
    """Everything that a process needs to write some strips of a traversal.

    Attributes:
        source: An artefact or a generator.
        bank: Its directions.
        gallery: Where the strips belong, and what they are.
        portions: The plan.
        backend: Registered name.
        precision: Arithmetic to compute in.
        usual_batch: What the runtime was opened for.
    """

    source: Artifact | Generator
    bank: DirectionBank
    gallery: Gallery
    portions: tuple[Portion, ...]
    backend: str
    precision: str
    usual_batch: int

    @property
    def writers(self) -> list[StripWriter]:
        """What is written of each strip."""
        plugins = [WRITERS.load(name) for name in self.gallery.content["writers"]]
        return [plugin for plugin in plugins if isinstance(plugin, StripWriter)]

    @property
    def num_images(self) -> int:
        """Images shown in all strips."""
        return sum(portion.plan.num_images for portion in self.portions)

    def images(self, piece: Piece) -> int:
        """Images shown in the strips of a piece."""
        plan = self.portions[piece.portion].plan
        return len(piece.seeds) * len(plan.directions) * len(plan.epsilons)

    def missing(self) -> list[Piece]:
        """From the first seed with a missing file on, for each portion that lacks one."""
        pieces = [
            Piece(number, range(len(portion.plan.seeds))) for number, portion in enumerate(self.portions)
        ]
        return [rest for piece in pieces if (rest := self.rest(piece)).seeds]

    def rest(self, piece: Piece) -> Piece:
        """A piece from its first seed with a missing file on; no seeds if none is missing."""
        plan, writers = self.portions[piece.portion].plan, self.writers
        for place in piece.seeds:
            for direction in plan.directions:
                if not all(path.exists() for _, path in self._paths(plan.seeds[place], direction, writers)):
                    return Piece(piece.portion, range(place, piece.seeds.stop))
        return Piece(piece.portion, range(0))

    def split(self, piece: Piece, batches: int) -> list[Piece]:
        """A piece in parts of about so many batches; the batches where parts meet are rendered for both."""
        plan = self.portions[piece.portion].plan
        step = max(1, batches * plan.batch_size // plan.images_per_seed)
        starts = range(0, len(piece.seeds), step)
        return [Piece(piece.portion, piece.seeds[start : start + step]) for start in starts]

    def write(self, strip: Strip, writers: Sequence[StripWriter]) -> None:
        """Write what is missing of a strip.

        Raises:
            OutputError: A file cannot be written.
        """
        for writer, path in self._paths(strip.seed, strip.direction, writers):
            # Present after a resume: written from the same batch, so the same bytes.
            if not path.exists():
                write_bytes(path, writer.encode(strip.images, self.gallery.image_format))

    def _paths(
        self, seed: int, direction: int, writers: Sequence[StripWriter]
    ) -> Iterator[tuple[StripWriter, Path]]:
        for writer in writers:
            suffix = writer.suffix(self.gallery.image_format)
            yield writer, self.gallery.strip_path(seed, direction, writer.folder, suffix)


class StripSource:
    """A traversal opened on a backend: any piece of it has the same bytes. A context manager.

    Args:
        job: The traversal.
        runtime: The generator; it stays open.
    """

    def __init__(self, job: TraverseJob, runtime: Runtime) -> None:
        self._job, self._runtime = job, runtime
        self._writers = job.writers
        # One cut at a time: each takes the memory of a generator, and pieces come portion by portion.
        self._halves: Halves | None = None

    def write(self, piece: Piece, progress: Callable[[int], None] = lambda images: None) -> None:
        """Write the strips of a piece that are missing; encoding happens in threads beside the runtime.

        Args:
            piece: What to write.
            progress: Called with the images that were added.

        Raises:
            OutputError: A file cannot be written.
            ParityError: The cut synthesis differs from torch's by too much.
        """
        piece = self._job.rest(piece)
        if not piece.seeds:
            return
        pending: deque[Future[None]] = deque()
        steps = len(self._job.portions[piece.portion].plan.epsilons)
        with (
            ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="writer") as pool,
            closing(self._strips(piece)) as strips,
        ):
            try:
                for strip in strips:
                    limit = max(1, min(_PENDING_STRIPS, _PENDING_BYTES // strip.images.nbytes))
                    # Bounded: a slow disk holds the runtime back instead of filling the memory.
                    while len(pending) >= limit or (pending and pending[0].done()):
                        pending.popleft().result()
                        progress(steps)
                    pending.append(pool.submit(self._job.write, strip, self._writers))
                while pending:
                    pending.popleft().result()
                    progress(steps)
            finally:
                for future in pending:
                    future.cancel()

    def close(self) -> None:
        """Free what was opened here. May be called twice."""
        if self._halves is not None:
            self._halves.close()
            self._halves = None

    def __enter__(self) -> "StripSource":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _strips(self, piece: Piece) -> Iterating[Strip]:
        portion, content = self._job.portions[piece.portion], self._job.gallery.content
        plan, runtime, c = portion.plan, self._runtime, content["class"]
        # The same batches as in a run over all seeds, or the last bits could differ.
        first = plan.batch_of_seed(piece.seeds.start)
        count = plan.batch_of_seed_end(piece.seeds[-1]) - first
        latents_of = runtime.latents_of(content["psi"], content["cutoff"], c)
        halves = self._cut(portion)

        def states_of(seeds: Sequence[int]) -> list[Any]:
            return halves.state(runtime.inputs(latents_of(seeds).numpy(), c))

        latents = plan.batches(latents_of, self._job.bank, first, halves.suffix.device)
        states = plan.by_row(states_of, first) if portion.stage else repeat([])
        batches = (
            halves.inputs(runtime.inputs(shifted, c), state)
            for shifted, state in zip(latents, states, strict=False)
        )
        images = (
            batch if batch.dtype == np.uint8 else to_uint8(batch)
            for batch in stream(halves.suffix, islice(batches, count))
        )
        # Its batches may hold seeds that belong to others.
        mine = {plan.seeds[place] for place in piece.seeds}
        return (strip for strip in plan.strips(images, first) if strip.seed in mine)

    def _cut(self, portion: Portion) -> Halves:
        if self._halves is None or self._halves.stage != portion.stage:
            self.close()
            self._halves = self._runtime.halves(portion.stage, portion.plan.batch_size)
        return self._halves
