"""Shards are filled from candidates: which seeds are whose, how many at a time, and when to give up."""

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from fastdirs.backends import Array, Kept
from fastdirs.errors import MaskError
from fastdirs.manifest import SCHEMA, Json, sha256_file, write_json
from fastdirs.mask_dataset import SHARD_KIND, SHARDS_FOLDER
from fastdirs.mask_filters import REASONS
from fastdirs.mask_pairs import Candidates, PairSource
from fastdirs.shards import encode_pair, write_shard
from fastdirs.throughput import stream_all

Sample = dict[str, str | bytes]
_Judged = tuple[Sample | None, tuple[str, ...], float]
LOWEST_ACCEPTANCE = 0.01
"""A direction of whose candidates fewer make a pair removes no background."""
# Twice as many as are needed at the lowest acceptance: what is a little above it does not fail by chance.
_CANDIDATES_PER_PAIR = round(2 / LOWEST_ACCEPTANCE)
_ENOUGH_TRIED = 1000
AREA_BINS = 20
_BATCHES_AHEAD = max(8, 2 * (os.cpu_count() or 1))


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Which shards there are, and which seeds each one may look at; any shard can be filled alone.

    Attributes:
        count: Pairs in all.
        per_shard: Pairs of each shard but the last.
        first_seed: Seeds of shard 0 begin here.
        image_format: "jpg", "png" or "webp".
    """

    count: int
    per_shard: int
    first_seed: int
    image_format: str

    @property
    def num_shards(self) -> int:
        """How many shards hold all pairs."""
        return -(-self.count // self.per_shard)

    def size(self, shard: int) -> int:
        """Pairs of a shard."""
        return min(self.per_shard, self.count - shard * self.per_shard)

    def seeds(self, shard: int) -> range:
        """Candidates of a shard, in order: more than the lowest acceptance asks for, and nobody else's."""
        stride = max(self.per_shard * _CANDIDATES_PER_PAIR, 2 * _ENOUGH_TRIED)
        first = self.first_seed + shard * stride
        return range(first, first + stride)


def shard_name(shard: int) -> str:
    """File of a shard, without its suffix."""
    return f"{shard:06d}"


@dataclass
class _Filling:
    """A shard while it is filled; candidates are settled in the order of their seeds."""

    number: int
    size: int
    seeds: range
    asked: int = 0
    tried: int = 0
    samples: list[Sample] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    failing: Counter[str] = field(default_factory=Counter)
    areas: list[int] = field(default_factory=lambda: [0] * AREA_BINS)

    def full(self) -> bool:
        return len(self.samples) == self.size

    def take(self, batch_size: int) -> list[int]:
        """The next candidates; the last batch is filled up with its last one."""
        seeds = self.seeds[self.asked : self.asked + batch_size]
        self.asked += len(seeds)
        return [*seeds, *[seeds[-1]] * (batch_size - len(seeds))]

    def settle(self, judged: Sequence[_Judged]) -> None:
        """Take in candidates that were rendered; what comes after the last pair counts for nothing."""
        for sample, failing, area in judged:
            if self.full() or self.tried == len(self.seeds):
                return
            self.tried += 1
            self.failing.update(failing)
            if sample is None:
                self.rejected[failing[0]] += 1
            else:
                self.samples.append(sample)
                self.areas[min(int(area * AREA_BINS), AREA_BINS - 1)] += 1

    @property
    def hopeless(self) -> bool:
        """Whether too few candidates make a pair, and that is no chance: three standard deviations."""
        found = len(self.samples)
        few = found + 3 * math.sqrt(found + 1) < LOWEST_ACCEPTANCE * self.tried
        return not self.full() and (self.tried == len(self.seeds) or (self.tried >= _ENOUGH_TRIED and few))

    def facts(self) -> Json:
        """What the shard's own JSON says."""
        rejected, failing = (
            {reason: counts[reason] for reason in REASONS if counts[reason]}
            for counts in (self.rejected, self.failing)
        )
        return {
            "count": self.size, "tried": self.tried, "rejected": rejected, "failing": failing,
            "areas": self.areas, "seeds": [self.seeds.start, self.seeds.start + self.tried - 1],
        }  # fmt: skip


def fill_shards(
    source: PairSource,
    plan: ShardPlan,
    shards: Sequence[int],
    folder: Path,
    progress: Callable[[int], None] = lambda pairs: None,
) -> None:
    """Write shards, each with a JSON of its own beside it that says what it holds.

    The next shard is begun while the last candidates of one are rendered, so the generator never waits.

    Args:
        source: Where candidates come from.
        plan: Which seeds are whose.
        shards: Numbers of the shards to write.
        folder: Of the dataset.
        progress: Called with the pairs that were added to a shard.

    Raises:
        MaskError: Fewer than 1 % of the candidates make a pair.
        OutputError: A file cannot be written; the shards before it are whole.
    """
    _Filler(source, plan, folder, progress).run(deque(shards))


class _Filler:
    def __init__(
        self, source: PairSource, plan: ShardPlan, folder: Path, progress: Callable[[int], None]
    ) -> None:
        self._source, self._plan, self._progress = source, plan, progress
        self._folder = folder / SHARDS_FOLDER
        self._open: list[_Filling] = []
        self._asked: deque[tuple[_Filling, list[int]]] = deque()
        self._rendered: deque[tuple[_Filling, Future[list[_Judged]]]] = deque()
        self._writing: deque[Future[None]] = deque()
        self._tried = self._accepted = 1

    def run(self, shards: deque[int]) -> None:
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="masks") as pool:
            try:
                # Asking stops when what is under way should do; where it did not, it is asked for more.
                while shards or self._open:
                    for outputs in stream_all(self._source.session, self._inputs(shards)):
                        filling, seeds = self._asked.popleft()
                        self._rendered.append((filling, pool.submit(self._judge, seeds, outputs)))
                        self._settle(pool, _BATCHES_AHEAD)
                    self._settle(pool, 0)
                while self._writing:
                    self._writing.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _inputs(self, shards: deque[int]) -> Iterator[list[Kept]]:
        """Inputs of the session for the shard that needs candidates most."""
        while (filling := self._needy(shards)) is not None:
            seeds = filling.take(self._source.batch_size)
            self._asked.append((filling, seeds))
            yield self._source.inputs(seeds)

    def _needy(self, shards: deque[int]) -> _Filling | None:
        rate = self._accepted / self._tried
        for filling in self._open:
            expected = len(filling.samples) + rate * (filling.asked - filling.tried)
            if expected < filling.size and filling.asked < len(filling.seeds):
                return filling
        if not shards:
            return None
        number = shards.popleft()
        self._open.append(_Filling(number, self._plan.size(number), self._plan.seeds(number)))
        return self._open[-1]

    def _judge(self, seeds: list[int], outputs: list[Array]) -> list[_Judged]:
        candidates: Candidates = self._source.candidates(seeds, outputs)
        pairs = iter(candidates.pairs())
        return [
            (None if failing else encode_pair(next(pairs), self._plan.image_format), failing, float(area))
            for failing, area in zip(candidates.failing, candidates.areas, strict=True)
        ]

    def _settle(self, pool: ThreadPoolExecutor, most: int) -> None:
        """Take in what was judged, in order, until at most so many batches are under way."""
        while self._rendered and (len(self._rendered) > most or self._rendered[0][1].done()):
            filling, future = self._rendered.popleft()
            if filling.full():
                continue
            before, tried = len(filling.samples), filling.tried
            filling.settle(future.result())
            self._accepted += len(filling.samples) - before
            self._tried += filling.tried - tried
            self._progress(len(filling.samples) - before)
            if filling.hopeless:
                error = MaskError(_too_few(filling))
                error.first_seed = filling.seeds.start
                raise error
            if filling.full():
                self._open.remove(filling)
                self._writing.append(pool.submit(self._write, filling))
        # A slow disk holds the generator back.
        while self._writing and (len(self._writing) > 2 or self._writing[0].done()):
            self._writing.popleft().result()

    def _write(self, filling: _Filling) -> None:
        path = self._folder / f"{shard_name(filling.number)}.tar"
        write_shard(path, filling.samples)
        facts = {"name": path.name, "sha256": sha256_file(path), "bytes": path.stat().st_size}
        content = {"schema": SCHEMA, "kind": SHARD_KIND, **facts, **filling.facts()}
        write_json(path.with_suffix(".json"), content)


def _too_few(filling: _Filling) -> str:
    found = ", ".join(f"{count:,} {reason}" for reason, count in filling.rejected.most_common())
    return (
        f"Of {filling.tried:,} candidates only {len(filling.samples):,} make a pair ({found}). At least "
        f"{LOWEST_ACCEPTANCE:.0%} is expected of a direction that removes the background. Choose another "
        "direction, sign of epsilon or rule (fastdirs masks MODEL BANK --find ranks them), or wider filters."
    )
