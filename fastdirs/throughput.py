"""Batches through a session in order, as many at a time as pay off, and how long they take."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from fastdirs.backends import Array, Kept, Session
from fastdirs.machine import Timing, alternate

_BATCHES_PER_TIMING = 4
_LONG_S = 1.0


def stream(session: Session, batches: Iterable[Sequence[Kept]]) -> Iterator[Array]:
    """The images of batch after batch, rendered while the caller works on earlier ones.

    Args:
        session: An opened synthesis.
        batches: Inputs of the session, batch by batch: latents `[batch, layers, dim]`, and weights of the
            classes `[batch, c_dim]` if it reads them, float32.

    Yields:
        Images, in the order of the batches. `[batch, channels, height, width]`, float32.
    """
    return (outputs[0] for outputs in stream_all(session, batches))


def stream_all(session: Session, batches: Iterable[Sequence[Kept]]) -> Iterator[list[Array]]:
    """Run batch after batch while the caller works on the results.

    At most `num_parallel + 1` batches are in flight, so memory stays flat and a slow caller holds the session
    back.

    Args:
        session: An opened graph or module.
        batches: Its inputs, batch by batch. `[batch, ...]` each.

    Yields:
        Its outputs, in the order of the batches. `[batch, ...]` each.
    """
    pending: deque[Future[list[Array]]] = deque()
    with ThreadPoolExecutor(session.num_parallel, thread_name_prefix="synthesis") as pool:
        for batch in batches:
            pending.append(pool.submit(session.run_all, batch))
            if len(pending) > session.num_parallel:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def time_sessions(
    sessions: Mapping[str, Session],
    inputs: Sequence[Kept],
    rounds: int,
    progress: Callable[[int, int], None] = lambda d, t: None,
) -> dict[str, Timing]:
    """Time a stream of equal batches through each session, in turns.

    Args:
        sessions: Opened syntheses by name.
        inputs: One batch: latents `[batch, layers, dim]`, and weights of the classes `[batch, c_dim]` if they
            are read, float32.
        rounds: Timings of each.
        progress: Called with timings done and timings in all.

    Returns:
        Time for one batch within a stream; images per second are `1000 * batch / median_ms`.
    """
    count = {name: _batches_per_timing(session, inputs) for name, session in sessions.items()}

    def drain(name: str) -> None:
        for _ in stream(sessions[name], [inputs] * count[name]):
            pass

    timings = alternate({name: partial(drain, name) for name in sessions}, rounds, progress)
    return {
        name: Timing(t.median_ms / count[name], t.low_ms / count[name], t.high_ms / count[name], t.repeats)
        for name, t in timings.items()
    }


def _batches_per_timing(session: Session, inputs: Sequence[Kept]) -> int:
    """Several for each thread, so that starting and ending weigh little; where batches are long, one."""
    start = time.perf_counter()
    session.run(inputs)
    long = time.perf_counter() - start > _LONG_S
    return session.num_parallel * (1 if long else _BATCHES_PER_TIMING)
