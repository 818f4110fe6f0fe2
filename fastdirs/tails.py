"""A module that reads images in groups, such as pairs, joined to the end of a synthesis as one graph."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from fastdirs.generators import Generator
from fastdirs.graph_parts import IMAGES
from fastdirs.graphs import SynthesisGraph
from fastdirs.tracing import opset_of, trace

_PREFIX, _GROUPS = "tail.", "groups"


class Tail(Protocol):
    """A module that follows a synthesis.

    Attributes:
        size: How many neighbouring images of a batch belong together.
    """

    size: int

    @property
    def differences(self) -> Mapping[str, int]:
        """Of each output that is compared with torch's: how far apart two values are the same."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """Names of what it returns."""
        ...

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images `[groups, size, channels, height, width]`, float32 -> tensors `[groups, ...]`."""
        ...


class FollowedGraph(nn.Module):
    """A synthesis and its tail: `latents` in groups, maybe `c` in groups -> what the tail gives.

    Args:
        generator: The generator.
        tail: What reads its images.
    """

    def __init__(self, generator: Generator, tail: Tail) -> None:
        super().__init__()
        self.synthesis = SynthesisGraph(generator)
        self.tail = tail

    def forward(self, latents: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        """Latents `[groups, size, layers, dim]`, `c` `[groups, size, c_dim]` -> tensors `[groups, ...]`."""
        images = self.synthesis(latents.flatten(0, 1), None if c is None else c.flatten(0, 1))
        # In float32 whatever the synthesis computes in: what compares pixels needs all their digits.
        return self.tail(images.float().unflatten(0, (-1, self.tail.size)))


def followed(model: onnx.ModelProto, tail: Tail) -> onnx.ModelProto:
    """A synthesis graph whose inputs come in groups, and that ends in what a tail gives.

    The batch is one of whole groups, so that whatever a runtime does with a batch of 1 is a group, too.

    Args:
        model: The graph; its output `images` has the axes batch, channels, height, width.
        tail: What reads the images.

    Returns:
        A new graph: inputs `latents.groups` `[groups, size, layers, dim]`, and `c.groups` likewise where the
        synthesis reads the class; the tail's outputs `[groups, ...]`.
    """
    (images,) = model.graph.output
    sizes = _sizes(images)
    groups = torch.zeros(2, tail.size, *sizes)
    with tempfile.TemporaryDirectory(prefix="fastdirs-tail-") as folder:
        path = Path(folder) / "tail.onnx"
        assert isinstance(tail, nn.Module)
        trace(tail, (groups,), path, [_GROUPS], list(tail.outputs), opset_of(model), {"name": "tail"}, "tail")
        traced = onnx.load(str(path))
    joined = onnx.ModelProto()
    joined.CopyFrom(model)
    graph = joined.graph
    graph.value_info.append(images)
    del graph.output[:]
    given = list(graph.input)
    del graph.input[:]
    for value in given:
        grouped = f"{value.name}.{_GROUPS}"
        graph.input.append(
            helper.make_tensor_value_info(
                grouped, value.type.tensor_type.elem_type, [_GROUPS, tail.size, *_sizes(value)]
            )
        )
        graph.node.insert(0, _reshaped(graph, grouped, value.name, [-1, *_sizes(value)]))
    graph.node.append(_reshaped(graph, IMAGES, _PREFIX + _GROUPS, [-1, tail.size, *sizes]))
    kept = set(tail.outputs)

    def renamed(name: str) -> str:
        return name if not name or name in kept else _PREFIX + name

    for node in traced.graph.node:
        moved = helper.make_node(
            node.op_type, [renamed(each) for each in node.input], [renamed(each) for each in node.output],
            domain=node.domain,
        )  # fmt: skip
        moved.attribute.extend(node.attribute)
        graph.node.append(moved)
    for constant in traced.graph.initializer:
        constant.name = renamed(constant.name)
        graph.initializer.append(constant)
    graph.output.extend(traced.graph.output)
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = _GROUPS
    onnx.checker.check_model(joined, full_check=True)
    return joined


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    """Sizes of all axes but the batch."""
    return [axis.dim_value for axis in value.type.tensor_type.shape.dim][1:]


def _reshaped(graph: onnx.GraphProto, name: str, to: str, shape: list[int]) -> onnx.NodeProto:
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{to}.shape"))
    return helper.make_node("Reshape", [name, f"{to}.shape"], [to])
