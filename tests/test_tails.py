from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.generators import Generator
from fastdirs.graphs import synthesis_inputs
from fastdirs.mask_tail import MaskTail
from fastdirs.tails import FollowedGraph, followed


class Change(nn.Module):
    """The difference of two images, and how bright both are."""

    size = 2
    outputs = ("change", "brightness")
    differences: ClassVar[dict[str, float]] = {}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        first, second = images.unbind(1)
        return second - first, images.mean(dim=(1, 2, 3, 4))


def grouped(generator: Generator, groups: int, size: int) -> list[np.ndarray]:
    inputs = synthesis_inputs(generator, range(groups * size))
    return [each.reshape(groups, size, *each.shape[1:]) for each in inputs]


@pytest.mark.parametrize("name", ["toy", "small_dcgan", "layered", "classes"])
@pytest.mark.parametrize("backend", ["ort", "openvino_cpu"])
def test_one_graph_gives_what_the_tail_makes_of_the_images(
    name: str, backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    generator: Generator = request.getfixturevalue(name)
    artifact: Artifact = request.getfixturevalue(
        {"small_dcgan": "dcgan_artifact"}.get(name, f"{name}_artifact")
    )
    path = tmp_path / "followed.onnx"
    onnx.save(followed(onnx.load(str(artifact.synthesis_path)), Change()), str(path))
    session = BACKENDS.load(backend).open(path, "f32")
    for groups in (1, 3):
        given = grouped(generator, groups, Change.size)
        images = generator.synthesis(
            torch.from_numpy(given[0]).flatten(0, 1),
            torch.from_numpy(given[1]).flatten(0, 1) if len(given) > 1 else None,
        )
        wanted = Change()(images.unflatten(0, (groups, 2)))
        found = session.run_all(given)
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5)
    session.close()


def test_the_graph_says_what_it_takes(toy_artifact: Artifact) -> None:
    model = followed(onnx.load(str(toy_artifact.synthesis_path)), MaskTail("difference", 0.6))
    (given,) = model.graph.input
    assert given.name == "latents.groups"
    axes = [axis.dim_param or axis.dim_value for axis in given.type.tensor_type.shape.dim]
    assert axes == ["groups", 3, 1, 16]
    assert [output.name for output in model.graph.output] == ["pixels", "mask", "histogram"]


def test_in_torch_the_tail_reads_float32_whatever_the_synthesis_computes_in(toy: Generator) -> None:
    seen = []

    class Seen(nn.Module):
        size, outputs = 2, ("same",)
        differences: ClassVar[dict[str, float]] = {}

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            seen.append(images.dtype)
            return (images,)

    session = BACKENDS.load("eager").open(FollowedGraph(toy, Seen()), "bf16")
    session.run_all(grouped(toy, 2, 2))
    assert seen == [torch.float32]
