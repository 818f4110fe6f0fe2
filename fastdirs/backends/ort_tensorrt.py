"""ONNX Runtime on NVIDIA GPUs through TensorRT 10: compiled when it is opened, and kept."""

import ctypes
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime
import torch
from filelock import FileLock

from fastdirs.backends import Backend, Kept, Session
from fastdirs.backends._ort_gpu import CUDA, TENSORRT, lacks, load_libraries, needs, tensorrt_libraries
from fastdirs.backends._ort_session import (
    BoundSession,
    check_placement,
    graph_inputs,
    heavy_layers,
    open_graph,
    require_layers,
)
from fastdirs.backends._tensorrt_batch import batch_of
from fastdirs.errors import BackendError, SelectionError
from fastdirs.manifest import cache_dir, environment, sha256_file, sha256_json
from fastdirs.recipe import Batch

# TensorRT 10 takes the types of a graph for hints: without a switch it computes in float32.
_SWITCHES = {
    "f32": {},
    "f16": {"trt_fp16_enable": "1"},
    "bf16": {"trt_bf16_enable": "1"},
    "int8": {"trt_int8_enable": "1"},
}  # fmt: skip
# ONNX Runtime has no option against TF32, TensorRT's default for float32; only this, for the whole process,
# which has to be set before it begins. Source: microsoft/onnxruntime issue 26029.
_TF32 = "NVIDIA_TF32_OVERRIDE"
Opened = TypeVar("Opened")


class _OrtTensorRt(BoundSession):
    """A session whose engine serves a range of batch sizes; beyond it ONNX Runtime would compile another."""

    def __init__(self, batch: Batch, *arguments: Any, **keywords: Any) -> None:
        super().__init__("ort_tensorrt", *arguments, **keywords)
        self._batch = batch

    def _run(self, inputs: Sequence[Kept], reader: torch.cuda.Stream | None) -> list[torch.Tensor]:
        check_batch(inputs, [each.shape for each in self._inputs], self._batch)
        return super()._run(inputs, reader)


def _open(source: Path, precision: str, streaming: bool = False, batch: Batch | None = None) -> Session:
    if precision not in _SWITCHES:
        raise BackendError(
            f"ort_tensorrt has no precision {precision!r}. Expected one of: {', '.join(_SWITCHES)}."
        )
    if missing := _lacks():
        raise BackendError(missing)
    if precision not in _precisions():
        raise BackendError(
            "TensorRT multiplies float32 with 10 bits of 23 (TF32), and ONNX Runtime cannot tell it not to. "
            f"Set {_TF32}=0 before Python starts, or use ort_cuda or trt for f32."
        )
    load_libraries(TENSORRT)
    words = require_layers(heavy_layers(source), precision, source.name)
    batch = batch or batch_of(source)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    shared = {"device_id": str(stream.device_index), "user_compute_stream": str(stream.cuda_stream)}
    options = shared | _SWITCHES[precision] | profile(graph_inputs(source), batch)
    folder = _cache(source, options)
    if folder is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }
    others = [(CUDA, shared | {"use_tf32": "0"})]

    def opened() -> onnxruntime.InferenceSession:
        return open_graph(source, TENSORRT, options, others, hint=needs(TENSORRT))

    session = opened() if folder is None else open_kept(folder, opened)
    return _OrtTensorRt(
        batch,
        session,
        precision,
        stream,
        # While one batch goes to the host, in a stream of its own, the next is computed.
        num_parallel=2 if streaming else 1,
        detail=", ".join(filter(None, (words, check_placement(session, TENSORRT)))),
    )


def profile(inputs: dict[str, list[int | str]], batch: Batch) -> dict[str, str]:
    """The options that say which batch sizes the engine serves: 1, the usual and the largest one.

    Args:
        inputs: Sizes of each input of the graph; a name stands for the batch.
        batch: Batch sizes.
    """
    dynamic = {name: shape for name, shape in inputs.items() if any(isinstance(n, str) for n in shape)}
    return {
        f"trt_profile_{kind}_shapes": ",".join(
            f"{name}:{'x'.join(str(size if isinstance(axis, str) else axis) for axis in shape)}"
            for name, shape in dynamic.items()
        )
        for kind, size in (("min", 1), ("opt", batch.opt), ("max", batch.max))
        if dynamic
    }


def check_batch(inputs: Sequence[Kept], shapes: Sequence[Sequence[int | str]], batch: Batch) -> None:
    """Raise unless the inputs' batch is one that the engine serves.

    Args:
        inputs: Any, `[batch, ...]` where their shape has a batch.
        shapes: Sizes of each input of the graph; a name stands for the batch.
        batch: Batch sizes.

    Raises:
        SelectionError: Too many, or none.
    """
    for value, shape in zip(inputs, shapes, strict=True):
        if shape and isinstance(shape[0], str) and not 1 <= value.shape[0] <= batch.max:
            raise SelectionError(
                f"The batch has {value.shape[0]} images. The engine serves 1 to {batch.max}: "
                "choose a size within, or export with a larger --max-batch."
            )


def open_kept(folder: Path, opened: Callable[[], Opened]) -> Opened:
    """Open what keeps an engine in a folder, one process at a time.

    ONNX Runtime writes engines where it looks for them: another process may find half of one, and so does
    the next one after a process that ended meanwhile. What is not opened with what was kept is made anew.

    Args:
        folder: Where the engine is kept; it exists.
        opened: Opens it.

    Raises:
        BackendError: It cannot be opened from an empty folder either.
    """
    with FileLock(_lock_of(folder)):
        kept = any(folder.iterdir())
        try:
            return opened()
        except BackendError:
            if not kept:
                raise
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        return opened()


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _cache(source: Path, options: dict[str, str]) -> Path | None:
    """A folder for the engine of this graph, GPU, libraries and options; None where none can be made.

    ONNX Runtime names engines after parts of that only, and would take one of an older graph.
    """
    stable = {key: value for key, value in options.items() if key.startswith("trt_")}
    gpu = [torch.cuda.get_device_name(), *torch.cuda.get_device_capability()]
    libraries = [environment(), onnxruntime.__version__, _tensorrt_version()]
    key = [sha256_file(source), stable, gpu, libraries, os.environ.get(_TF32)]
    folder = cache_dir() / "ort_tensorrt" / sha256_json(key)[:32]
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _lock_of(folder).touch()
        return folder
    return None


def _tensorrt_version() -> int:
    """As its library says, such as 101601; 0 where pip has not installed it."""
    for path in tensorrt_libraries():
        with suppress(OSError):
            return int(ctypes.CDLL(str(path)).getInferLibVersion())
    return 0


def _precisions() -> tuple[str, ...]:
    if _lacks():
        return ()
    exact = os.environ.get(_TF32) == "0"
    return tuple(each for each in _SWITCHES if each != "f32" or exact)


def _lacks() -> str:
    return lacks(TENSORRT)


BACKEND = Backend(
    summary="ONNX Runtime, TensorRT 10",
    runs="graph",
    precisions=_precisions,
    open=_open,
    lacks=_lacks,
)
