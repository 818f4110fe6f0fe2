"""An opened saliency model: pictures of any size in, saliency of the same size out."""

import copy
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fastdirs.artifact import MANIFEST
from fastdirs.backends import BACKENDS, Array, Session, graph_backends, open_all
from fastdirs.errors import BackendError, ParityError, SelectionError, check_shape
from fastdirs.images import Pixels
from fastdirs.manifest import Json
from fastdirs.recipe import usual_batch
from fastdirs.saliency.export import (
    GRAPH,
    SaliencyGraph,
    SegmenterArtifact,
    open_segmenter_artifact,
    recorded_of,
    segmenter_settings,
)
from fastdirs.saliency.fitting import fit, unfit
from fastdirs.saliency.parity import SaliencyParity, measure_saliency
from fastdirs.segmenters import Segmenter, load_segmenter
from fastdirs.selection import check_precision, check_runs
from fastdirs.throughput import stream, time_sessions

AUTO = "auto"
_ROUNDS = 3
# Larger ones gain nothing in torch on CPUs, and what a segmenter computes on the way takes memory.
_LARGEST_IN_TORCH = 16


class SaliencyRuntime:
    """A segmenter on a backend.

    Attributes:
        segmenter: What it is: name, kind, img_channels, img_resolution, width,
            weights_sha256.
        content: What was recorded of its training; empty if nothing was.
        backend: Registered name of the backend.
        precision: Arithmetic in effect, read back from the runtime.
        provider: What executes it, read back from the runtime.
        detail: More that the runtime says.
        reason: Why this backend.
        parity: Difference from torch fp32 that was measured on opening; None if torch runs it.
        batch_size: Pictures that are run at a time.
    """

    def __init__(
        self, session: Session, *, segmenter: Json, content: Json, backend: str, reason: str,
        batch_size: int, parity: SaliencyParity | None = None,
    ) -> None:  # fmt: skip
        self.segmenter = segmenter
        self.content = content
        self.backend = backend
        self.precision = session.precision
        self.provider = session.provider
        self.detail = session.detail
        self.reason = reason
        self.parity = parity
        self.batch_size = batch_size
        self._session: Session | None = session

    @property
    def img_channels(self) -> int:
        """Channels of the pictures that the network reads, 1 or 3."""
        return int(self.segmenter["img_channels"])

    @property
    def img_resolution(self) -> int:
        """Height and width of the square that the network reads, in pixels."""
        return int(self.segmenter["img_resolution"])

    def saliency(self, images: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        """Saliency of pictures of any sizes.

        Args:
            images: `[height, width, channels]` each, uint8, 1 or 3 channels; grey ones also
                `[height, width]`.

        Returns:
            `[height, width]` each, float32 in 0..1.

        Raises:
            ShapeError: A picture with other axes or channels.
            SelectionError: A picture that is not uint8, or has no pixels.
            BackendError: The runtime was closed.
        """
        size = min(self.batch_size, max(len(images), 1))
        starts = range(0, len(images), size)
        batches = (np.stack([self.fit(each) for each in images[start : start + size]]) for start in starts)
        squares = itertools.chain.from_iterable(self.stream(batches, size))
        return [unfit(each, *image.shape[:2]) for each, image in zip(squares, images, strict=True)]

    def fit(self, image: Pixels) -> NDArray[np.float32]:
        """A picture as `stream` takes it; see `fitting.fit`. Safe to call from several threads.

        Args:
            image: `[height, width, channels]`, uint8.

        Returns:
            `[img_channels, img_resolution, img_resolution]`, float32 in [-1, 1].
        """
        return fit(image, self.img_channels, self.img_resolution)

    def stream(self, batches: Iterable[Array], size: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Saliency of batch after batch, in order, while the caller works on earlier ones.

        Args:
            batches: What `fit` gave, `[batch, img_channels, img_resolution, img_resolution]` each, at most
                `size` pictures.
            size: The batch that is run; smaller ones are filled up to it. None takes `batch_size`.

        Yields:
            `[batch, img_resolution, img_resolution]`, float32 in 0..1.

        Raises:
            ShapeError: Pictures of another shape.
            SelectionError: An empty batch, or one larger than `size`.
            BackendError: The runtime was closed.
        """
        if self._session is None:
            raise BackendError("This saliency model was closed. Open it again with open_saliency.")
        size = size or self.batch_size
        counts: deque[int] = deque()

        def filled() -> Iterator[list[Array]]:
            for batch in batches:
                side = self.img_resolution
                axes = "batch channels height width"
                check_shape(batch, axes, "batch", channels=self.img_channels, height=side, width=side)
                if not 1 <= len(batch) <= size:
                    raise SelectionError(f"A batch of {len(batch)} pictures. Expected 1 to {size}.")
                counts.append(len(batch))
                # One shape for all: some runtimes prepare themselves anew for each.
                yield [np.ascontiguousarray(batch[np.minimum(np.arange(size), len(batch) - 1)], np.float32)]

        for saliency in stream(self._session, filled()):
            # Sums that are rounded in bf16 may lie a little outside.
            yield np.clip(saliency[: counts.popleft()], 0, 1, dtype=np.float32)

    def describe(self) -> Json:
        """What is in effect, for manifests."""
        return {"backend": self.backend, "precision": self.precision, "provider": self.provider}

    def close(self) -> None:
        """Free the runtime. May be called twice."""
        if self._session is not None:
            self._session.close()
        self._session = None

    def __enter__(self) -> "SaliencyRuntime":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_saliency(
    source: Segmenter | SegmenterArtifact | str | Path,
    backend: str = AUTO,
    precision: str | None = None,
    batch_size: int | None = None,
    streaming: bool = True,
) -> SaliencyRuntime:
    """Open a segmenter in torch, or an exported one on a backend.

    Args:
        source: A segmenter; a file of its weights; or an exported folder.
        backend: Registered name, or "auto": torch for weights, and of an exported folder the fastest of the
            installed runtimes whose error is accepted, by a short measurement.
        precision: "f32" or "bf16"; None takes f32 for weights, and leaves it to the measurement for an
            exported folder.
        batch_size: Pictures to run at a time; None takes the usual number.
        streaming: Many pictures will follow each other, so throughput matters more than the latency of one.

    Raises:
        CheckpointError: The file is missing, broken or no segmenter.
        ArtifactError: The folder is broken or changed.
        UnknownNameError: No such backend.
        MissingDependencyError: The backend's package is not installed; the pip command is named.
        BackendError: The backend does not run this source or precision on this machine.
        ParityError: The saliency on this machine differs from torch's by more than is accepted.
        SelectionError: A batch size out of range.
    """
    if isinstance(source, Segmenter):
        return _open_weights(source, {}, backend, precision, batch_size)
    if isinstance(source, SegmenterArtifact):
        return _open_artifact(source, backend, precision, batch_size, streaming)
    path = Path(source)
    if path.is_dir() or path.name in (GRAPH, MANIFEST):
        return _open_artifact(open_segmenter_artifact(path), backend, precision, batch_size, streaming)
    segmenter, content = load_segmenter(path)
    return _open_weights(segmenter, recorded_of(content), backend, precision, batch_size)


def _open_weights(
    segmenter: Segmenter, content: Json, backend: str, precision: str | None, batch_size: int | None
) -> SaliencyRuntime:
    name, wanted = "eager" if backend == AUTO else backend, precision or "f32"
    plugin = BACKENDS.load(name)
    if plugin.runs != "module":
        raise BackendError(
            f"{name} runs exported graphs, not weights. "
            "First: fastdirs saliency export MODEL --out DIR, then name DIR."
        )
    check_precision(name, wanted)
    size = _batch_size(batch_size, min(_LARGEST_IN_TORCH, usual_batch(segmenter.img_resolution).opt), None)
    module = SaliencyGraph(copy.deepcopy(segmenter).cpu().eval().requires_grad_(False))
    return SaliencyRuntime(
        plugin.open(module, wanted, True), segmenter=segmenter_settings(segmenter), content=content,
        backend=name, batch_size=size,
        reason="torch runs the weights; export them for a compiled graph" if backend == AUTO else "as asked",
    )  # fmt: skip


def _open_artifact(
    artifact: SegmenterArtifact, backend: str, precision: str | None, batch_size: int | None, streaming: bool
) -> SaliencyRuntime:
    batch = artifact.batch
    size = _batch_size(batch_size, batch.opt, batch.max)
    pairs = _candidates(artifact, backend, precision)
    sessions = open_all(pairs, {"f32": artifact.graph_path}, streaming, batch)
    try:
        reference = artifact.reference()
        parities = {
            pair: measure_saliency(session, *reference, (1, size)) for pair, session in sessions.items()
        }
        accepted = [pair for pair in sessions if parities[pair].within(artifact.accept[pair[1]])]
        if not accepted:
            found = "; ".join(f"{' '.join(pair)}: {parity}" for pair, parity in parities.items())
            raise ParityError(f"On this machine {found}. Export again, or choose another backend.")
        best, reason = _fastest({pair: sessions[pair] for pair in accepted}, reference[0], size)
        if len(accepted) == 1 and len(sessions) > 1:
            reason = "the only one whose error is accepted"
        session = sessions.pop(best)
    finally:
        for other in sessions.values():
            other.close()
    return SaliencyRuntime(
        session, segmenter=artifact.content["segmenter"], content=artifact.content["recorded"],
        backend=best[0], reason=reason, batch_size=size, parity=parities[best],
    )  # fmt: skip


def _batch_size(asked: int | None, usual: int, largest: int | None) -> int:
    size = usual if asked is None else asked
    if size < 1 or (largest is not None and size > largest):
        expected = f"Expected 1 to {largest}, which it was verified for" if largest else "Expected 1 or more"
        raise SelectionError(f"A batch of {size} is out of range. {expected}.")
    return size


def _candidates(artifact: SegmenterArtifact, backend: str, precision: str | None) -> list[tuple[str, str]]:
    """Backends and precisions that may open an artefact here."""
    accept = artifact.accept
    if precision is not None and precision not in accept:
        raise BackendError(
            f"This artefact accepts {', '.join(accept)}, not {precision!r}. Choose one of these, or export "
            "again with a --precision that is accepted."
        )
    wanted = [each for each in accept if precision in (None, each)]
    if backend == AUTO:
        pairs, missing = graph_backends(wanted)
        # All that is written is a graph in f32, and not all runtimes lower its precision.
        pairs = [pair for pair in pairs if _runs(*pair)]
        if not pairs:
            raise missing or BackendError(
                f"Nothing on this machine computes in {' or '.join(wanted)}. Leave --precision out."
            )
        return pairs
    plugin = BACKENDS.load(backend)
    if plugin.runs != "graph":
        raise BackendError(
            f"{backend} runs weights, not exported graphs. Name the file of weights, or another backend."
        )
    check_runs(backend)
    if precision is not None:
        check_precision(backend, precision)
    usable = [(backend, each) for each in plugin.precisions() if each in wanted and _runs(backend, each)]
    if not usable:
        raise BackendError(
            f"{backend} computes in {' or '.join(wanted)} only from a graph that is written in it, and this "
            "artefact holds one in f32. Leave --precision out, or choose another backend."
        )
    return usable


def _runs(backend: str, precision: str) -> bool:
    """Whether a backend computes in a precision from a graph in f32."""
    return BACKENDS.load(backend).graph_of(precision) == "f32"


def _fastest(
    sessions: dict[tuple[str, str], Session], images: Array, size: int
) -> tuple[tuple[str, str], str]:
    """The fastest session in a stream of batches, and how that was found."""
    if len(sessions) == 1:
        return next(iter(sessions)), "the only candidate"
    batch = np.ascontiguousarray(images[np.arange(size) % len(images)])
    timings = time_sessions({" ".join(pair): each for pair, each in sessions.items()}, [batch], _ROUNDS)
    rates = ", ".join(f"{name} {1000 * size / each.median_ms:.0f} images/s" for name, each in timings.items())
    best = min(sessions, key=lambda pair: timings[" ".join(pair)].median_ms)
    return best, f"fastest of {rates} at batch {size}"
