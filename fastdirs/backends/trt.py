"""TensorRT, and TensorRT for RTX: engines of graphs, built ahead of time or on first use."""

from pathlib import Path

import onnx
from filelock import FileLock

from fastdirs.backends import Backend, Session, engine_path
from fastdirs.backends._tensorrt_build import build, targets_of
from fastdirs.backends._tensorrt_fit import Facts, facts_of, manifest_path, read_fitting
from fastdirs.backends._tensorrt_library import Gpu, find_gpu, here, load
from fastdirs.backends._tensorrt_run import TensorRtSession
from fastdirs.errors import ArtifactError, BackendError, OutputError
from fastdirs.manifest import Json, cache_dir, sha256_file, sha256_json
from fastdirs.recipe import Batch, Engine, usual_batch

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
    beside = [library for library in libraries if engine_path(graph, library).is_file()]
    if beside:
        library, engine = beside[0], engine_path(graph, beside[0])
        content = read_fitting(engine, _facts(graph, engine, library, gpu, precision, batch))
    else:
        library = libraries[0]
        engine, content = _cached(graph, library, gpu, precision, batch)
    return TensorRtSession(library, engine, content, gpu, streaming)


def _facts(graph: Path, engine: Path, library: str, gpu: Gpu, precision: str, batch: Batch | None) -> Facts:
    version = load(library).__version__
    return facts_of(graph, engine, library, version, gpu.compute_capability, precision, batch)


def _cached(graph: Path, library: str, gpu: Gpu, precision: str, batch: Batch | None) -> tuple[Path, Json]:
    """The engine of a graph in the cache, built if there is none that fits."""
    batch = batch or _usual(graph)
    version = load(library).__version__
    made_of = [library, version, gpu.name, gpu.compute_capability, sha256_file(graph), batch.opt, batch.max]
    engine = cache_dir() / "engines" / f"{sha256_json(made_of)[:32]}.engine"
    try:
        engine.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError.from_os(engine, error) from error
    # Two processes that open the same graph build it once.
    with FileLock(f"{engine}.lock"):
        if manifest_path(engine).is_file() and engine.is_file():
            try:
                return engine, read_fitting(engine, _facts(graph, engine, library, gpu, precision, batch))
            except (ArtifactError, BackendError):
                # A damaged file of our own: the build below replaces it.
                manifest_path(engine).unlink()
        build(graph, engine, batch, Engine(to=library))
        return engine, read_fitting(engine, _facts(graph, engine, library, gpu, precision, batch))


def _usual(graph: Path) -> Batch:
    """Batch sizes that suit the pictures of a graph."""
    output = onnx.load(str(graph), load_external_data=False).graph.output[0]
    axes = [axis.dim_value for axis in output.type.tensor_type.shape.dim]
    return usual_batch(axes[2]) if len(axes) == 4 and axes[2] else Batch()


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
