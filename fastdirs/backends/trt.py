"""TensorRT, and TensorRT for RTX: engines of graphs, built ahead of time or on first use."""

import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from fastdirs.backends import Backend, Session, engine_path
from fastdirs.backends._tensorrt_batch import batch_of
from fastdirs.backends._tensorrt_build import build, targets_of
from fastdirs.backends._tensorrt_fit import facts_of, manifest_path, read_fitting
from fastdirs.backends._tensorrt_library import Gpu, find_gpu, here, load
from fastdirs.backends._tensorrt_run import TensorRtSession
from fastdirs.errors import ArtifactError, BackendError, OutputError
from fastdirs.manifest import Json, cache_dir, sha256_file, sha256_json
from fastdirs.recipe import Batch, Engine

_PRECISIONS = ("f32", "f16", "bf16", "int8")


def _open(source: Path, precision: str, streaming: bool = False, batch: Batch | None = None) -> Session:
    """An engine that lies beside the graph must fit; else one is built, once for this machine."""
    if precision not in _PRECISIONS:
        raise BackendError(f"trt has no precision {precision!r}. Expected one of: {', '.join(_PRECISIONS)}.")
    libraries, lacking = here()
    gpu = find_gpu()
    if lacking or isinstance(gpu, str):
        raise BackendError(f"TensorRT cannot run here: {lacking}")
    graph = Path(source)
    engine, content = _beside(graph, libraries, gpu, precision, batch) or _cached(
        graph, libraries[0], gpu, precision, batch
    )
    return TensorRtSession(content["library"], engine, content, gpu, streaming)


def _beside(
    graph: Path, libraries: Sequence[str], gpu: Gpu, precision: str, batch: Batch | None
) -> tuple[Path, Json] | None:
    """The first engine beside a graph that fits; None if there is none at all."""
    misfit = None
    for library in libraries:
        engine = engine_path(graph, library)
        if not engine.is_file():
            continue
        try:
            return engine, _read(graph, engine, library, gpu, precision, batch)
        except (ArtifactError, BackendError) as error:
            misfit = misfit or error
    if misfit is not None:
        raise misfit
    return None


def _read(graph: Path, engine: Path, library: str, gpu: Gpu, precision: str, batch: Batch | None) -> Json:
    version = load(library).__version__
    return read_fitting(engine, facts_of(graph, engine, library, version, gpu, precision, batch))


def _cached(graph: Path, library: str, gpu: Gpu, precision: str, batch: Batch | None) -> tuple[Path, Json]:
    """The engine of a graph in the cache, built if there is none that fits."""
    batch = batch or batch_of(graph)
    version = load(library).__version__
    made_for = [library, version, gpu.name, gpu.compute_capability, platform.machine()]
    made_of = [*made_for, sha256_file(graph), batch.opt, batch.max]
    engine = cache_dir() / "engines" / f"{sha256_json(made_of)[:32]}.engine"
    try:
        engine.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that open the same graph build it once.
        with FileLock(f"{engine}.lock"):
            if manifest_path(engine).is_file() and engine.is_file():
                # A damaged file of our own is replaced by the build below.
                with suppress(ArtifactError):
                    return engine, _read(graph, engine, library, gpu, precision, batch)
            build(graph, engine, batch, Engine(to=library, compute_capability=(gpu.compute_capability,)))
            return engine, _read(graph, engine, library, gpu, precision, batch)
    except (OSError, OutputError) as error:
        reason = error.__cause__ if isinstance(error, OutputError) else error
        raise BackendError(
            f"{engine.parent} cannot be written: {getattr(reason, 'strerror', None) or reason}. TensorRT's "
            "engines are kept there. Set XDG_CACHE_HOME to a folder that can be written, or put an engine "
            f"beside the graph: fastdirs export ... --to {library}."
        ) from error


def _precisions() -> tuple[str, ...]:
    gpu = find_gpu()
    if here()[1] or isinstance(gpu, str):
        return ()
    # Turing has no units for bf16.
    return tuple(each for each in _PRECISIONS if each != "bf16" or gpu.major >= 8)


BACKEND = Backend(
    summary="TensorRT, or TensorRT for RTX: NVIDIA GPUs",
    runs="graph",
    precisions=_precisions,
    open=_open,
    lacks=lambda: here()[1],
    build=build,
    targets=targets_of,
)
