"""A synthesis in two halves: what all edits of later layers share, run once for a seed, and the rest."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx

from fastdirs.backends import Array, Kept, Session
from fastdirs.errors import PrecisionError, SelectionError
from fastdirs.generators import Generator
from fastdirs.graph_parts import boundaries, part
from fastdirs.graphs import PartGraph


class Halves:
    """The stages before a cut and those from it on, opened on one backend. A context manager.

    Attributes:
        stage: The first stage of the second half; 0 leaves the first half empty.
        prefix: The first half: inputs of the whole -> the state; None where it is empty.
        suffix: The second half: what `inputs` gives -> images, or pixels.

    Args:
        reads: Which inputs each half takes.
        borrowed: Whether the session belongs to another, who closes it.
    """

    def __init__(
        self, stage: int, prefix: Session | None, suffix: Session, reads: "Reads", borrowed: bool = False
    ) -> None:
        self.stage = stage
        self.prefix = prefix
        self.suffix = suffix
        self._reads = reads
        self._borrowed = borrowed

    def state(self, inputs: Sequence[Kept]) -> list[Kept]:
        """The state before the cut, left where it was computed.

        Args:
            inputs: Latents `[batch, layers, dim]`, and weights of the classes `[batch, c_dim]` if the
                synthesis reads them, float32.

        Returns:
            Its tensors, `[batch, ...]` each; none where the first half is empty.
        """
        return [] if self.prefix is None else self.prefix.run_kept(self._reads.of_prefix(inputs))

    def inputs(self, inputs: Sequence[Kept], state: Sequence[Kept]) -> list[Kept]:
        """What the second half takes, for the inputs of the whole and the state, row by row."""
        return self._reads.of_suffix(inputs, state)

    def joined(self) -> Session:
        """Both halves as one session, to be compared with the whole."""
        return _Joined(self)

    def close(self) -> None:
        """Free both. May be called twice."""
        for session in (self.prefix, self.suffix):
            if session is not None and not self._borrowed:
                session.close()

    def __enter__(self) -> "Halves":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Reads:
    """Which of the named inputs each half takes; modules take all of them, graphs those that they read.

    Args:
        names: Of the inputs of the whole.
        state: Of the state's tensors; None for a module.
        prefix: What the first half reads.
        suffix: What the second half reads.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        state: Sequence[str] | None = None,
        prefix: Sequence[str] = (),
        suffix: Sequence[str] = (),
    ) -> None:
        self._names, self._state, self._prefix, self._suffix = names, state, prefix, suffix

    def of_prefix(self, inputs: Sequence[Kept]) -> list[Kept]:
        """Inputs of the first half."""
        if self._state is None:
            return list(inputs)
        values = dict(zip(self._names, inputs, strict=True))
        return [values[name] for name in self._prefix]

    def of_suffix(self, inputs: Sequence[Kept], state: Sequence[Kept]) -> list[Kept]:
        """Inputs of the second half."""
        if self._state is None:
            return [*inputs, *state]
        values = dict(zip((*self._names, *self._state), (*inputs, *state), strict=True))
        return [values[name] for name in self._suffix]


class _Joined(Session):
    num_parallel = 1

    def __init__(self, halves: Halves) -> None:
        self._halves = halves
        suffix = halves.suffix
        self.precision, self.provider, self.detail = suffix.precision, suffix.provider, suffix.detail
        self.device = suffix.device

    def run_all(self, inputs: Sequence[Kept]) -> list[Array]:
        halves = self._halves
        return halves.suffix.run_all(halves.inputs(inputs, halves.state(inputs)))

    def close(self) -> None:
        self._halves.close()


def open_halves(
    source: Path | Generator,
    stage: int,
    precision: str,
    open_part: Callable[[Any, str], Session],
    pixels: bool = False,
) -> Halves:
    """Cut a synthesis and open both halves.

    A runtime refuses a graph of which it would compute nothing in the precision asked for. Where that is one
    half alone, this half is opened in float32: in the whole graph these layers run so, too.

    Args:
        source: ONNX file of the whole synthesis, or a generator.
        stage: Where to cut; 0 keeps a graph whole.
        precision: Arithmetic to compute in.
        open_part: Opens an ONNX file, or a module, in a precision.
        pixels: A graph ends in uint8 `[batch, height, width, channels]`.

    Raises:
        SelectionError: The synthesis cannot be cut there.
        BackendError: The runtime refuses a half.
    """

    def opened(half: Any) -> Session:
        try:
            return open_part(half, precision)
        except PrecisionError:
            if not stage:
                raise
            return open_part(half, "f32")

    if isinstance(source, Generator):
        if stage not in range(1, len(source.stages)):
            raise SelectionError(
                f"{source.provenance.name} cannot be cut before stage {stage}. It has {len(source.stages)} "
                "stages."
            )
        return _both(
            stage, lambda: opened(PartGraph(source, 0, stage)), lambda: opened(PartGraph(source, stage))
        )
    model = onnx.load(str(source))
    after = part(model, stage, pixels=pixels)
    names = [value.name for value in model.graph.input]
    with tempfile.TemporaryDirectory(prefix="fastdirs-halves-") as folder:

        def written(half: onnx.ModelProto, name: str) -> Path:
            path = Path(folder) / name
            onnx.save(half, str(path))
            return path

        if not stage:
            reads = Reads(names, (), (), [value.name for value in after.graph.input])
            return Halves(0, None, opened(written(after, "suffix.onnx")), reads)
        before = part(model, 0, stage)
        reads = Reads(
            names,
            boundaries(model)[stage - 1],
            [value.name for value in before.graph.input],
            [value.name for value in after.graph.input],
        )
        return _both(
            stage,
            lambda: opened(written(before, "prefix.onnx")),
            lambda: opened(written(after, "suffix.onnx")),
            reads,
        )


def _both(
    stage: int,
    open_prefix: Callable[[], Session],
    open_suffix: Callable[[], Session],
    reads: Reads | None = None,
) -> Halves:
    """Both halves, or neither: what was opened is closed if the other is refused."""
    with ExitStack() as opened:
        prefix = open_prefix()
        opened.callback(prefix.close)
        halves = Halves(stage, prefix, open_suffix(), reads or Reads())
        opened.pop_all()
    return halves
