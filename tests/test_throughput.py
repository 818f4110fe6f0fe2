import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Array, Session
from fastdirs.throughput import stream, time_sessions


class _Echo(Session):
    """Returns its input, later for even numbers than for odd ones, and fails at one number."""

    precision, provider, detail = "f32", "echo", ""

    def __init__(self, num_parallel: int, fails_at: float | None = None, pause_s: float = 0.002) -> None:
        self.num_parallel = num_parallel
        self.fails_at = fails_at
        self.pause_s = pause_s

    def run_all(self, inputs: Sequence[Array]) -> list[Array]:
        number = float(inputs[0][0, 0, 0])
        if number == self.fails_at:
            raise RuntimeError(f"no picture {number:.0f}")
        time.sleep(self.pause_s if number % 2 == 0 else 0.0)
        return [inputs[0]]

    def close(self) -> None:
        pass


def _numbered(count: int, pulled: list[int]) -> Iterator[list[Array]]:
    for number in range(count):
        pulled.append(number)
        yield [np.full((1, 1, 1), number, dtype=np.float32)]


def _synthesis_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("synthesis")]


@pytest.mark.parametrize("num_parallel", [1, 2, 4])
def test_keeps_the_order_and_bounds_what_is_in_flight(num_parallel: int) -> None:
    pulled: list[int] = []
    in_flight = []
    found = []
    for images in stream(_Echo(num_parallel), _numbered(40, pulled)):
        in_flight.append(len(pulled) - len(found))
        found.append(int(images[0, 0, 0]))
    assert found == list(range(40))
    # At least as many as pay off, so that no thread waits; at most one more, so that memory stays flat.
    assert max(in_flight) == num_parallel + 1


def test_fewer_batches_than_threads() -> None:
    assert len(list(stream(_Echo(4), _numbered(2, [])))) == 2
    assert list(stream(_Echo(4), [])) == []


def test_an_error_in_the_session_reaches_the_caller_and_ends_the_pool() -> None:
    pulled: list[int] = []
    images = stream(_Echo(2, fails_at=5), _numbered(1000, pulled))
    assert [int(next(images)[0, 0, 0]) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="no picture 5"):
        next(images)
    assert len(pulled) < 10
    assert _synthesis_threads() == []


def test_an_error_in_the_batches_reaches_the_caller_and_ends_the_pool() -> None:
    def failing() -> Iterator[list[Array]]:
        yield from _numbered(3, [])
        raise ValueError("no more latents")

    with pytest.raises(ValueError, match="no more latents"):
        list(stream(_Echo(2), failing()))
    assert _synthesis_threads() == []


def test_a_caller_who_stops_ends_the_pool() -> None:
    pulled: list[int] = []
    images = stream(_Echo(2), _numbered(1000, pulled))
    next(images)
    assert _synthesis_threads()
    images.close()
    assert _synthesis_threads() == []
    assert len(pulled) == 3


def test_times_one_batch_of_each_session(toy_artifact: Artifact) -> None:
    opened = BACKENDS.load("ort").open(toy_artifact.synthesis_path, "f32", True)
    latents = toy_artifact.reference().latents[:2]
    slow = _Echo(1, pause_s=0.02)
    seen: list[tuple[int, int]] = []
    timings = time_sessions(
        {"ort": opened, "echo": slow},
        [latents * 0],
        rounds=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    opened.close()
    assert list(timings) == ["ort", "echo"]
    assert seen == [(count, 6) for count in range(1, 7)]
    # Each call sleeps 20 ms, whatever number of batches a timing holds.
    assert 20.0 <= timings["echo"].median_ms < 60.0
    assert timings["ort"].median_ms > 0.0
    assert timings["echo"].repeats == 3


class _Slow(Session):
    """Takes more than a second for its first batch."""

    precision, provider, detail, num_parallel = "f32", "slow", "", 2

    def __init__(self) -> None:
        self.calls = 0

    def run_all(self, inputs: Sequence[Array]) -> list[Array]:
        self.calls += 1
        time.sleep(1.1 if self.calls == 1 else 0.0)
        return [inputs[0]]

    def close(self) -> None:
        pass


def test_long_batches_are_timed_once_for_each_thread() -> None:
    session = _Slow()
    time_sessions({"slow": session}, [np.zeros((1, 1, 1), dtype=np.float32)], rounds=2)
    # One to see how long it takes; then a warm-up and two rounds of a batch for each of the two threads.
    assert session.calls == 1 + 3 * 2


def test_all_inputs_of_a_batch_reach_the_session() -> None:
    class Sum(_Slow):
        def run_all(self, inputs: Sequence[Array]) -> list[Array]:
            return [inputs[0] + inputs[1]]

    batches = [[np.full((1,), a, np.float32), np.full((1,), 10 * a, np.float32)] for a in range(5)]
    assert [float(images[0]) for images in stream(Sum(), batches)] == [0, 11, 22, 33, 44]
