"""A TensorRT engine runs on torch's CUDA tensors, its launches recorded as CUDA graphs where that works."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
# A server sees a few batch sizes again and again: full ones, single images, remainders.
_MOST_GRAPHS = 4
_DTYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT8": torch.int8,
    "UINT8": torch.uint8, "INT32": torch.int32, "INT64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip
_NARROW = (torch.float16, torch.bfloat16)
_RECORDS = ", CUDA graphs"
# torch records one CUDA graph at a time, and none while another is waited for or freed.
_RECORDING = Lock()


@dataclass(frozen=True)
class _Port:
    """An input or output of the engine, with its shapes at the smallest and the largest batch."""

    name: str
    dtype: torch.dtype
    smallest: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True)
class _Recorded:
    """A launch as a CUDA graph, which has fixed addresses: it reads `taken` and writes `given`.

    It is tied to the state of its context, which nothing else may use.
    """

    graph: torch.cuda.CUDAGraph
    context: Any
    taken: list[Tensor]
    given: list[Tensor]


_Shapes = tuple[tuple[int, ...], ...]


class _Lane:
    """What one call at a time uses: a stream, memory, a context for launches, and CUDA graphs by shapes."""

    def __init__(self, memory: Tensor) -> None:
        # Contexts of one stream run one after the other, so all of them compute in the same memory.
        self.memory = memory
        self.stream = torch.cuda.Stream(_DEVICE)  # type: ignore[no-untyped-call]
        memory.record_stream(self.stream)
        self.context: Any = None
        self.last: _Shapes = ()
        self.recorded: dict[_Shapes, _Recorded] = {}
        self._staging: dict[int, Tensor] = {}

    def forget(self, keep: int = 0) -> None:
        """Free all CUDA graphs but those used last."""
        with _RECORDING:
            # A GPU that has failed says so again, and has nothing to wait for.
            with suppress(RuntimeError):
                self.stream.synchronize()
            while len(self.recorded) > keep:
                del self.recorded[next(iter(self.recorded))]

    def staged(self, index: int, output: Tensor) -> Tensor:
        """An output on its way to pinned memory, which the lane's next call overwrites."""
        host = self._staging.get(index)
        if host is None or host.numel() < output.numel():
            host = self._staging[index] = torch.empty(output.numel(), dtype=output.dtype, pin_memory=True)
        return host[: output.numel()].view(output.shape).copy_(output, non_blocking=True)


class TensorRtSession(Session):
    """An opened engine.

    Args:
        library: "tensorrt" or "tensorrt-rtx".
        path: The engine file, which fits.
        content: Its manifest.
        gpu: The GPU.
        streaming: Ask for throughput: two calls at a time, so that one copies while the other computes.

    Attributes:
        cuda_graphs: Whether launches are recorded and replayed; `stop_recording` ends it.

    Source: NVIDIA TensorRT 11, `IExecutionContext`: tensors aligned to 256 bytes, a stream that is not the
        default one, one launch before a recorded one; and its best practices for CUDA graphs: a context for
        each of them, with shared memory.

    Raises:
        BackendError: The engine cannot be loaded, or there is too little memory on the GPU.
    """

    def __init__(self, library: str, path: Path, content: Json, gpu: Gpu, streaming: bool) -> None:
        trt, self._log = load(library), logger(library)
        self._library, self._path = library, path
        self._log.lines.clear()
        self.precision = content["precision"]
        self.device = _DEVICE
        self.num_parallel = 2 if streaming else 1
        layers = sorted(content["heavy_layers"].items())
        words = ", ".join(f"{count} heavy layers in {precision}" for precision, count in layers)
        # TensorRT says of an engine which kernels it holds, but not in what they compute.
        self.detail = f"{words}, as the graph says" if words else ""
        self.provider = f"{TITLES[library]} {trt.__version__} on {gpu.name}"
        self.cuda_graphs = True
        self._closed = False
        self._lanes: SimpleQueue[_Lane] = SimpleQueue()
        # After the lanes, since it has to outlive their contexts.
        self._kernels: Any = None
        # An engine lives on the GPU that is torch's current one when it is loaded.
        with torch.cuda.device(_DEVICE):
            self._runtime = trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engine is None:
                raise BackendError(f"{path.name} cannot be loaded: {tail(self._log)}. Build it again.")
            self._inputs, self._outputs = (
                [self._port(each, content["profile"]) for each in content[ports]]
                for ports in ("inputs", "outputs")
            )
            for _ in range(self.num_parallel):
                self._lanes.put(self._new_lane())
        # What is in effect is read back: each lane launches, launches once more and records, and replays.
        for _ in range(3 * self.num_parallel):
            self.run_all([np.zeros(port.smallest, np.float32) for port in self._inputs])
        if self.cuda_graphs:
            self.provider += _RECORDS

    def _port(self, described: Json, profile: Json) -> _Port:
        smallest, largest = (
            tuple(profile[end] if size == -1 else size for size in described["shape"])
            for end in ("min", "max")
        )
        name = described["name"]
        return _Port(name, _DTYPES[self._engine.get_tensor_dtype(name).name], smallest, largest)

    def _new_lane(self) -> _Lane:
        size = max(1, self._engine.device_memory_size_v2)
        try:
            lane = _Lane(torch.empty(size, dtype=torch.uint8, device=_DEVICE))
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"{self._path.name} computes in {size / 2**20:.0f} MiB of the GPU, which are not free. Free "
                "memory of the GPU, or build the engine again with a smaller --max-batch."
            ) from error
        lane.context = self._context(lane.memory)
        return lane

    def _context(self, memory: Tensor) -> Any:
        trt = load(self._library)
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            context = self._engine.create_execution_context(managed)
        else:
            # TensorRT for RTX compiles kernels for a shape in the background while slower ones serve, which
            # a CUDA graph would keep for ever. So the first launch waits for them.
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            # A context for a CUDA graph takes over what the lane's own has compiled.
            if self._kernels is None:
                self._kernels = config.create_runtime_cache()
            config.set_runtime_cache(self._kernels)
            context = self._engine.create_execution_context(runtime_config=config)
        if context is None:
            raise BackendError(f"{self._path.name} cannot run: {tail(self._log)}. Free memory of the GPU.")
        context.set_device_memory(memory.data_ptr(), memory.numel())
        return context

    def stop_recording(self, reason: str) -> None:
        """From now on launch whatever is run.

        Args:
            reason: Why, for `detail`.
        """
        self.cuda_graphs = False
        self.provider = self.provider.removesuffix(_RECORDS)
        self.detail = "; ".join(filter(None, (self.detail, f"no CUDA graphs: {reason}")))

    def run_all(self, inputs: Sequence[Kept]) -> list[Array]:
        with self._lane() as lane:
            outputs, _ = self._launched(lane, inputs)
            # On the host there are no 16-bit floats.
            wide = [output.float() if output.dtype in _NARROW else output for output in outputs]
            staged = [lane.staged(index, output) for index, output in enumerate(wide)]
            lane.stream.synchronize()
            return [output.numpy().copy() for output in staged]

    def run_kept(self, inputs: Sequence[Kept]) -> list[Kept]:
        caller = torch.cuda.current_stream(_DEVICE)
        with self._lane() as lane:
            outputs, overwritten = self._launched(lane, inputs)
            if overwritten:
                outputs = [output.clone() for output in outputs]
            caller.wait_stream(lane.stream)
        for output in outputs:
            output.record_stream(caller)
        return list(outputs)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
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
            lane.last = ()
            if isinstance(error, torch.OutOfMemoryError):
                reason = "The batch does not fit into the memory of the GPU. Use a smaller --batch."
            else:
                reason = f"The GPU failed: {str(error).strip().splitlines()[0]}. Start again."
            raise BackendError(reason) from error
        finally:
            self._lanes.put(lane)

    def _launched(self, lane: _Lane, inputs: Sequence[Kept]) -> tuple[list[Tensor], bool]:
        """The outputs, and whether the lane's next call may overwrite them."""
        tensors = [self._placed(port, each, lane) for port, each in zip(self._inputs, inputs, strict=True)]
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        repeated, lane.last = shapes == lane.last, shapes
        recorded = lane.recorded.pop(shapes, None) if self.cuda_graphs else None
        if recorded is not None:
            # What was used last stands last, and is kept longest.
            lane.recorded[shapes] = recorded
            for taken, tensor in zip(recorded.taken, tensors, strict=True):
                taken.copy_(tensor)
            recorded.graph.replay()
            return recorded.given, True
        if not (repeated and self.cuda_graphs):
            return self._launch(lane, lane.context, tensors), False
        return self._record(lane, shapes, [tensor.clone() for tensor in tensors])

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

    def _launch(self, lane: _Lane, context: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Enqueue the engine on tensors that stay alive, or whose memory this stream alone uses again."""
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

    def _record(self, lane: _Lane, shapes: _Shapes, taken: list[Tensor]) -> tuple[list[Tensor], bool]:
        """Launch, and record the launch; one that cannot be stays a launch."""
        if len(lane.recorded) >= _MOST_GRAPHS:
            lane.forget(_MOST_GRAPHS - 1)
        context = self._context(lane.memory)
        given = self._launch(lane, context, taken)
        graph, reason = torch.cuda.CUDAGraph(), ""
        if not getattr(context, "is_stream_capturable", lambda stream: True)(lane.stream.cuda_stream):
            reason = "the engine cannot be recorded"
        else:
            try:
                # Only this thread is watched: others allocate and copy meanwhile.
                with (
                    _RECORDING,
                    torch.cuda.graph(graph, stream=lane.stream, capture_error_mode="thread_local"),
                ):
                    launched = context.execute_async_v3(lane.stream.cuda_stream)
                reason = "" if launched else tail(self._log)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
        if reason:
            # The launch has to end before its context does.
            lane.stream.synchronize()
            self.stop_recording(reason)
            return given, False
        lane.recorded[shapes] = _Recorded(graph, context, taken, given)
        return given, True

    def _check(self, done: bool) -> None:
        if not done:
            raise BackendError(
                f"TensorRT does not run this batch: {tail(self._log)}. Build the engine again."
            )
