"""Generators of every kind to look for directions in, and settings with which methods are quick."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fastdirs.discovery import METHODS
from fastdirs.generators import GENERATORS, Generator
from fastdirs.loading import load_generator
from fastdirs.manifest import Json
from fastdirs.module_generator import ModuleGenerator

CONFIGS: dict[str, Json] = json.loads((Path(__file__).parents[1] / "generators" / "configs.json").read_text())
_SMALL = {"steps": "8", "batch": "16", "reconstructor": "small", "samples": "300"}


@pytest.fixture(scope="session")
def small_settings() -> Callable[[str], dict[str, str]]:
    """Settings with which a method takes a second at most, whatever it finds."""

    def of(method: str) -> dict[str, str]:
        known = {option.name for option in fields(METHODS.load(method).settings)}
        return {name: value for name, value in _SMALL.items() if name in known}

    return of


@pytest.fixture(scope="session")
def random_generator() -> Callable[[str], Generator]:
    """A small generator with random weights, by its name among the configs of the families' own tests."""

    def make(name: str) -> Generator:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return GENERATORS.load(name.partition(" ")[0]).build(CONFIGS[name])

    return make


@pytest.fixture(scope="session")
def onnx_only(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """An ONNX file, z = 6 -> `[batch, 3, 4, 4]`: it runs, but has neither weights nor gradients to offer."""
    weights = {
        "weight": np.random.RandomState(0).randn(6, 48).astype(np.float32),
        "planes": np.array([-1, 3, 4, 4]),
    }
    nodes = [
        helper.make_node("MatMul", ["z", "weight"], ["values"]),
        helper.make_node("Reshape", ["values", "planes"], ["picture"]),
        helper.make_node("Tanh", ["picture"], ["images"]),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return load_generator(path)


class _Bent(nn.Module):
    """No layer is given z itself."""

    z_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3 * 16 * 16)

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z + 0.1 * z**3).reshape(-1, 3, 16, 16).tanh()


@pytest.fixture(scope="session")
def own_module() -> Generator:
    """The user's own module, whose weights read no latents directly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ModuleGenerator(_Bent(), name="mine")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """With several, the first pictures of a process may differ in the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
