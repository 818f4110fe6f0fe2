"""ONNX Runtime on the CPU."""

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from fastdirs.backends import Array, Backend, Kept, Session
from fastdirs.errors import BackendError
from fastdirs.recipe import Batch

_PROVIDER = "CPUExecutionProvider"


class _Ort(Session):
    def __init__(
        self, source: Path, precision: str, streaming: bool = False, batch: Batch | None = None
    ) -> None:
        if precision != "f32":
            raise BackendError(
                f"ort has no precision {precision!r} on CPUs: ONNX Runtime does not compute in it. Use f32."
            )
        # Nothing that a user renders is anybody else's business.
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        # Errors are raised; what remains are warnings about graph clean-up that a user cannot act on.
        options.log_severity_level = 3
        self._session: onnxruntime.InferenceSession | None = onnxruntime.InferenceSession(
            str(source), options, providers=[_PROVIDER]
        )
        self._names = [each.name for each in self._session.get_inputs()]
        providers = self._session.get_providers()
        if providers[0] != _PROVIDER:
            raise BackendError(
                f"ONNX Runtime chose {providers[0]} instead of {_PROVIDER}. "
                "Install onnxruntime, not a GPU build."
            )
        self.precision = precision
        self.provider = f"ONNX Runtime {onnxruntime.__version__}, {providers[0]}"
        self.detail = ""
        self.num_parallel = 1

    def run_all(self, inputs: Sequence[Kept]) -> list[Array]:
        assert self._session is not None
        outputs: list[Array] = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        return outputs

    def close(self) -> None:
        self._session = None


BACKEND = Backend(summary="ONNX Runtime, CPU", runs="graph", precisions=lambda: ("f32",), open=_Ort)
