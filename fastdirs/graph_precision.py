"""A float32 synthesis graph becomes one whose work on pictures is in f16 or bf16, for what runs it as typed.

The rule looks at operators and shapes alone. A *picture* begins at a convolution, or where a reshape gives
rows and columns, and is whatever is computed from one. Work on pictures is in low precision, but for

- what is computed from vectors alone (styles, coefficients of demodulation): it is cheap;
- statistics of pictures (squares, sums, roots, quotients), whose range low precision lacks; they are vectors;
- normalisations, which compute statistics inside;
- the elementwise operators at the end, as pixels are made of what they give.

Casts stand where the two meet, one for each tensor.
"""

from collections import defaultdict
from collections.abc import Iterator
from operator import and_

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference, version_converter

from fastdirs.errors import BackendError

_TYPES = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
TYPED = tuple(_TYPES)
"""Precisions that a graph may say itself."""
# The first operator set whose convolutions take bf16.
_BF16_OPSET = 22

_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_PRODUCTS = {*_CONVOLUTIONS, "MatMul", "Gemm", "Einsum"}
_STATISTICS = {
    "Pow", "Sqrt", "Reciprocal", "Div", "Exp", "Log", "Sin", "Cos", "GlobalAveragePool", "ReduceMean",
    "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin", "ReduceProd",
    "ReduceLogSum", "ReduceLogSumExp", "CumSum",
}  # fmt: skip
# Their results are pictures; casts say themselves what they give.
_FULL = {
    "InstanceNormalization", "GroupNormalization", "LayerNormalization", "MeanVarianceNormalization",
    "LpNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Cast", "CastLike",
}  # fmt: skip
_ELEMENTWISE = {
    "Tanh", "Sigmoid", "HardSigmoid", "Clip", "Add", "Sub", "Mul", "Div", "Neg", "Relu", "LeakyRelu",
}  # fmt: skip
_MOVES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "DepthToSpace", "Slice", "Identity"}


def typed(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A copy whose work on pictures is in low precision.

    Inputs and `images` stay float32. The tensors between stages keep their names, and are of low precision
    where a node in low precision makes them; metadata is kept. A bf16 graph is raised to operator set 22.

    Args:
        model: A synthesis graph in float32, that ends in `images` `[batch, channels, height, width]`.
        precision: "f16" or "bf16".

    Raises:
        BackendError: A constant that does not fit into f16, control flow, no way to operator set 22, or
            nothing in the graph that low precision makes faster.
    """
    if any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute):
        raise BackendError(
            f"The graph has control flow (If, Loop or Scan), which is not given in {precision}. "
            f"Expected none: leave {precision} out."
        )
    made = _without_batch_norm(_raised(model) if precision == "bf16" else model)
    low = _low_nodes(made, precision)
    products = [node.op_type in _PRODUCTS for node in made.graph.node]
    if not any(map(and_, low, products)):
        raise BackendError(
            f"Nothing of this graph would be multiplied in {precision}. Expected a convolution of pictures"
            + (
                ", other than a transposed one: choose lowering 'subpixel', or "
                if precision == "bf16"
                else ": "
            )
            + f"leave {precision} out."
        )
    _Writer(made, precision).write(low)
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise BackendError(
            f"The graph is not valid in {precision}: {error}. Leave {precision} out, and report this."
        ) from error
    return made


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that rounds as a typed one does, to verify it where nothing computes in its type.

    Every tensor of low precision is held in float32, and rounded after the node that makes it. (ONNX Runtime
    also runs f16 on CPUs, but leaves out rounding between nodes there, and so about half of the error.) It is
    an emulation: it says nothing about speed, or about the order in which a GPU sums.

    Args:
        model: A graph of `typed`, whole or a part.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, low = made.graph, set(_TYPES.values())
    types = {info.name: info.type.tensor_type.elem_type for info in _values(model)}
    for tensor in graph.initializer:
        if tensor.data_type in low:
            exact = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
    del graph.node[:]
    for source in model.graph.node:
        graph.node.append(source)
        node = graph.node[-1]
        rounded = [name for name in source.output if types.get(name) in low]
        if node.op_type == "Cast" and (rounded or types.get(node.input[0]) in low):
            node.op_type = "Identity"
            del node.attribute[:]
        node.output[:] = [f"{name}.exact" if name in rounded else name for name in node.output]
        for name in rounded:
            short = f"{name}.rounded"
            graph.node.append(helper.make_node("Cast", [f"{name}.exact"], [short], to=types[name]))
            graph.node.append(helper.make_node("Cast", [short], [name], to=TensorProto.FLOAT))
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type in low:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    return made


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in an operator set that has bf16."""
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset >= _BF16_OPSET:
        return model
    try:
        raised: onnx.ModelProto = version_converter.convert_version(model, _BF16_OPSET)
    except (RuntimeError, version_converter.ConvertError, shape_inference.InferenceError) as error:
        raise BackendError(
            f"The graph cannot be raised from operator set {opset} to {_BF16_OPSET}, the first with bf16: "
            f"{error}. Export it in a newer one, or leave bf16 out."
        ) from error
    return raised


def _without_batch_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which a scale and an offset stand for each batch norm with constants.

    Variances may be too small for f16, and ONNX Runtime's CUDA kernels take no float32 beside f16.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        given = [numpy_helper.to_array(constants[name]) for name in node.input[1:] if name in constants]
        if node.op_type != "BatchNormalization" or len(given) < 4:
            made.graph.node.append(node)
            continue
        weight, bias, mean, variance = (array.astype(np.float64).reshape(-1, 1, 1) for array in given)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        scale, out = weight / np.sqrt(variance + epsilon), node.output[0]
        for name, array in ((f"{out}.scale", scale), (f"{out}.offset", bias - mean * scale)):
            made.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        made.graph.node.append(helper.make_node("Mul", [node.input[0], f"{out}.scale"], [f"{out}.scaled"]))
        made.graph.node.append(helper.make_node("Add", [f"{out}.scaled", f"{out}.offset"], [out]))
    return made


def _low_nodes(model: onnx.ModelProto, precision: str) -> list[bool]:
    """The rule: whether each node computes in low precision."""
    shapes, tail = _float_shapes(model), _tail(model.graph)
    pictures: set[str] = set()
    low = []
    for node in model.graph.node:
        made = [name for name in node.output if name in shapes]
        # Rows and columns [batch, channels, height, width]; a size that is not known is 0.
        unfolds = node.op_type == "Reshape" and any(
            len(shapes[name]) == 4 and shapes[name][2:] != [1, 1] for name in made
        )
        square = node.op_type == "Mul" and node.input[0] == node.input[1]
        reads = node.op_type in _CONVOLUTIONS or unfolds or not pictures.isdisjoint(node.input)
        if reads and not square and node.op_type not in _STATISTICS:
            pictures.update(made)
        of_pictures = bool(made) and made[0] in pictures and made[0] not in tail
        low.append(of_pictures and node.op_type not in _FULL and _computes_in(model, node, precision))
    return low


def _tail(graph: onnx.GraphProto) -> set[str]:
    """What is made from the first elementwise operator on after which only such and moves lead to the end."""
    readers = defaultdict[str, list[str]](list)
    tail: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in _ELEMENTWISE | _MOVES and tail.issuperset(readers[node.output[0]]):
            tail.add(node.output[0])
        for name in node.input:
            readers[name].append(node.output[0])
    for node in graph.node:
        if node.op_type in _MOVES and node.input[0] not in tail:
            tail.discard(node.output[0])
    return tail


def _float_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Sizes of every float32 tensor that is no constant."""
    return {
        info.name: [axis.dim_value for axis in info.type.tensor_type.shape.dim]
        for info in _values(model)
        if info.type.tensor_type.elem_type == TensorProto.FLOAT
    }


def _values(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """Type and shape of every tensor that is no constant."""
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    yield from (*graph.input, *graph.value_info, *graph.output)


def _schema(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
    """What ONNX says of a node's operator; None for one that it does not know."""
    versions = {each.domain or "ai.onnx": each.version for each in model.opset_import}
    if not onnx.defs.has(node.op_type, node.domain):
        return None
    return onnx.defs.get_schema(node.op_type, versions[node.domain or "ai.onnx"], node.domain)


def _computes_in(model: onnx.ModelProto, node: onnx.NodeProto, precision: str) -> bool:
    """Whether runtimes have a node's operator in low precision.

    Source: TensorRT has no transposed convolutions in bf16: NVIDIA/TensorRT issue 4829 of 11.0, and seen in
    TensorRT-RTX 1.7.
    """
    schema = _schema(model, node)
    if schema is None or (precision == "bf16" and node.op_type == "ConvTranspose"):
        return False
    allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
    name = TensorProto.DataType.Name(_TYPES[precision]).lower()
    return f"tensor({name})" in allowed.get(schema.outputs[0].type_str, ())


class _Writer:
    """Gives each node of a graph its inputs in the precision that it computes in."""

    def __init__(self, model: onnx.ModelProto, precision: str) -> None:
        self.model, self.precision, self.type = model, precision, _TYPES[precision]
        self.constants = {
            tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT
        }
        self.floats = {*_float_shapes(model), *self.constants}
        self.low: set[str] = set()
        self.twins: dict[str, str] = {}

    def write(self, low: list[bool]) -> None:
        """Rewrite the graph in place.

        Args:
            low: Whether each of its nodes computes in low precision.
        """
        graph = self.model.graph
        outputs = {value.name for value in graph.output}
        sources = list(graph.node)
        del graph.node[:]
        for node, is_low in zip(sources, low, strict=True):
            # A shape is the same in both; and some inputs have a type of their own, as the scales of Resize.
            if node.op_type not in ("Shape", "Size"):
                wanted = [is_low and self._follows(node, number) for number in range(len(node.input))]
                node.input[:] = [self._given(*each) for each in zip(node.input, wanted, strict=True)]
            made = [name for name in node.output if is_low and name in self.floats]
            self.low.update(name for name in made if name not in outputs)
            ends = {name: f"{name}.{self.precision}" for name in made if name in outputs}
            node.output[:] = [ends.get(name, name) for name in node.output]
            graph.node.append(node)
            for name, short in ends.items():
                graph.node.append(helper.make_node("Cast", [short], [name], name=name, to=TensorProto.FLOAT))
        read = {name for node in graph.node for name in node.input}
        for number in reversed(range(len(graph.initializer))):
            if graph.initializer[number].name not in read:
                del graph.initializer[number]
        for info in graph.value_info:
            if info.name in self.low:
                info.type.tensor_type.elem_type = self.type

    def _follows(self, node: onnx.NodeProto, number: int) -> bool:
        """Whether an input has the type of the output."""
        schema = _schema(self.model, node)
        assert schema is not None
        slot = schema.inputs[min(number, len(schema.inputs) - 1)]
        return bool(slot.type_str == schema.outputs[0].type_str)

    def _given(self, name: str, low: bool) -> str:
        """The name of a tensor in low precision or float32; what it is not yet is made, once."""
        if name not in self.floats or low == (name in self.low):
            return name
        if name not in self.twins:
            self.twins[name] = twin = f"{name}.{self.precision if low else 'f32'}"
            if name in self.constants:
                self.model.graph.initializer.append(self._rounded(self.constants[name], twin))
            else:
                to = self.type if low else TensorProto.FLOAT
                self.model.graph.node.append(helper.make_node("Cast", [name], [twin], name=twin, to=to))
        return self.twins[name]

    def _rounded(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
        """A constant in low precision."""
        exact = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            low = exact.astype(helper.tensor_dtype_to_np_dtype(self.type))
        lost = np.isfinite(exact) & ~np.isfinite(low)
        if lost.any():
            raise BackendError(
                f"{tensor.name} holds {exact[lost][0]:g}, which does not fit into {self.precision}. "
                "Expected at most 65504, the largest of f16: use bf16 or f32."
            )
        return numpy_helper.from_array(low, name)
