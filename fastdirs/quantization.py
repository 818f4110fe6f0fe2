"""A float32 synthesis graph becomes one whose convolutions compute in 8 bits, calibrated on latents."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fastdirs.backends import Array
from fastdirs.errors import ContractError, MissingDependencyError, RecipeError, SelectionError
from fastdirs.manifest import Json, write_bytes
from fastdirs.registry import install_hint

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Values further out are clipped. Clipping none costs up to a tenth more mean error; at 99.99 what is clipped
# shows as spots: of 27 grey levels instead of 14 (celeba-faces-64, 256 images).
_PERCENTILE = 99.999
# Of each tensor and batch that many values are looked at: ten of them lie outside.
_VALUES = 2**20
# Operators that only move values, so that what is quantised before them needs no quantising after them.
_MOVES = ("Concat", "DepthToSpace", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
# The axis of weights that is the output channel.
_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}


class _Levels(NamedTuple):
    """What an 8-bit number stands for: `scale * (number - zero)`."""

    scale: np.float32
    zero: np.int8 | np.uint8


def quantize(graph: Path, out: Path, batches: Iterable[Sequence[Array]], symmetric: bool = False) -> Json:
    """Write the graph whose inner convolutions have 8-bit weights and 8-bit inputs.

    Quantised are convolutions from which a way leads through another one to the picture: nearly all the work.
    In float32 stay those that write the picture (the last one, every to-RGB), matrix products (of styles and
    classes, of the first layer, of attention), and filters of single channels: they cost little time, and
    each of their errors shows. Weights have a scale for each output channel, inputs one that covers all but
    the outermost values. Every tensor keeps its name, and inputs and outputs their types.

    Args:
        graph: ONNX file in float32, opset 13 or later.
        out: ONNX file to write, with nodes `QuantizeLinear` and `DequantizeLinear`, which runtimes fuse.
        batches: Inputs of the graph, in order, `[batch, ...]` each; 64 to 128 images in all are enough.
        symmetric: Inputs in int8 around zero and biases in float32, as TensorRT demands, instead of uint8
            and int32, which are faster on CPUs and err less: ReLUs leave no negative values to represent.

    Returns:
        What was done: names of the layers in 8 bits and in float32, arithmetic, calibration, images.

    Raises:
        RecipeError: The graph has no convolution to quantise.
        SelectionError: No images to calibrate on.
        ContractError: The graph computes values that are not finite.
        MissingDependencyError: ONNX Runtime, which calibrates, is not installed.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference (2018), section 2, after training. Which layers and ranges is decided by measuring.
    """
    model = onnx.load(str(graph))
    places = _Places(model)
    layers = places.inner_convolutions()
    if not layers:
        raise RecipeError(
            f"{graph} has no convolution to quantise: none whose result passes through another one. "
            "Leave int8 out of [graph] precisions."
        )
    images, ranges = _ranges(model, list(dict.fromkeys(layer.input[0] for layer in layers)), batches)
    levels = {name: _levels(*each, symmetric) for name, each in ranges.items()}
    _rewrite(model, places, layers, levels, symmetric)
    onnx.checker.check_model(model, full_check=True)
    write_bytes(out, model.SerializeToString())
    quantised = [layer.name for layer in layers]
    return {
        "quantised": quantised,
        "left_in_float": [node.name for node in places.with_weights() if node.name not in quantised],
        "weights": "int8, a scale for each output channel",
        "activations": "int8, symmetric" if symmetric else "uint8",
        "calibration": f"percentile {_PERCENTILE}, mean of batches",
        "images": images,
    }


class _Places:
    """Who makes and who reads each tensor of a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.constants = {each.name: each for each in model.graph.initializer}
        self.outputs = {each.name for each in model.graph.output}
        self.made_by = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def with_weights(self) -> list[NodeProto]:
        """Nodes that multiply with weights of the graph."""
        kinds = (*_CHANNEL_AXIS, "Gemm", "MatMul")
        return [
            node
            for node in self.nodes
            if node.op_type in kinds and any(name in self.constants for name in node.input[:2])
        ]

    def inner_convolutions(self) -> list[NodeProto]:
        """Convolutions across channels from which another one is reached, in the order of the graph."""
        found: list[NodeProto] = []
        leading: set[str] = set()
        for node in reversed(self.nodes):
            leads = any(name in leading for name in node.output)
            convolves = self._mixes_channels(node)
            if convolves and leads:
                found.append(node)
            if convolves:
                leading.add(node.input[0])
            elif leads:
                leading.update(node.input)
        return found[::-1]

    def _mixes_channels(self, node: NodeProto) -> bool:
        groups = next((each.i for each in node.attribute if each.name == "group"), 1)
        return (
            node.op_type in _CHANNEL_AXIS
            and groups == 1
            and node.input[0] not in self.constants
            and all(name in self.constants for name in node.input[1:])
        )

    def origins(self, name: str, layers: Sequence[NodeProto]) -> list[str]:
        """Results of layers that a tensor only rearranges, maybe after ReLU, if nothing else reads them.

        Quantised there already, all on the way is 8 bits wide, and a convolution writes them itself: ReLU
        changes nothing about scales around zero, nor about those from zero.

        Args:
            name: Tensor that layers read.
            layers: All layers that are quantised.
        """
        made = {layer.output[0] for layer in layers}
        if any(node.output[0] not in made for node in self.readers[name]):
            return []
        found: list[str] = []
        todo = [name]
        while todo:
            each = todo.pop()
            if each in self.outputs or (each != name and len(self.readers[each]) > 1):
                return []
            if each in made:
                found.append(each)
                continue
            node = self.made_by.get(each)
            if node is None or node.op_type not in (*_MOVES, "Relu"):
                return []
            todo += node.input if node.op_type == "Concat" else node.input[:1]
        return [each for each in found if each != name]


def _ranges(
    model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Sequence[Array]]
) -> tuple[int, dict[str, tuple[float, float]]]:
    """How many images there are, and between which values nearly all of each tensor lies on average."""
    session = _session(model, names)
    inputs = [each.name for each in session.get_inputs()]
    images, lows, highs = 0, [], []
    for batch in batches:
        images += len(batch[0])
        tensors = session.run(list(names), dict(zip(inputs, batch, strict=True)))
        found = [_outermost(name, tensor) for name, tensor in zip(names, tensors, strict=True)]
        lows.append([low for low, _ in found])
        highs.append([high for _, high in found])
    if not images:
        raise SelectionError("There are no images to calibrate int8 on. Pass at least one batch of latents.")
    means = zip(np.mean(lows, axis=0).tolist(), np.mean(highs, axis=0).tolist(), strict=True)
    return images, dict(zip(names, means, strict=True))


def _session(model: onnx.ModelProto, names: Sequence[str]) -> "InferenceSession":
    """The graph in ONNX Runtime, with these tensors as outputs too."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"int8 is calibrated by ONNX Runtime, which is not installed: {install_hint('onnxruntime')}"
        ) from error
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    there = {each.name for each in model.graph.output}
    shown.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in there
    )
    return onnxruntime.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _outermost(name: str, tensor: Array) -> tuple[float, float]:
    """Between which values nearly all of a tensor lies."""
    # An odd step, so that it meets every column of a picture.
    low, high = np.percentile(
        tensor.reshape(-1)[:: tensor.size // _VALUES | 1], [100 - _PERCENTILE, _PERCENTILE]
    ).tolist()
    if not np.isfinite([low, high]).all():
        raise ContractError(
            f"{name} is not finite for some calibration images, so int8 cannot represent it. "
            "Check the generator's weights and the latents."
        )
    return low, high


def _levels(low: float, high: float, symmetric: bool) -> _Levels:
    """256 numbers from low to high, of which one is exactly 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        return _Levels(np.float32(max(-low, high) / 127 or 1), np.int8(0))
    scale = (high - low) / 255 or 1.0
    return _Levels(np.float32(scale), np.uint8(round(-low / scale)))


def _rewrite(
    model: onnx.ModelProto,
    places: _Places,
    layers: Sequence[NodeProto],
    levels: Mapping[str, _Levels],
    symmetric: bool,
) -> None:
    """Put numbers of 8 bits in front of the layers, in place."""
    constants: list[TensorProto] = []
    pairs: dict[str, list[NodeProto]] = {}
    weights: dict[str, list[NodeProto]] = {}

    def constant(name: str, values: Array) -> str:
        constants.append(numpy_helper.from_array(values, name))
        return name

    def rounded(name: str, there: _Levels) -> str:
        """What a tensor is called once it has been 8 bits wide."""
        if name not in pairs:
            given = [
                constant(f"{name}.scale", np.asarray(there.scale)),
                constant(f"{name}.zero", np.asarray(there.zero)),
            ]
            pairs[name] = [
                helper.make_node("QuantizeLinear", [name, *given], [f"{name}.quantised"]),
                helper.make_node("DequantizeLinear", [f"{name}.quantised", *given], [f"{name}.rounded"]),
            ]
        return f"{name}.rounded"

    for name, there in levels.items():
        for origin in places.origins(name, layers):
            (reader,) = places.readers[origin]
            reader.input[list(reader.input).index(origin)] = rounded(origin, there)
    for layer in layers:
        there, made = levels[layer.input[0]], layer.output[0]
        axis = _CHANNEL_AXIS[layer.op_type]
        weight = numpy_helper.to_array(places.constants[layer.input[1]])
        bias = numpy_helper.to_array(places.constants[layer.input[2]]) if len(layer.input) > 2 else None
        integers, scale = _integer_weight(weight, axis, bias, there.scale)
        layer.input[0] = rounded(layer.input[0], there)
        given = [
            constant(f"{made}.weight.int8", integers),
            constant(f"{made}.weight.scale", scale),
            constant(f"{made}.weight.zero", np.zeros(len(scale), np.int8)),
        ]
        layer.input[1] = f"{made}.weight"
        weights[made] = [helper.make_node("DequantizeLinear", given, [f"{made}.weight"], axis=axis)]
        if bias is not None and not symmetric:
            # As what the products are summed in, so that ONNX Runtime stays among integers.
            scale = scale * there.scale
            given = [
                constant(f"{made}.bias.int32", np.rint(bias / scale).astype(np.int32)),
                constant(f"{made}.bias.scale", scale),
            ]
            layer.input[2] = f"{made}.bias"
            weights[made].append(helper.make_node("DequantizeLinear", given, [f"{made}.bias"], axis=0))
    graph = model.graph
    nodes = [pair for each in graph.input for pair in pairs.get(each.name, [])]
    for node in places.nodes:
        nodes += [*weights.get(node.output[0], []), node]
        nodes += [pair for name in node.output for pair in pairs.get(name, [])]
    for node in nodes:
        node.name = node.name or node.output[0]
    read = {name for node in nodes for name in node.input}
    kept = [each for each in (*graph.initializer, *constants) if each.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _integer_weight(
    weight: Array, axis: int, bias: Array | None, activation_scale: np.float32
) -> tuple[Array, Array]:
    """Weights in int8, -127 to 127, and their scale for each output channel, float32.

    Args:
        weight: Weights, with output channels on `axis`, float32.
        axis: That axis.
        bias: Of each output channel, or None. In units of both scales it has to fit into 32 bits.
        activation_scale: Scale of what the weights are multiplied with.
    """
    last = np.moveaxis(weight, axis, -1)
    scale = np.abs(last).reshape(-1, last.shape[-1]).max(axis=0) / 127
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias) / activation_scale / 2**30)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    integers = np.clip(np.rint(last / scale), -127, 127).astype(np.int8)
    return np.ascontiguousarray(np.moveaxis(integers, -1, axis)), scale
