"""An opened reconstructor: image pairs in, direction and epsilon out, as numpy arrays."""

import copy
import json
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from fastdirs.artifact import MANIFEST
from fastdirs.backends import BACKENDS, Array, Session, graph_backends, open_all
from fastdirs.errors import BackendError, CheckpointError, ParityError, SelectionError, check_shape
from fastdirs.machine import alternate
from fastdirs.manifest import Json, is_manifest
from fastdirs.reconstructor_export import (
    GRAPH,
    INPUTS,
    ReconstructorArtifact,
    measure_answers,
    open_reconstructor_artifact,
    recorded_of,
)
from fastdirs.reconstructors import Reconstructor, load_reconstructor, shrink
from fastdirs.training.state import RECONSTRUCTOR_FILE, RUN_FILE, RUN_KIND

AUTO = "auto"
_PRECISION = "f32"
_ROUNDS = 3
_MEASURED_BATCH = 16


class ReconstructorRuntime:
    """A reconstructor on a backend.

    Attributes:
        num_directions: K, the directions it tells apart.
        img_channels: Channels of one image, 1 or 3.
        img_resolution: Height and width of the images that it reads, in pixels.
        content: What was recorded of its training: generator, shifts, bank_sha256, ...; empty if nothing was.
        backend: Registered name of the backend.
        precision: Arithmetic in effect, read back from the runtime.
        provider: What executes it, read back from the runtime.
        reason: Why this backend.
        max_batch: Largest batch that was verified; larger ones are run in parts. None = any.
    """

    def __init__(
        self, session: Session, *, settings: Json, content: Json, backend: str, reason: str,
        max_batch: int | None = None,
    ) -> None:  # fmt: skip
        self.num_directions = int(settings["num_directions"])
        self.img_channels = int(settings["img_channels"])
        self.img_resolution = int(settings["img_resolution"])
        self.content = content
        self.backend = backend
        self.precision = session.precision
        self.provider = session.provider
        self.reason = reason
        self.max_batch = max_batch
        self._session: Session | None = session

    def predict(self, images: Array, shifted: Array) -> tuple[Array, Array, Array]:
        """What was done to the images, to be seen in the pairs.

        Args:
            images: Unshifted. `[batch, channels, height, width]`, float in [-1, 1]; larger ones than
                `img_resolution` are averaged down to it.
            shifted: The same seeds, shifted. `[batch, channels, height, width]`, float in [-1, 1].

        Returns:
            Logits over directions `[batch, num_directions]`, epsilon in latent units `[batch]`, and the
            features they were read from `[batch, width]`, float32.

        Raises:
            ShapeError: Images of another shape, or two that differ.
            SelectionError: An empty batch.
            BackendError: The runtime was closed.
        """
        if self._session is None:
            raise BackendError("This reconstructor was closed. Open it again with open_reconstructor.")
        axes = "batch channels height width"
        check_shape(images, axes, "images", channels=self.img_channels)
        check_shape(shifted, axes, "shifted", **dict(zip(axes.split(), images.shape, strict=True)))
        if not len(images):
            raise SelectionError("The batch is empty. Pass at least one pair.")
        pair = [self._fitted(images), self._fitted(shifted)]
        step = self.max_batch or len(images)
        parts = [
            self._session.run_all([each[start : start + step] for each in pair])
            for start in range(0, len(images), step)
        ]
        logits, epsilon, features = (np.concatenate(each) for each in zip(*parts, strict=True))
        return logits, epsilon, features

    def _fitted(self, images: Array) -> Array:
        """Images of the size that the network reads: `[batch, channels, height, width]`, float32."""
        given = np.ascontiguousarray(images, dtype=np.float32)
        if given.shape[2:] == (self.img_resolution, self.img_resolution):
            return given
        fitted: Array = shrink(torch.tensor(given), self.img_resolution).numpy()
        return fitted

    def close(self) -> None:
        """Free the runtime. May be called twice."""
        if self._session is not None:
            self._session.close()
        self._session = None

    def __enter__(self) -> "ReconstructorRuntime":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_reconstructor(
    source: Reconstructor | ReconstructorArtifact | str | Path, backend: str = AUTO
) -> ReconstructorRuntime:
    """Open a reconstructor in torch, or an exported one on a backend.

    Args:
        source: A reconstructor; a file of one, of fastdirs or of the authors' code; an exported folder; or
            the folder of a training run that has finished.
        backend: Registered name, or "auto": torch for weights, and of an exported folder the fastest of the
            installed runtimes by a short measurement.

    Raises:
        CheckpointError: The file is missing, broken or no reconstructor, or the run has not finished.
        ArtifactError: The folder is broken or changed.
        UnknownNameError: No such backend.
        MissingDependencyError: The backend's package is not installed; the pip command is named.
        BackendError: The backend does not run this source.
        ParityError: The answers on this machine differ from torch's by more than is accepted.
    """
    if isinstance(source, Reconstructor):
        return _open_weights(source, {}, backend)
    if isinstance(source, ReconstructorArtifact):
        return _open_artifact(source, backend)
    path = Path(source)
    if is_run(path):
        path = reconstructor_of_run(path)
    if path.is_dir() or path.name in (GRAPH, MANIFEST):
        return _open_artifact(open_reconstructor_artifact(path), backend)
    reconstructor, content = load_reconstructor(path)
    return _open_weights(reconstructor, recorded_of(content), backend)


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run that trains a reconstructor, finished or not."""
    if not is_manifest(path / RUN_FILE, RUN_KIND):
        return False
    # Saliency networks are trained in such folders, too, but on a dataset.
    asked = json.loads((path / RUN_FILE).read_bytes()).get("asked")
    return not (isinstance(asked, dict) and "dataset" in asked)


def reconstructor_of_run(folder: Path) -> Path:
    """The file of the reconstructor that a training run made.

    Raises:
        CheckpointError: The run has not finished.
    """
    path = folder / RECONSTRUCTOR_FILE
    if not path.is_file():
        raise CheckpointError(
            f"The training run in {folder} has not finished: it holds no {RECONSTRUCTOR_FILE} yet. Give its "
            "discover command again, which continues it."
        )
    return path


def _open_weights(reconstructor: Reconstructor, content: Json, backend: str) -> ReconstructorRuntime:
    name = "eager" if backend == AUTO else backend
    plugin = BACKENDS.load(name)
    if plugin.runs != "module":
        raise BackendError(
            f"{name} runs exported graphs, not weights. "
            "First: fastdirs export RECONSTRUCTOR --out DIR, then name DIR."
        )
    settings = {
        "num_directions": reconstructor.num_directions,
        "img_channels": reconstructor.img_channels,
        "img_resolution": reconstructor.img_resolution,
    }
    reason = "torch runs the weights; export them for a compiled graph" if backend == AUTO else "as asked"
    session = plugin.open(copy.deepcopy(reconstructor).cpu().eval(), _PRECISION, False)
    return ReconstructorRuntime(session, settings=settings, content=content, backend=name, reason=reason)


def _open_artifact(artifact: ReconstructorArtifact, backend: str) -> ReconstructorRuntime:
    if backend == AUTO:
        pairs, missing = graph_backends((_PRECISION,))
        if missing and not pairs:
            raise missing
    elif BACKENDS.load(backend).runs != "graph":
        raise BackendError(
            f"{backend} runs weights, not exported graphs. Name the file of weights, or another backend."
        )
    else:
        pairs = [(backend, _PRECISION)]
    sessions = {
        name: session for (name, _), session in open_all(pairs, {"f32": artifact.graph_path}, False).items()
    }
    name, reason = _fastest(artifact, sessions)
    for other in sessions.keys() - {name}:
        sessions[other].close()
    return ReconstructorRuntime(
        sessions[name], settings=artifact.content["reconstructor"], content=artifact.content["recorded"],
        backend=name, reason=reason, max_batch=int(artifact.content["batch"]["max"]),
    )  # fmt: skip


def _fastest(artifact: ReconstructorArtifact, sessions: dict[str, Session]) -> tuple[str, str]:
    """The fastest backend whose answers are torch's, and how that was found."""
    reference = artifact.reference()
    size = min(_MEASURED_BATCH, int(artifact.content["batch"]["opt"]))
    parities = {name: measure_answers(session, reference, (1, size)) for name, session in sessions.items()}
    accepted = [name for name, parity in parities.items() if parity.accepted]
    if not accepted:
        for session in sessions.values():
            session.close()
        found = "; ".join(f"{name}: {parity}" for name, parity in parities.items())
        raise ParityError(f"On this machine {found}. Export again, or choose another backend.")
    if len(sessions) == 1:
        return accepted[0], "the only candidate"
    rows = np.arange(size) % len(reference["images"])
    batch = [np.ascontiguousarray(reference[name][rows]) for name in INPUTS]
    timings = alternate({name: partial(sessions[name].run_all, batch) for name in accepted}, _ROUNDS)
    rates = ", ".join(
        f"{name} {1000 * size / timing.median_ms:.0f} pairs/s" for name, timing in timings.items()
    )
    return min(timings, key=lambda name: timings[name].median_ms), f"fastest of {rates} at batch {size}"
