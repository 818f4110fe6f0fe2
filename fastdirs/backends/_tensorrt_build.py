"""ONNX graphs become TensorRT engines, each with a manifest that says what it fits."""

import hashlib
import platform
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from fastdirs.backends._tensorrt_fit import KIND, manifest_path
from fastdirs.backends._tensorrt_library import (
    LIBRARIES,
    TITLES,
    Gpu,
    find_gpu,
    load,
    logger,
    rtx_targets,
    tail,
)
from fastdirs.errors import BackendError, OutputError
from fastdirs.manifest import Json, cache_dir, manifest, write_bytes, write_json
from fastdirs.recipe import Batch, Engine

Progress = Callable[[str, int, int], None]
# What TensorRT calls a type; a graph computes in the first of these that it holds.
_PRECISIONS = {"INT8": "int8", "BF16": "bf16", "HALF": "f16"}
# Layers that cost time.
_HEAVY = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "UINT8": "uint8",
    "INT32": "int32", "INT64": "int64", "BOOL": "bool",
}  # fmt: skip
# Lines of a refusal that repeat the node's name, or that miss a GPU, which building does not need.
_NOISE = ("Invalid Node", "[checkMacros")
# Turing has no float32 matrix product in TensorRT for RTX, so it is built for only where it is asked for.
_NEVER_BY_DEFAULT = ("7.5",)


def targets_of(engine: Engine) -> list[str]:
    """Compute capabilities that an engine would be built for, such as "8.9".

    Raises:
        BackendError: The GPU is not one that can be built for, or TensorRT has no driver here.
        MissingDependencyError: The library is not installed.
    """
    library = engine.to
    if library not in LIBRARIES:
        raise BackendError(f"Engines of {library!r} do not exist. Expected one of: {', '.join(LIBRARIES)}.")
    return _targets(load(library), library, engine.compute_capability)


def build(
    graph: Path,
    path: Path,
    batch: Batch,
    engine: Engine,
    progress: Progress = lambda phase, done, total: None,
) -> Json:
    """Compile a graph; `fastdirs.backends.Build` says the rest.

    What `engine` leaves open is decided by the machine: the GPU in it, or for TensorRT for RTX without one
    every GPU since Ampere.

    Source: NVIDIA TensorRT 11 and TensorRT for RTX 1.7 Python API. Networks are strongly typed: precision
    is that of the graph's tensors, and TF32 is off, so that float32 means float32.

    Raises:
        BackendError: The graph is refused or cannot be built, the GPU is not one that can be built for, or
            TensorRT has no driver here.
        MissingDependencyError: The library is not installed.
        OutputError: The engine or its manifest cannot be written.
    """
    targets, library = targets_of(engine), engine.to
    trt, log, title = load(library), logger(library), TITLES[library]
    try:
        data = graph.read_bytes()
    except OSError as error:
        raise BackendError(f"{graph} cannot be read: {error.strerror}. Name an ONNX file.") from error
    log.lines.clear()
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(data, str(graph)):
        raise BackendError(_refusal(graph, title, [parser.get_error(i) for i in range(parser.num_errors)]))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = engine.optimization_level
    if engine.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, engine.workspace_mib * 2**20)
    _add_profile(builder, network, config, batch, graph)
    if library == "tensorrt-rtx":
        known = rtx_targets(trt)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(known[target], index)
        gpu, timing = None, None
    else:
        found = find_gpu()
        assert isinstance(found, Gpu)
        gpu = found.name
        name = "-".join([trt.__version__, re.sub(r"\W+", "-", gpu), targets[0]])
        timing = cache_dir() / "tensorrt" / f"{name}.timing"
        _read_timing(config, timing)
    plan = _compiled(trt, builder, network, config, progress)
    if plan is None:
        raise BackendError(
            f"{title} could not build an engine of {graph.name}: {tail(log)}. If it names the workspace, "
            "allow more ([engine] workspace_mib); else export with another lowering, precision or target."
        )
    content = bytes(plan)
    write_bytes(path, content)
    described = manifest(KIND, {
        "library": library,
        "version": trt.__version__,
        "compute_capabilities": targets,
        "gpu": gpu,
        "platform": platform.system(),
        "machine": platform.machine(),
        "graph": graph.name,
        "graph_sha256": hashlib.sha256(data).hexdigest(),
        "precision": _precision(network),
        "heavy_layers": _heavy_layers(network),
        "tf32": config.get_flag(trt.BuilderFlag.TF32),
        "profile": {"min": 1, "opt": batch.opt, "max": batch.max},
        "inputs": [_port(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_port(network.get_output(i)) for i in range(network.num_outputs)],
        "optimization_level": engine.optimization_level,
        "workspace_mib": engine.workspace_mib,
        "warnings": list(dict.fromkeys(text for severity, text in log.lines if severity == "WARNING")),
        "engine_sha256": hashlib.sha256(content).hexdigest(),
    })  # fmt: skip
    write_json(manifest_path(path), described)
    if timing is not None:
        _write_timing(config, timing)
    return described


def _targets(trt: Any, library: str, wanted: tuple[str, ...]) -> list[str]:
    """Compute capabilities to build for."""
    gpu = find_gpu()
    mine = [gpu.compute_capability] if isinstance(gpu, Gpu) else []
    if library == "tensorrt":
        known, reason = mine, "It builds for the GPU of this machine"
    else:
        known, reason = list(rtx_targets(trt)), "It builds for"
    targets = list(dict.fromkeys(wanted)) or mine or [each for each in known if each not in _NEVER_BY_DEFAULT]
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise BackendError(
            f"{TITLES[library]} cannot build for compute capability {', '.join(unknown)}. "
            f"{reason}: {', '.join(known)}. For other GPUs build with TensorRT on a machine that has one."
        )
    return targets


def _network_flags(trt: Any) -> int:
    """Strong typing: a choice up to TensorRT 10, which has flags for precisions, and always on since."""
    old = hasattr(trt.BuilderFlag, "FP16")
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if old else 0


def _add_profile(builder: Any, network: Any, config: Any, batch: Batch, graph: Path) -> None:
    """The batch, which is the first axis of every dynamic input, from 1 to its largest size."""
    profile = builder.create_optimization_profile()
    shapes = {each.name: tuple(each.shape) for each in map(network.get_input, range(network.num_inputs))}
    dynamic = {name: shape for name, shape in shapes.items() if -1 in shape}
    if not dynamic or any(shape[0] != -1 or -1 in shape[1:] for shape in dynamic.values()):
        raise BackendError(
            f"{graph.name} has inputs {shapes}, where -1 is dynamic. Expected a dynamic first axis, the "
            "batch, and no other. Export it again."
        )
    for name, shape in dynamic.items():
        profile.set_shape(name, *((size, *shape[1:]) for size in (1, batch.opt, batch.max)))
    if not profile or config.add_optimization_profile(profile) < 0:
        raise BackendError(
            f"Batch sizes 1, {batch.opt}, {batch.max} are refused. Expected them in ascending order."
        )


def _compiled(trt: Any, builder: Any, network: Any, config: Any, progress: Progress) -> Any:
    """Build in a thread of its own, so that this one can report, and be interrupted, whatever is built."""
    steps: SimpleQueue[tuple[str, int, int] | None] = SimpleQueue()
    cancelled = Event()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, total: int) -> None:
            self.totals[phase] = total

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            steps.put((phase, step + 1, self.totals[phase]))
            return not cancelled.is_set()

    # TensorRT keeps no reference to it.
    monitor = Monitor()
    config.progress_monitor = monitor
    with ThreadPoolExecutor(1, thread_name_prefix="tensorrt-build") as pool:
        future = pool.submit(builder.build_serialized_network, network, config)
        future.add_done_callback(lambda _: steps.put(None))
        try:
            while (step := steps.get()) is not None:
                progress(*step)
        except BaseException:
            cancelled.set()
            raise
    config.progress_monitor = None
    return future.result()


def _read_timing(config: Any, path: Path) -> None:
    """Measurements of earlier builds on this GPU, if there are any that fit."""
    known = b""
    with suppress(OSError):
        known = path.read_bytes()
    for data in (known, b""):
        measured = config.create_timing_cache(data)
        if measured is not None and config.set_timing_cache(measured, False):
            return


def _write_timing(config: Any, path: Path) -> None:
    """Keep the measurements for later builds. An engine is as good without, so nothing depends on it."""
    measured = config.get_timing_cache()
    if measured is not None:
        with suppress(OutputError):
            write_bytes(path, bytes(measured.serialize()))


def _precision(network: Any) -> str:
    """What a strongly typed network computes in, read off its tensors."""
    held = {
        layer.get_output(index).dtype.name
        for layer in map(network.get_layer, range(network.num_layers))
        for index in range(layer.num_outputs)
    }
    return next((precision for dtype, precision in _PRECISIONS.items() if dtype in held), "f32")


def _heavy_layers(network: Any) -> dict[str, int]:
    """How many of the layers that cost time have their operands in which precision."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    # After these a tensor is float again, and TensorRT multiplies what they were given.
    quantised = {each.get_output(0).name for each in layers if each.type.name == "DEQUANTIZE"}
    counts: Counter[str] = Counter()
    for layer in layers:
        if layer.type.name in _HEAVY:
            operand = layer.get_input(0)
            counts["int8" if operand.name in quantised else _PRECISIONS.get(operand.dtype.name, "f32")] += 1
    return dict(counts)


def _port(tensor: Any) -> Json:
    """An input or output; -1 is the batch."""
    return {"name": tensor.name, "dtype": _DTYPES[tensor.dtype.name], "shape": list(tensor.shape)}


def _refusal(graph: Path, title: str, errors: list[Any]) -> str:
    """What the parser refuses, of which node, and why."""
    error = errors[0]
    # Reasons are C++ assertions; where one holds a sentence for people, that is the reason.
    lines = error.desc().removeprefix("Assertion failed: ").splitlines()
    text = " ".join(line for line in lines if not line.startswith(_NOISE))
    quoted = re.search(r'"(.+?)"', text)
    reason = quoted[1] if quoted else text
    reason = f"it knows no such operator ({error.code().name})" if reason == "false" else reason
    node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node() >= 0 else ""
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return (
        f"{title} refuses {graph.name}: {node}{reason.rstrip('.')}.{more} "
        "Export with another lowering or opset, or run the graph in ONNX Runtime."
    )
