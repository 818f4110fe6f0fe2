"""The backend contract, and one file per runtime."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray
from torch import Tensor

from fastdirs.errors import BackendError, MissingDependencyError
from fastdirs.manifest import Json
from fastdirs.recipe import Batch, Engine
from fastdirs.registry import Registry

Array = NDArray[Any]
"""What enters and leaves a graph on the host: float32, or uint8 where a graph ends in pixels."""

Kept = Array | Tensor
"""What a session left where it computed it: an array on CPUs, a tensor in the memory of a GPU."""


class Session(ABC):
    """One opened graph or module. Safe to call from `num_parallel` threads at a time.

    Attributes:
        precision: Arithmetic in effect, read back from the runtime: "f32", "f16", "bf16" or "int8".
        provider: What executes it, read back from the runtime.
        detail: More that the runtime says, such as how many convolutions run in bf16; may be empty.
        num_parallel: How many concurrent calls pay off.
        device: Where it computes, as torch names it; on another one than "cpu" inputs may be tensors there.
    """

    precision: str
    provider: str
    detail: str
    num_parallel: int
    device: str = "cpu"

    @abstractmethod
    def run_all(self, inputs: Sequence[Kept]) -> list[Array]:
        """The graph's outputs, in order, for its inputs in order, each `[...]` as the graph says."""

    def run_kept(self, inputs: Sequence[Kept]) -> list[Kept]:
        """`run_all` whose outputs stay where they were computed, to be inputs of a session like this one."""
        return list(self.run_all(inputs))

    def run(self, inputs: Sequence[Kept]) -> Array:
        """The graph's first output, of most graphs the only one, `[...]` as the graph says."""
        return self.run_all(inputs)[0]

    @abstractmethod
    def close(self) -> None:
        """Free what the session holds. May be called twice."""


class Open(Protocol):
    """How a backend opens a graph or a module."""

    def __call__(
        self, source: Any, precision: str, streaming: bool = False, batch: Batch | None = None
    ) -> Session:
        """Open it.

        Args:
            source: ONNX file, or torch module.
            precision: Arithmetic to compute in.
            streaming: Ask for throughput over latency.
            batch: Sizes that will be run, for runtimes that compile for a range of them.

        Raises:
            BackendError: The runtime refuses the graph, or would fall back to another precision or provider.
            MissingDependencyError: A library that it loads is not installed.
        """
        ...


class Build(Protocol):
    """How a backend compiles a graph ahead of time, into a file."""

    def __call__(
        self,
        graph: Path,
        path: Path,
        batch: Batch,
        engine: Engine,
        progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    ) -> Json:
        """Write the engine, and the manifest beside it that says what it fits (`path` + ".json").

        Args:
            graph: ONNX file.
            path: The engine file.
            batch: Batch sizes that it serves.
            engine: What it is built for.
            progress: Called with the phase, steps done and steps in all; what it raises cancels the build.

        Returns:
            The manifest.

        Raises:
            BackendError: The runtime refuses the graph, and names the node and the reason; or the machine
                lacks what building needs.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One runtime.

    Attributes:
        summary: One line for `fastdirs list backends`.
        runs: "graph" for ONNX files, "module" for torch modules.
        precisions: What this machine executes without emulation, "f32" first; none where it cannot run.
        open: Opens a graph or a module.
        graph_of: The precision of the graph that it runs for a precision: the same, or "f32" where the
            runtime lowers the precision of a float32 graph by itself.
        lacks: What this machine lacks to run anything with it, and what to do; "" if nothing.
        build: Compiles a graph ahead of time, maybe for another machine; None if there is nothing to build.
        targets: The GPUs that it would build for; raises what `build` would, where it cannot.
    """

    summary: str
    runs: Literal["graph", "module"]
    precisions: Callable[[], tuple[str, ...]]
    open: Open
    graph_of: Callable[[str], str] = lambda precision: precision
    lacks: Callable[[], str] = lambda: ""
    build: Build | None = None
    targets: Callable[[Engine], list[str]] | None = None


BACKENDS: Registry[Backend] = Registry("fastdirs.backends", "BACKEND", "backend")


def engine_path(graph: Path, library: str) -> Path:
    """Where the engine of a graph lies: `synthesis.f16.onnx` -> `synthesis.f16.tensorrt-rtx.engine`.

    Args:
        graph: ONNX file.
        library: "tensorrt" or "tensorrt-rtx".
    """
    return graph.with_suffix(f".{library}.engine")


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


def open_all(
    pairs: Sequence[tuple[str, str]],
    graphs: Mapping[str, Path],
    streaming: bool,
    batch: Batch | None = None,
) -> dict[tuple[str, str], Session]:
    """Open a graph on each backend and precision that runs it.

    Args:
        pairs: Backends and precisions; one that turns out not to run this graph is left out.
        graphs: ONNX file of each precision that a graph exists in.
        streaming: Whether throughput matters more than latency.
        batch: Sizes that will be run, for runtimes that compile for a range of them.

    Raises:
        BackendError: None of them runs it.
    """
    sessions, refusal = {}, None
    for name, precision in pairs:
        backend = BACKENDS.load(name)
        if backend.graph_of(precision) not in graphs:
            continue
        path = graphs[backend.graph_of(precision)]
        try:
            sessions[name, precision] = backend.open(path, precision, streaming, batch)
        except BackendError as error:
            refusal = error
    if refusal is not None and not sessions:
        raise refusal
    return sessions
