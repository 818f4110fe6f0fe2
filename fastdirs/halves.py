"""A synthesis in two halves: what all edits of later layers share, run once for a seed, and the rest."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx

from fastdirs.backends import Array, Kept, Session
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.graph_parts import boundaries, part
from fastdirs.graphs import PartGraph, SynthesisGraph


class Halves:
    """The stages before a cut and those from it on, opened on one backend. A context manager.

    Attributes:
        stage: The first stage of the second half; 0 leaves the first half empty.
        suffix: The second half: what `inputs` gives -> images, or pixels.
    """

    def __init__(self, stage: int, prefix: Session | None, suffix: Session, reads: "Reads") -> None:
        self.stage = stage
        self.suffix = suffix
        self._prefix = prefix
        self._reads = reads

    @classmethod
    def whole(cls, session: Session) -> "Halves":
        """A session that is not cut, and that belongs to another, who closes it."""
        halves = cls(0, None, session, Reads())
        halves.close = lambda: None  # type: ignore[method-assign]
        return halves

    def state(self, inputs: Sequence[Kept]) -> list[Kept]:
        """The state before the cut, left where it was computed.

        Args:
            inputs: Latents `[batch, layers, dim]`, and weights of the classes `[batch, c_dim]` if the
                synthesis reads them, float32.

        Returns:
            Its tensors, `[batch, ...]` each; none where the first half is empty.
        """
        return [] if self._prefix is None else self._prefix.run_kept(self._reads.of_prefix(inputs))

    def inputs(self, inputs: Sequence[Kept], state: Sequence[Kept]) -> list[Kept]:
        """What the second half takes, for the inputs of the whole and the state, row by row."""
        return self._reads.of_suffix(inputs, state)

    def joined(self) -> Session:
        """Both halves as one session, to be compared with the whole."""
        return _Joined(self)

    def close(self) -> None:
        """Free both. May be called twice."""
        for session in (self._prefix, self.suffix):
            if session is not None:
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
    source: Path | Generator, stage: int, open_part: Callable[[Any], Session], pixels: bool = False
) -> Halves:
    """Cut a synthesis and open both halves.

    Args:
        source: ONNX file of the whole synthesis, or a generator.
        stage: Where to cut; 0 keeps it whole.
        open_part: Opens an ONNX file, or a module.
        pixels: A graph ends in uint8 `[batch, height, width, channels]`.

    Raises:
        SelectionError: The synthesis cannot be cut there.
        BackendError: The runtime refuses a half.
    """
    if isinstance(source, Generator):
        if stage not in range(len(source.stages)):
            raise SelectionError(
                f"{source.provenance.name} cannot be cut before stage {stage}. It has {len(source.stages)} "
                "stages."
            )
        prefix = open_part(PartGraph(source, 0, stage)) if stage else None
        return Halves(
            stage, prefix, open_part(PartGraph(source, stage) if stage else SynthesisGraph(source)), Reads()
        )
    model = onnx.load(str(source))
    suffix = part(model, stage, pixels=pixels)
    names = [value.name for value in model.graph.input]
    with tempfile.TemporaryDirectory(prefix="fastdirs-halves-") as folder:

        def opened(half: onnx.ModelProto, name: str) -> Session:
            onnx.save(half, str(Path(folder) / name))
            return open_part(Path(folder) / name)

        if not stage:
            reads = Reads(names, (), (), [value.name for value in suffix.graph.input])
            return Halves(0, None, opened(suffix, "suffix.onnx"), reads)
        before = part(model, 0, stage)
        reads = Reads(
            names,
            boundaries(model)[stage - 1],
            [value.name for value in before.graph.input],
            [value.name for value in suffix.graph.input],
        )
        return Halves(stage, opened(before, "prefix.onnx"), opened(suffix, "suffix.onnx"), reads)
