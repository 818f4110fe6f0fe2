"""A graph in ONNX Runtime on one execution provider, with no silent fall to another."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto
from torch import Tensor

from fastdirs.backends import Array, Kept, Session
from fastdirs.backends._memory import enough_memory
from fastdirs.backends._transfer import on_host, placed
from fastdirs.errors import BackendError, PrecisionError

CPU = "CPUExecutionProvider"
# What ONNX Runtime calls a type, to torch and to ONNX.
TYPES = {
    "tensor(float)": (torch.float32, TensorProto.FLOAT),
    "tensor(float16)": (torch.float16, TensorProto.FLOAT16),
    "tensor(bfloat16)": (torch.bfloat16, TensorProto.BFLOAT16),
    "tensor(uint8)": (torch.uint8, TensorProto.UINT8),
}
_PRECISIONS = {TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16"}
_HEAVY = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul"}
_HEAVY_IN_INT8 = {
    "QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
}  # fmt: skip
# They work on pictures; what else is left to another provider computes shapes.
_ON_PICTURES = _HEAVY | {
    "DepthToSpace", "InstanceNormalization", "LeakyRelu", "Pad", "Relu", "Resize", "Sigmoid", "Tanh",
}  # fmt: skip


def open_graph(
    source: Path | bytes,
    provider: str,
    options: Mapping[str, str] | None = None,
    others: Sequence[tuple[str, Mapping[str, str]]] = (),
    hint: str = "Export it again, or use another backend.",
    optimised: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open a graph on an execution provider, or not at all.

    Args:
        source: ONNX file, or its content.
        provider: Its name; that it takes part is read back.
        options: Its options.
        others: Names and options of those that may take what it leaves. The CPU is always the last.
        hint: What to do if it fails.
        optimised: Where to write the graph that ONNX Runtime makes of it.

    Raises:
        BackendError: The graph is refused, or the provider does not take part.
    """
    # Nothing that a user renders is anybody else's business.
    onnxruntime.disable_telemetry_events()
    settings = onnxruntime.SessionOptions()
    # Errors are raised; what remains are warnings about graph clean-up that a user cannot act on.
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if optimised is not None:
        settings.optimized_model_filepath = str(optimised)
    providers = {provider: dict(options or {}), **{name: dict(each) for name, each in others}}
    providers.setdefault(CPU, {})
    name = source.name if isinstance(source, Path) else "a graph"
    try:
        session = onnxruntime.InferenceSession(
            source if isinstance(source, bytes) else str(source),
            settings,
            providers=list(providers),
            provider_options=list(providers.values()),
            enable_fallback=0,
        )
    except Exception as error:
        # Its exceptions have no base of their own.
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise BackendError(f"ONNX Runtime refuses {name} on {provider}: {reason}. {hint}") from error
    # A provider whose libraries do not load is left out without an exception.
    if session.get_providers()[0] != provider:
        raise BackendError(f"ONNX Runtime chose {session.get_providers()[0]} instead of {provider}. {hint}")
    return session


def check_placement(session: onnxruntime.InferenceSession, provider: str) -> str:
    """How many nodes each provider was given, in words, as the session itself says.

    Raises:
        BackendError: The provider was given nothing, or another one something that works on pictures.
    """
    nodes: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    elsewhere = {
        name: sorted(count.keys() & _ON_PICTURES) for name, count in nodes.items() if name != provider
    }
    slow = [f"{', '.join(types)} to {name}" for name, types in sorted(elsewhere.items()) if types]
    if provider not in nodes or slow:
        left = f"leaves {' and '.join(slow)}" if slow else "takes none of its nodes"
        raise BackendError(
            f"{provider} {left}. Expected it to run all that works on pictures: use the graph of another "
            "precision, another lowering, or another backend."
        )
    return ", ".join(f"{sum(count.values())} nodes on {name}" for name, count in sorted(nodes.items()))


def heavy_layers(path: Path, executed: bool = False) -> Counter[str]:
    """How many of the layers that cost time a graph has in which precision.

    Args:
        path: ONNX file.
        executed: It is what a runtime made of a graph: a layer that still reads what was quantised and
            dequantised was not fused with that, and multiplies floats.

    Raises:
        BackendError: It cannot be read.
    """
    graph = _read(path)
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    counts: Counter[str] = Counter()
    for node in graph.node:
        operands = node.input[:2]
        if node.op_type in _HEAVY_IN_INT8:
            counts["int8"] += 1
        elif node.op_type in _HEAVY:
            quantised = not executed and all(made_by.get(name) == "DequantizeLinear" for name in operands)
            counts["int8" if quantised else _PRECISIONS.get(types.get(operands[-1], 0), "f32")] += 1
    return counts


def graph_inputs(path: Path) -> dict[str, list[int | str]]:
    """Sizes of the inputs of a graph, by name; a name stands for a size that is not fixed.

    Args:
        path: ONNX file.

    Raises:
        BackendError: It cannot be read.
    """
    graph = _read(path)
    given = {tensor.name for tensor in graph.initializer}
    return {
        each.name: [axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim]
        for each in graph.input
        if each.name not in given
    }


def _read(path: Path) -> onnx.GraphProto:
    try:
        return onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError) as error:
        raise BackendError(f"{path} is no ONNX graph: {error}. Export it again.") from error


def require_layers(layers: Mapping[str, int], precision: str, name: str) -> str:
    """Layers that cost time by precision, in words.

    Raises:
        PrecisionError: None of them is in the precision, or for "f32" some are not. Without any, all is well.
    """
    words = ", ".join(f"{count} heavy layers in {each}" for each, count in sorted(layers.items()))
    if layers and (precision not in layers or (precision == "f32" and len(layers) > 1)):
        raise PrecisionError(
            f"{name} is no {precision} graph: it has {words}, and ONNX Runtime computes in what the graph "
            f"says. Give it the graph in {precision}, or ask for the precision of this one."
        )
    return words


class BoundSession(Session):
    """A graph whose inputs and outputs are bound where they are: between two runs on a GPU nothing is copied.

    Args:
        name: The backend's, for messages.
        session: Opened; on a GPU with `stream` as its `user_compute_stream`.
        precision: Of the graph.
        stream: What it computes in; None where it computes on the CPU.
        num_parallel: See `Session`.
        provider: What to say of the provider beside its name.
        detail: See `Session`.

    Raises:
        BackendError: A type or an output size that cannot be bound.
    """

    def __init__(
        self,
        name: str,
        session: onnxruntime.InferenceSession,
        precision: str,
        stream: torch.cuda.Stream | None,
        num_parallel: int = 1,
        provider: str = "",
        detail: str = "",
    ) -> None:
        self.precision = precision
        self.provider = f"ONNX Runtime {onnxruntime.__version__}, {session.get_providers()[0]}{provider}"
        self.detail = detail
        self.num_parallel = num_parallel
        self.device = "cpu" if stream is None else "cuda"
        self._session: onnxruntime.InferenceSession | None = session
        self._stream = stream
        # Results go to the host in other streams, one for each call at a time: the next batch, which the
        # session's stream computes meanwhile, must neither wait for that nor be waited for.
        self._readers: SimpleQueue[torch.cuda.Stream | None] = SimpleQueue()
        for _ in range(num_parallel):
            self._readers.put(None if stream is None else torch.cuda.Stream())  # type: ignore[no-untyped-call]
        self._index = 0 if stream is None else stream.device_index
        self._lock = Lock()
        self._inputs, self._outputs = session.get_inputs(), session.get_outputs()
        known = {axis for each in self._inputs for axis in each.shape}
        for each in (*self._inputs, *self._outputs):
            odd = [axis for axis in each.shape if not isinstance(axis, int) and axis not in known]
            if each.type not in TYPES or odd:
                raise BackendError(
                    f"{name} cannot bind {each.name}, {each.type} {each.shape}. Expected one of "
                    f"{', '.join(TYPES)}, of fixed size but for the batch: export the graph with fastdirs."
                )
        self._options = onnxruntime.RunOptions()
        # Streams are put in order below; waiting for the GPU is up to those who read the values.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run_all(self, inputs: Sequence[Kept]) -> list[Array]:
        """See `Session`."""
        reader = self._readers.get()
        try:
            with enough_memory():
                made = self._run(inputs, reader)
                with torch.cuda.stream(reader):
                    return [on_host(output) for output in made]
        finally:
            self._readers.put(reader)

    def run_kept(self, inputs: Sequence[Kept]) -> list[Kept]:
        """See `Session`."""
        caller = None if self._stream is None else torch.cuda.current_stream()
        with enough_memory():
            return list(self._run(inputs, caller))

    def close(self) -> None:
        """See `Session`."""
        if self._stream is not None and self._session is not None:
            self._stream.synchronize()
        self._session = None

    def _run(self, inputs: Sequence[Kept], reader: torch.cuda.Stream | None) -> list[Tensor]:
        """The outputs, computed after what the caller's stream holds and before what `reader` does next."""
        assert self._session is not None
        caller = None if self._stream is None else torch.cuda.current_stream()
        with self._lock, torch.inference_mode(), torch.cuda.stream(self._stream):
            if self._stream is not None and caller is not None:
                self._stream.wait_stream(caller)
            given = [
                placed(value, self.device, TYPES[each.type][0])
                for each, value in zip(self._inputs, inputs, strict=True)
            ]
            sizes = {
                axis: size
                for each, tensor in zip(self._inputs, given, strict=True)
                for axis, size in zip(each.shape, tensor.shape, strict=True)
            }
            made = [
                torch.empty(
                    [axis if isinstance(axis, int) else sizes[axis] for axis in each.shape],
                    dtype=TYPES[each.type][0],
                    device=self.device,
                )
                for each in self._outputs
            ]
            binding = self._session.io_binding()
            for bind, ports, tensors in (
                (binding.bind_input, self._inputs, given),
                (binding.bind_output, self._outputs, made),
            ):
                for each, tensor in zip(ports, tensors, strict=True):
                    shape, kind = tuple(tensor.shape), TYPES[each.type][1]
                    bind(each.name, self.device, self._index, kind, shape, tensor.data_ptr())
            self._session.run_with_iobinding(binding, self._options)
            if self._stream is not None and reader is not None:
                # Still within the lock: what others begin next is not waited for.
                reader.wait_stream(self._stream)
                for tensor in made:
                    # Its memory must not be used again before it is read.
                    tensor.record_stream(reader)
        return made
