"""OpenVINO on the CPU: bf16 where the processor has units for it."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import openvino
from openvino.properties import hint

from fastdirs.backends import Array, Backend, Kept, Session
from fastdirs.errors import BackendError
from fastdirs.machine import bf16_unit
from fastdirs.recipe import Batch

_TYPES = {"f32": "float32", "bf16": "bfloat16"}
_HEAVY = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


class _OpenVino(Session):
    def __init__(
        self, source: Path, precision: str, streaming: bool = False, batch: Batch | None = None
    ) -> None:
        if precision not in _TYPES:
            raise BackendError(
                f"openvino_cpu has no precision {precision!r}. Expected one of: {', '.join(_TYPES)}."
            )
        mode = hint.PerformanceMode.THROUGHPUT if streaming else hint.PerformanceMode.LATENCY
        compiled = _core().compile_model(
            str(source), "CPU", {hint.inference_precision(): precision, hint.performance_mode(): mode}
        )
        # Asked for and in effect may differ: OpenVINO takes bf16 by itself on some processors and refuses it
        # on others.
        in_effect = compiled.get_property(hint.inference_precision()).to_string()
        if in_effect != _TYPES[precision] and in_effect != precision:
            raise BackendError(
                f"OpenVINO computes in {in_effect} here instead of {precision}. Ask for --precision f32."
            )
        layers = _heavy_layers(compiled)
        if layers and precision not in layers:
            # The hint is only a wish: a layer without a kernel in this precision runs in another.
            raise BackendError(
                f"OpenVINO runs none of the {sum(layers.values())} layers that cost time in {precision} "
                f"({_listed(layers)}). Export with another lowering, or ask for --precision f32."
            )
        self.precision = precision
        device = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
        self.provider = f"OpenVINO {openvino.__version__.partition('-')[0]}, {device}"
        self.detail = _listed(layers)
        self.num_parallel = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if streaming else 1
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
        # Otherwise the next line would wait for ever.
        assert not self._closed
        request = self._requests.get()
        try:
            # The results are copies (share_outputs is off): the next call writes to the same buffers.
            results = request.infer(dict(enumerate(inputs)), share_inputs=True)
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
    return ("f32", "bf16") if bf16_unit() else ("f32",)


BACKEND = Backend(
    summary="OpenVINO, CPU",
    runs="graph",
    precisions=_precisions,
    open=_OpenVino,
    # It computes in bf16 from a float32 graph.
    graph_of=lambda precision: "f32" if precision == "bf16" else precision,
)
