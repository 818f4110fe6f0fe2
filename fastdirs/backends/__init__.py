"""The backend contract, and one file per runtime."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import BackendError, MissingDependencyError
from fastdirs.registry import Registry

Array = NDArray[np.float32]


class Session(ABC):
    """One opened graph or module. Safe to call from `num_parallel` threads at a time.

    Attributes:
        precision: Arithmetic in effect, read back from the runtime: "f32" or "bf16".
        provider: What executes it, read back from the runtime.
        detail: More that the runtime says, such as how many convolutions run in bf16; may be empty.
        num_parallel: How many concurrent calls pay off.
    """

    precision: str
    provider: str
    detail: str
    num_parallel: int

    @abstractmethod
    def run_all(self, inputs: Sequence[Array]) -> list[Array]:
        """The graph's outputs, in order, for its inputs in order, float32, each `[...]` as the graph says."""

    def run(self, inputs: Sequence[Array]) -> Array:
        """The graph's first output, of most graphs the only one, float32, `[...]` as the graph says."""
        return self.run_all(inputs)[0]

    @abstractmethod
    def close(self) -> None:
        """Free what the session holds. May be called twice."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One runtime.

    Attributes:
        summary: One line for `fastdirs list backends`.
        runs: "graph" for ONNX files, "module" for torch modules.
        precisions: What this machine executes without emulation, "f32" first.
        open: (ONNX file or torch module, precision, streaming) -> Session. `streaming` asks for throughput
            over latency. Raises BackendError if the runtime would fall back to another precision or provider.
    """

    summary: str
    runs: Literal["graph", "module"]
    precisions: Callable[[], tuple[str, ...]]
    open: Callable[[Any, str, bool], Session]


BACKENDS: Registry[Backend] = Registry("fastdirs.backends", "BACKEND", "backend")


def graph_backends(accepted: Collection[str]) -> tuple[list[tuple[str, str]], MissingDependencyError | None]:
    """Backend and precision of every installed runtime for graphs, and what is missing of the others.

    Args:
        accepted: Precisions that may be used.
    """
    pairs: list[tuple[str, str]] = []
    missing = None
    for name in BACKENDS.names():
        try:
            backend = BACKENDS.load(name)
        except MissingDependencyError as error:
            missing = error
            continue
        if backend.runs == "graph":
            pairs += [(name, precision) for precision in backend.precisions() if precision in accepted]
    return pairs, missing


def open_all(pairs: Sequence[tuple[str, str]], path: Path, streaming: bool) -> dict[tuple[str, str], Session]:
    """Open a graph on each backend and precision that runs it.

    Args:
        pairs: Backends and precisions; one that turns out not to run this graph is left out.
        path: The ONNX file.
        streaming: Whether throughput matters more than latency.

    Raises:
        BackendError: None of them runs it.
    """
    sessions, refusal = {}, None
    for name, precision in pairs:
        try:
            sessions[name, precision] = BACKENDS.load(name).open(path, precision, streaming)
        except BackendError as error:
            refusal = error
    if refusal is not None and not sessions:
        raise refusal
    return sessions
