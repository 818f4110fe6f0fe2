"""ONNX Runtime on the CPU: float32, and int8 where a graph is quantised."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from fastdirs.backends import Array, Backend, Kept, Session
from fastdirs.backends._memory import enough_memory
from fastdirs.backends._ort_session import CPU, heavy_layers, open_graph, require_layers
from fastdirs.errors import BackendError
from fastdirs.recipe import Batch

_OFFERED = ("f32", "int8")
# Every value is rounded to f16, but products and sums are in float32: good to verify a graph, not to run it.
_EMULATED = {"f16": " (f16 rounded, computed in f32)"}
# What is given is float32; what a graph takes may differ.
_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class _Ort(Session):
    def __init__(
        self, source: Path, precision: str, streaming: bool = False, batch: Batch | None = None
    ) -> None:
        if precision not in (*_OFFERED, *_EMULATED):
            raise BackendError(
                f"ort has no precision {precision!r} on CPUs: ONNX Runtime does not compute in it. "
                f"Use {' or '.join(_OFFERED)}."
            )
        layers, emulated = heavy_layers(source), _EMULATED.get(precision, "")
        if "int8" in layers:
            # What a graph asks for and what is made of it may differ: layers are counted in the latter.
            with tempfile.TemporaryDirectory(prefix="fastdirs-ort-") as folder:
                optimised = Path(folder) / source.name
                session = open_graph(source, CPU, optimised=optimised)
                layers = heavy_layers(optimised, executed=True)
            emulated = " (int8 rounded, computed in f32)" if precision == "f32" else ""
        else:
            session = open_graph(source, CPU)
        words = require_layers(layers, precision, source.name)
        self._session: onnxruntime.InferenceSession | None = session
        self._inputs = session.get_inputs()
        self.precision = precision
        (provider,) = session.get_providers()
        self.provider = f"ONNX Runtime {onnxruntime.__version__}, {provider}{emulated}"
        self.detail = "" if precision == "f32" else words
        self.num_parallel = 1

    def run_all(self, inputs: Sequence[Kept]) -> list[Array]:
        assert self._session is not None
        arrays = {
            each.name: np.asarray(value, _NUMPY.get(each.type))
            for each, value in zip(self._inputs, inputs, strict=True)
        }
        with enough_memory():
            outputs: list[Array] = self._session.run(None, arrays)
        return [each.astype(np.float32) if each.dtype == np.float16 else each for each in outputs]

    def close(self) -> None:
        self._session = None


BACKEND = Backend(summary="ONNX Runtime, CPU", runs="graph", precisions=lambda: _OFFERED, open=_Ort)
