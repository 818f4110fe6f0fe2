"""OpenVINO on the CPU: bf16 where the processor has units for it, int8 where a graph is quantised."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import openvino
from openvino.properties import hint

from fastdirs.backends import Array, Backend, Kept, Session
from fastdirs.backends._memory import enough_memory, lacks_memory
from fastdirs.errors import BackendError, OutputError, PrecisionError
from fastdirs.machine import bf16_unit
from fastdirs.manifest import cache_dir, sha256_file, sha256_json, write_bytes
from fastdirs.recipe import Batch

_TYPES = {"f32": "float32", "bf16": "bfloat16"}
_HEAVY = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
# What the runtime calls layers that compute in a precision.
_LAYERS = {"f32": {"f32"}, "bf16": {"bf16"}, "int8": {"i8", "u8"}}
_CACHE_BYTES = 2**30


class _OpenVino(Session):
    def __init__(
        self, source: Path, precision: str, streaming: bool = False, batch: Batch | None = None
    ) -> None:
        if precision not in _LAYERS:
            raise BackendError(
                f"openvino_cpu has no precision {precision!r}. Expected one of: {', '.join(_LAYERS)}."
            )
        # Layers that a quantised graph leaves in float are faster in bf16: 3,135 against 2,626 images/s.
        floats = precision if precision != "int8" else "bf16" if bf16_unit() else "f32"
        mode = hint.PerformanceMode.THROUGHPUT if streaming else hint.PerformanceMode.LATENCY
        compiled = _compile(source, floats, mode)
        self._name = source.name
        # Asked for and in effect may differ: OpenVINO takes bf16 by itself on some processors and refuses it
        # on others.
        in_effect = compiled.get_property(hint.inference_precision()).to_string()
        if in_effect not in (_TYPES[floats], floats):
            raise BackendError(
                f"OpenVINO computes in {in_effect} here instead of {floats}. Ask for --precision f32."
            )
        layers = _heavy_layers(compiled)
        if layers and not _LAYERS[precision] & set(layers):
            # The hint is only a wish: a layer without a kernel in this precision runs in another.
            raise PrecisionError(
                f"OpenVINO runs none of the {sum(layers.values())} layers that cost time in {precision} "
                f"({_listed(layers)}). Export with another lowering, or ask for another --precision."
            )
        self.precision = precision
        device = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
        self.provider = f"OpenVINO {openvino.__version__.partition('-')[0]}, {device}"
        self.detail = _listed(layers)
        self.num_parallel = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if streaming else 1
        self._types = [port.element_type.to_dtype() for port in compiled.inputs]
        self._requests: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(self.num_parallel):
            self._requests.put(compiled.create_infer_request())
        self._closed = False
        # The binding sets up tables on its first call, and two threads that make first calls wait for each
        # other for ever: one holds the interpreter's lock, the other the table's. So the first call is made
        # here, alone.
        shapes = [
            [1 if axis.is_dynamic else axis.get_length() for axis in port.partial_shape]
            for port in compiled.inputs
        ]
        self.run([np.zeros(shape, dtype=np.float32) for shape in shapes])

    def run_all(self, inputs: Sequence[Kept]) -> list[Array]:
        # Otherwise the next line but one would wait for ever.
        assert not self._closed
        given = {
            index: np.asarray(value, dtype)
            for index, (value, dtype) in enumerate(zip(inputs, self._types, strict=True))
        }
        request = self._requests.get()
        try:
            # The results are copies (share_outputs is off): the next call writes to the same buffers.
            with enough_memory(), _refusals(self._name):
                results = request.infer(given, share_inputs=True)
            return [results[index] for index in range(len(results))]
        finally:
            self._requests.put(request)

    def close(self) -> None:
        self._closed = True
        while not self._requests.empty():
            self._requests.get()


@cache
def _core() -> openvino.Core:
    # One for the process, never freed: each installs a signal stack, and one freed out of order leaves
    # the process with a stack in freed memory, on which the next signal (Ctrl-C) kills it.
    return openvino.Core()


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """OpenVINO's errors, which are all of one kind and say first where in its sources they arose, as ours."""
    try:
        yield
    except RuntimeError as error:
        if lacks_memory(error):
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(line for line in lines if line and not line.startswith("Exception from "))
        raise BackendError(
            f"OpenVINO refuses {name}: {reason.rstrip('.')}. Export it again, or use another backend."
        ) from error


def _compile(source: Path, floats: str, mode: hint.PerformanceMode) -> openvino.CompiledModel:
    """Compile a graph, or continue from what an earlier opening kept: the graph, read and optimised.

    OpenVINO has a cache of its own, but to it the same path, size and second are the same graph, and it never
    forgets one.
    """
    settings = {hint.inference_precision(): floats, hint.performance_mode(): mode}
    try:
        digest = sha256_file(source)
    except OSError as error:
        raise BackendError(f"{source} cannot be read: {error.strerror}. Export it again.") from error
    # Two processors, or two virtual machines on one, may have the same name and not the same units.
    cpu = [_core().get_property("CPU", each) for each in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    facts = [digest, openvino.__version__, cpu, floats]
    kept = cache_dir() / "openvino" / f"{sha256_json(facts)}.blob"
    # One that is missing or damaged is made anew.
    with suppress(OSError, RuntimeError):
        compiled = _core().import_model(io.BytesIO(kept.read_bytes()), "CPU", settings)
        # The oldest are forgotten: those that were used least lately.
        with suppress(OSError):
            os.utime(kept)
        return compiled
    with enough_memory(), _refusals(source.name):
        compiled = _core().compile_model(str(source), "CPU", settings)
    # Where nothing can be written, each opening compiles.
    with suppress(OutputError):
        write_bytes(kept, compiled.export_model().getvalue())
        _forget_old(kept.parent)
    return compiled


def _forget_old(folder: Path) -> None:
    """Remove the oldest files until the others take at most `_CACHE_BYTES`; the newest one stays."""
    total = 0
    # Another process may be doing the same.
    with suppress(OSError):
        newest_first = sorted(folder.glob("*.blob"), key=lambda path: path.stat().st_mtime, reverse=True)
        for number, path in enumerate(newest_first):
            total += path.stat().st_size
            if number and total > _CACHE_BYTES:
                path.unlink()


def _heavy_layers(compiled: openvino.CompiledModel) -> dict[str, int]:
    """How many of the layers that cost time run in which precision, as the compiled model itself reports."""
    counts: dict[str, int] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in _HEAVY:
            precision = info["runtimePrecision"].astype(str).lower()
            counts[precision] = counts.get(precision, 0) + 1
    return counts


def _listed(layers: dict[str, int]) -> str:
    return ", ".join(f"{count} heavy layers in {precision}" for precision, count in sorted(layers.items()))


def _precisions() -> tuple[str, ...]:
    return ("f32", "bf16", "int8") if bf16_unit() else ("f32", "int8")


BACKEND = Backend(
    summary="OpenVINO, CPU",
    runs="graph",
    precisions=_precisions,
    open=_OpenVino,
    # It computes in bf16 from a float32 graph.
    graph_of=lambda precision: "f32" if precision == "bf16" else precision,
)
