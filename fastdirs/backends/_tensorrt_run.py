"""A TensorRT engine runs on torch's CUDA tensors, its launches recorded as CUDA graphs where that works."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdirs.backends import Array, Kept, Session
from fastdirs.backends._tensorrt_library import TITLES, Gpu, load, logger, tail
from fastdirs.errors import BackendError, SelectionError
from fastdirs.manifest import Json

_DEVICE = "cuda:0"
_ALIGNMENT = 256
_DTYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT8": torch.int8,
    "UINT8": torch.uint8, "INT32": torch.int32, "INT64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip
_NARROW = (torch.float16, torch.bfloat16)
# torch records one CUDA graph at a time.
_RECORDING = Lock()


@dataclass(frozen=True)
class _Port:
    """An input or output of the engine, with its shapes at the smallest and the largest batch."""

    name: str
    dtype: torch.dtype
    smallest: tuple[int, ...]
    largest: tuple[int, ...]


class _Lane:
    """What one call at a time uses: an execution context, a stream, and the last launch as a CUDA graph.

    A CUDA graph has fixed addresses, so it reads `taken` and writes `given`.
    """

    def __init__(self, context: Any) -> None:
        self.context = context
        self.stream = torch.cuda.Stream(_DEVICE)  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[int, ...]] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.taken: list[Tensor] = []
        self.given: list[Tensor] = []

    def forget(self) -> None:
        """Free the CUDA graph and its memory."""
        self.graph, self.taken, self.given = None, [], []


class TensorRtSession(Session):
    """An opened engine.

    Args:
        library: "tensorrt" or "tensorrt-rtx".
        path: The engine file, which fits.
        content: Its manifest.
        gpu: The GPU.
        streaming: Ask for throughput: two calls at a time, so that one copies while the other computes.

    Attributes:
        cuda_graphs: Whether launches are recorded and replayed; may be set to False.

    Source: NVIDIA TensorRT 11, `IExecutionContext`: tensors aligned to 256 bytes, a stream that is not the
        default one, one launch before a recorded one.

    Raises:
        BackendError: The engine cannot be loaded, or there is too little memory on the GPU.
    """

    def __init__(self, library: str, path: Path, content: Json, gpu: Gpu, streaming: bool) -> None:
        trt, self._log = load(library), logger(library)
        self._log.lines.clear()
        self.precision = content["precision"]
        self.device = _DEVICE
        self.num_parallel = 2 if streaming else 1
        self.detail = ""
        self.cuda_graphs = True
        self._closed = False
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BackendError(f"{path.name} cannot be loaded: {tail(self._log)}. Build it again.")
        self._inputs, self._outputs = (
            [self._port(each, content["profile"]) for each in content[ports]]
            for ports in ("inputs", "outputs")
        )
        self._lanes: SimpleQueue[_Lane] = SimpleQueue()
        for _ in range(self.num_parallel):
            self._lanes.put(_Lane(self._context(trt, path)))
        # What is in effect is read back: each lane launches, launches once more and records, and replays.
        for _ in range(3 * self.num_parallel):
            self.run_all([np.zeros(port.smallest, np.float32) for port in self._inputs])
        recorded = ", CUDA graphs" if self.cuda_graphs else ""
        self.provider = f"{TITLES[library]} {trt.__version__} on {gpu.name}{recorded}"

    def _port(self, described: Json, profile: Json) -> _Port:
        smallest, largest = (
            tuple(profile[end] if size == -1 else size for size in described["shape"])
            for end in ("min", "max")
        )
        name = described["name"]
        return _Port(name, _DTYPES[self._engine.get_tensor_dtype(name).name], smallest, largest)

    def _context(self, trt: Any, path: Path) -> Any:
        strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            context = self._engine.create_execution_context()
        else:
            # TensorRT for RTX compiles kernels for a shape in the background while slower ones serve, which
            # a CUDA graph would keep for ever. So the first launch waits for them.
            config = self._engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = self._engine.create_execution_context(runtime_config=config)
        if context is None:
            raise BackendError(f"{path.name} cannot run: {tail(self._log)}. Free memory of the GPU.")
        return context

    def run_all(self, inputs: Sequence[Kept]) -> list[Array]:
        # The results lie in pinned memory, from where torch takes it back once they are gone.
        with self._lane() as lane:
            outputs = []
            for output in self._launched(lane, inputs):
                # On the host there are no 16-bit floats.
                wide = output.float() if output.dtype in _NARROW else output
                host = torch.empty(wide.shape, dtype=wide.dtype, pin_memory=True)
                outputs.append(host.copy_(wide, non_blocking=True))
            lane.stream.synchronize()
        return [output.numpy() for output in outputs]

    def run_kept(self, inputs: Sequence[Kept]) -> list[Kept]:
        caller = torch.cuda.current_stream(_DEVICE)
        with self._lane() as lane:
            outputs = self._launched(lane, inputs)
            if lane.graph is not None:
                outputs = [output.clone() for output in outputs]
            caller.wait_stream(lane.stream)
        for output in outputs:
            output.record_stream(caller)
        return list(outputs)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        torch.cuda.synchronize(_DEVICE)
        while not self._lanes.empty():
            self._lanes.get().forget()
        self._engine = self._runtime = None

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        """A free lane, on whose stream the work of the block goes, after what the caller's stream holds."""
        # Otherwise the next line but one would wait for ever.
        assert not self._closed
        caller = torch.cuda.current_stream(_DEVICE)
        lane = self._lanes.get()
        try:
            lane.stream.wait_stream(caller)
            with torch.no_grad(), torch.cuda.stream(lane.stream):
                yield lane
        except RuntimeError as error:
            lane.forget()
            if isinstance(error, torch.OutOfMemoryError):
                reason = "The batch does not fit into the memory of the GPU. Use a smaller --batch."
            else:
                reason = f"The GPU failed: {str(error).strip().splitlines()[0]}. Start again."
            raise BackendError(reason) from error
        finally:
            self._lanes.put(lane)

    def _launched(self, lane: _Lane, inputs: Sequence[Kept]) -> list[Tensor]:
        """The outputs, which a lane with a CUDA graph overwrites with the next ones."""
        tensors = [self._placed(port, each, lane) for port, each in zip(self._inputs, inputs, strict=True)]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        repeated, lane.shapes = shapes == lane.shapes, shapes
        if not (repeated and self.cuda_graphs):
            lane.forget()
            return self._launch(lane, tensors)
        if lane.graph is None:
            lane.taken = [tensor.clone() for tensor in tensors]
            lane.given = self._launch(lane, lane.taken)
            self._record(lane)
        else:
            for taken, tensor in zip(lane.taken, tensors, strict=True):
                taken.copy_(tensor)
            lane.graph.replay()
        return lane.given

    def _placed(self, port: _Port, given: Kept, lane: _Lane) -> Tensor:
        """An input on the GPU as the engine wants it: copied only if it has to be."""
        size = given.shape[0] if len(given.shape) else 0
        if not port.smallest[0] <= size <= port.largest[0]:
            raise SelectionError(
                f"The batch has {size} images. This engine serves {port.smallest[0]} to {port.largest[0]}: "
                "choose a size within, or build it again with a larger --max-batch."
            )
        if tuple(given.shape[1:]) != port.largest[1:]:
            raise BackendError(
                f"{port.name} has shape {list(given.shape)}. Expected [batch, "
                f"{', '.join(map(str, port.largest[1:]))}]."
            )
        if isinstance(given, Tensor):
            tensor = given.to(_DEVICE, port.dtype)
            if given.is_cuda:
                # Its memory must not be used again before this stream has read it.
                given.record_stream(lane.stream)
        else:
            host = torch.empty(given.shape, dtype=torch.float32, pin_memory=True)
            host.numpy()[...] = given
            tensor = host.to(_DEVICE, non_blocking=True).to(port.dtype)
        tensor = tensor.contiguous()
        return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()

    def _launch(self, lane: _Lane, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Enqueue the engine on tensors that stay alive, or whose memory this stream alone uses again."""
        context = lane.context
        for port, tensor in zip(self._inputs, tensors, strict=True):
            self._check(context.set_input_shape(port.name, tuple(tensor.shape)))
            self._check(context.set_tensor_address(port.name, tensor.data_ptr()))
        self._check(not context.infer_shapes())
        outputs = []
        for port in self._outputs:
            shape = tuple(context.get_tensor_shape(port.name))
            outputs.append(torch.empty(shape, dtype=port.dtype, device=_DEVICE))
            self._check(context.set_tensor_address(port.name, outputs[-1].data_ptr()))
        self._check(context.execute_async_v3(lane.stream.cuda_stream))
        return outputs

    def _record(self, lane: _Lane) -> None:
        """Record the launch that has just been made; one that cannot be stays a launch."""
        ready = getattr(lane.context, "is_stream_capturable", lambda stream: True)
        if not ready(lane.stream.cuda_stream):
            self._record_nothing("the engine cannot be recorded")
            return
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread is watched: others allocate and copy meanwhile.
            with (
                _RECORDING,
                torch.cuda.graph(graph, stream=lane.stream, capture_error_mode="thread_local"),
            ):
                launched = lane.context.execute_async_v3(lane.stream.cuda_stream)
        except RuntimeError as error:
            self._record_nothing(str(error).strip().splitlines()[0])
            return
        if not launched:
            self._record_nothing(tail(self._log))
            return
        lane.graph = graph

    def _record_nothing(self, reason: str) -> None:
        self.cuda_graphs, self.detail = False, f"no CUDA graphs: {reason}"

    def _check(self, done: bool) -> None:
        if not done:
            raise BackendError(
                f"TensorRT does not run this batch: {tail(self._log)}. Build the engine again."
            )
