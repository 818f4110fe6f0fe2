"""ONNX Runtime on NVIDIA GPUs through CUDA and cuDNN: nothing is compiled, so it opens at once."""

from pathlib import Path

import torch

from fastdirs.backends import Backend, Session
from fastdirs.backends._ort_gpu import CUDA, lacks, load_libraries, needs
from fastdirs.backends._ort_session import (
    BoundSession,
    check_placement,
    heavy_layers,
    open_graph,
    require_layers,
)
from fastdirs.errors import BackendError
from fastdirs.recipe import Batch

_OFFERED = ("f32", "f16")
# There are convolutions in bf16, but no transposed ones and no DepthToSpace: most generators are refused.
_SOME = ("bf16",)
# It has no kernels for quantised convolutions: values are rounded to int8, and multiplied as float32.
_EMULATED = {"int8": " (int8 rounded, computed in f32)"}


def _open(source: Path, precision: str, streaming: bool = False, batch: Batch | None = None) -> Session:
    if precision not in (*_OFFERED, *_SOME, *_EMULATED):
        raise BackendError(
            f"ort_cuda has no precision {precision!r}. Expected one of: {', '.join(_OFFERED)}."
        )
    if missing := _lacks():
        raise BackendError(missing)
    load_libraries(CUDA)
    words = require_layers(heavy_layers(source), precision, source.name)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    options = {
        "device_id": str(stream.device_index),
        "user_compute_stream": str(stream.cuda_stream),
        # Otherwise float32 is multiplied with 10 bits of 23.
        "use_tf32": "0",
    }
    session = open_graph(source, CUDA, options, hint=needs(CUDA))
    return BoundSession(
        "ort_cuda",
        session,
        precision,
        stream,
        # While one batch goes to the host, in a stream of its own, the next is computed.
        num_parallel=2 if streaming else 1,
        provider=_EMULATED.get(precision, ""),
        detail=", ".join(filter(None, (words, check_placement(session, CUDA)))),
    )


def _lacks() -> str:
    return lacks(CUDA)


BACKEND = Backend(
    summary="ONNX Runtime, CUDA",
    runs="graph",
    precisions=lambda: () if _lacks() else _OFFERED,
    open=_open,
    lacks=_lacks,
)
