"""A synthesis graph knows where its stages meet, and can be cut there; its end may be pixels."""

import json
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from fastdirs.errors import SelectionError
from fastdirs.images import GREY_LEVELS

_BOUNDARIES = "fastdirs.boundaries"
IMAGES = "images"
PIXELS = "pixels"


def mark_boundaries(model: onnx.ModelProto, states: Sequence[Sequence[str]]) -> None:
    """Turn a graph whose outputs are the states after each stage into one of images that knows these states.

    What a stage hands on unchanged keeps the name it had; inputs of the graph that travel with the state are
    left out, since every part can be given them.

    Args:
        model: The graph, changed in place. Its last output becomes `images`.
        states: Names of the outputs after each stage, the images last.
    """
    graph = model.graph
    infos = {value.name: value for value in (*graph.value_info, *graph.output)}
    aliases = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    given = {value.name for value in (*graph.input, *graph.initializer)}

    def origin(name: str) -> str:
        while name in aliases:
            name = aliases[name]
        return name

    boundaries: list[list[str]] = []
    for names in states[:-1]:
        kept = {origin(name): name for name in names if origin(name) not in given}
        boundaries.append(list(kept))
        for name, alias in kept.items():
            if name not in infos:
                infos[name] = onnx.ValueInfoProto()
                infos[name].CopyFrom(infos[alias])
                infos[name].name = name
    (images,) = states[-1]
    outputs = {name for names in states[:-1] for name in names}
    wanted = {name for names in boundaries for name in names}
    # What only renamed a state for the exporter has nothing to do any more.
    read = {name for node in graph.node for name in node.input} | wanted | {images}
    idle = [node for node in graph.node if node.output[0] in outputs and node.output[0] not in read]
    for node in idle:
        graph.node.remove(node)
    for node in graph.node:
        for number, name in enumerate(node.output):
            if name == images:
                node.output[number] = IMAGES
    image = onnx.ValueInfoProto()
    image.CopyFrom(infos[images])
    image.name = IMAGES
    made = {name for node in graph.node for name in node.output}
    del graph.output[:], graph.value_info[:]
    graph.output.append(image)
    graph.value_info.extend(info for name, info in infos.items() if name in made and name != IMAGES)
    model.metadata_props.add(key=_BOUNDARIES, value=json.dumps(boundaries))


def boundaries(model: onnx.ModelProto) -> list[list[str]]:
    """Names of the tensors that make up the state after each stage but the last; empty for one stage."""
    found = {prop.key: prop.value for prop in model.metadata_props}
    names: list[list[str]] = json.loads(found.get(_BOUNDARIES, "[]"))
    return names


def part(
    model: onnx.ModelProto, begin: int = 0, end: int | None = None, pixels: bool = False
) -> onnx.ModelProto:
    """Some stages of a synthesis graph, as a graph of its own.

    Inputs are those of `latents`, `c` and the state before stage `begin` that it reads; outputs the state
    before stage `end`, or the images.

    Args:
        model: The whole graph, with its boundaries.
        begin: First stage.
        end: The stage to end before; None for the images.
        pixels: End in `pixels` `[batch, height, width, channels]`, uint8, instead of `images`
            `[batch, channels, height, width]`, float32.

    Raises:
        SelectionError: No such stage, or nothing is computed before it.
    """
    states = boundaries(model)
    if end is not None and begin >= end:
        raise SelectionError(f"Stages {begin} to before {end} are none. Expected an end beyond the begin.")
    for stage in (begin or None, end):
        if stage is not None and (not 0 < stage <= len(states) or not states[stage - 1]):
            raise SelectionError(
                f"The graph cannot be cut before stage {stage}. It has {len(states) + 1} stages."
            )
    before = states[begin - 1] if begin else []
    inputs = [*(value.name for value in model.graph.input), *before]
    outputs = states[end - 1] if end is not None else [IMAGES]
    cut: onnx.ModelProto = Extractor(model).extract_model(inputs, outputs)
    read = {name for node in cut.graph.node for name in node.input}
    for value in [value for value in cut.graph.input if value.name not in read]:
        cut.graph.input.remove(value)
    if pixels:
        _end_in_pixels(cut)
    return cut


def _end_in_pixels(model: onnx.ModelProto) -> None:
    """Float `images` to uint8 `pixels`, rounding as `images.to_uint8` does.

    TensorRT allows uint8 at the boundary of a network alone, so the axes move before the last node casts;
    what does not fit into uint8 is undefined there, so values are clipped, and the cast truncates.
    """
    graph = model.graph
    (images,) = graph.output
    batch, channels, height, width = (
        axis.dim_param or axis.dim_value for axis in images.type.tensor_type.shape.dim
    )
    for name, value in (
        ("scale", GREY_LEVELS),
        ("middle", GREY_LEVELS + 0.5),
        ("lowest", 0),
        ("highest", 255),
    ):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{PIXELS}.{name}"))
    graph.node.extend(
        [
            helper.make_node("Mul", [IMAGES, "pixels.scale"], ["pixels.scaled"]),
            helper.make_node("Add", ["pixels.scaled", "pixels.middle"], ["pixels.shifted"]),
            helper.make_node(
                "Clip", ["pixels.shifted", "pixels.lowest", "pixels.highest"], ["pixels.clipped"]
            ),
            helper.make_node("Transpose", ["pixels.clipped"], ["pixels.moved"], perm=[0, 2, 3, 1]),
            helper.make_node("Cast", ["pixels.moved"], [PIXELS], to=TensorProto.UINT8),
        ]
    )
    graph.value_info.append(images)
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [batch, height, width, channels])
    )
