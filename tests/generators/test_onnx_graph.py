"""The ONNX family against the toy and against hand-made graphs, good and bad."""

import copy
import io
import logging
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import fastdirs
from fastdirs.errors import CheckpointError, ContractError, UnknownNameError
from fastdirs.export import HasGraph
from fastdirs.generators import Generator
from fastdirs.generators.onnx_graph import OnnxGraph
from fastdirs.latents import sample_z
from fastdirs.loading import save_generator
from fastdirs.recipe import Batch, Recipe


def _trace(module: nn.Module, example: Tensor, path: Path, dynamic: bool = True) -> Path:
    """Write a module as ONNX, the batch dynamic or fixed at that of the example."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        # The exporter uses parts of torch and Python that are being replaced; nothing here depends on them.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(
            module.eval(), (example,), path, dynamo=True, external_data=False, opset_version=18,
            dynamic_shapes=({0: "batch"},) if dynamic else None, verbose=False,
        )  # fmt: skip
    return path


class _FromZ(nn.Module):
    """A generator as other people export it: z `[batch, z_dim]`, or `[batch, z_dim, 1, 1]`, -> images."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        return self.generator.run_stages(z.flatten(1)[:, None])


@pytest.fixture(scope="module")
def toy() -> Generator:
    return fastdirs.load_generator("toy", options={"resolution": "16"})


@pytest.fixture(scope="module")
def toy_file(toy: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trace(_FromZ(toy), torch.zeros(2, toy.z_dim), tmp_path_factory.mktemp("onnx") / "toy.onnx")


@pytest.fixture
def latents(toy: Generator) -> Tensor:
    return toy.mapping(sample_z(range(5), toy.z_dim))


def _net(
    path: Path, output: str = "tanh", z_axes: str = "", batch: int | str = "batch", bend: str = ""
) -> Path:
    """A one-layer generator, z = 6 -> [batch, 3, 4, 4], node by node so that each oddity can be had."""
    z_shape: list[int | str] = {"": [batch, 6], "1": [batch, 1, 6], "11": [batch, 6, 1, 1]}[z_axes]
    weight = np.random.RandomState(0).randn(6, 48).astype(np.float32)
    if bend == "nan":
        weight[2, 3] = np.nan
    weights = {
        "weight": weight,
        "flat": np.array([-1, 6]),
        "planes": np.array([batch if batch != "batch" else -1, 3, 4, 4]),
    }
    if bend == "sum_over_batch":
        nodes = [helper.make_node("ReduceSum", ["z", "zero"], ["mixed"], keepdims=1)]
        nodes += [
            helper.make_node("Add", ["z", "mixed"], ["added"]),
            helper.make_node("Reshape", ["added", "flat"], ["row"]),
        ]
        weights["zero"] = np.array([0])
    else:
        nodes = [helper.make_node("Reshape", ["z", "flat"], ["row"])]
    nodes += [
        helper.make_node("MatMul", ["row", "weight"], ["values"]),
        helper.make_node("Reshape", ["values", "planes"], ["picture"]),
    ]
    kind, shape = TensorProto.FLOAT, [batch, 3, 4, 4]
    if bend == "noise":
        nodes += [
            helper.make_node("RandomNormalLike", ["picture"], ["noise"]),
            helper.make_node("Add", ["picture", "noise"], ["in"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["picture"], ["in"]))
    if output == "tanh":
        nodes.append(helper.make_node("Tanh", ["in"], ["images"]))
    else:
        nodes.append(helper.make_node("Sigmoid", ["in"], ["unit"]))
        nodes.append(helper.make_node("Transpose", ["unit"], ["last"], perm=[0, 2, 3, 1]))
        shape = [batch, 4, 4, 3]
        if output == "0:1":
            nodes.append(helper.make_node("Identity", ["last"], ["images"]))
        else:
            weights["levels"] = np.array(255, dtype=np.float32)
            nodes.append(
                helper.make_node("Mul", ["last", "levels"], ["images" if output == "0:255" else "grey"])
            )
        if output == "uint8":
            kind = TensorProto.UINT8
            nodes.append(helper.make_node("Cast", ["grey"], ["images"], to=kind))
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("z", TensorProto.FLOAT, z_shape)],
        [helper.make_tensor_value_info("images", kind, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def _expected(z: Tensor) -> Tensor:
    weight = np.random.RandomState(0).randn(6, 48).astype(np.float32)
    return (z @ torch.from_numpy(weight)).reshape(-1, 3, 4, 4)


def test_equals_the_toy(toy: Generator, toy_file: Path, latents: Tensor) -> None:
    generator = fastdirs.load_generator(toy_file)
    assert (generator.family, generator.z_dim, generator.num_layers, generator.img_resolution) == (
        "onnx_graph",
        16,
        1,
        16,
    )
    assert generator.provenance.assumed == ("output_range=-1:1",)
    torch.testing.assert_close(generator.synthesis(latents), toy.synthesis(latents), rtol=0, atol=1e-5)
    torch.testing.assert_close(generator.mapping(sample_z(range(5), 16)), latents)
    assert generator.factors() == []


def test_fixed_batch_becomes_dynamic(toy: Generator, tmp_path: Path, latents: Tensor) -> None:
    generator = fastdirs.load_generator(
        _trace(_FromZ(toy), torch.zeros(1, 16), tmp_path / "one.onnx", dynamic=False)
    )
    assert not generator.config["one_by_one"]
    torch.testing.assert_close(generator.synthesis(latents), toy.synthesis(latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", ["batch", 1, 4])
@pytest.mark.parametrize("z_axes", ["", "1", "11"])
def test_shapes_of_z_and_batch(batch: int | str, z_axes: str, tmp_path: Path) -> None:
    generator = fastdirs.load_generator(_net(tmp_path / "net.onnx", z_axes=z_axes, batch=batch))
    z = sample_z(range(3), 6)
    assert not generator.config["one_by_one"]
    torch.testing.assert_close(
        generator.synthesis(generator.mapping(z)), _expected(z).tanh(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("output", "option"), [("0:1", "0:1"), ("0:255", "0:255"), ("uint8", None)])
def test_channels_last_and_ranges(output: str, option: str | None, tmp_path: Path) -> None:
    path = _net(tmp_path / "net.onnx", output=output)
    if option is not None:
        with pytest.raises(CheckpointError, match=f"output_range={option}"):
            fastdirs.load_generator(path)
    generator = fastdirs.load_generator(path, options={"output_range": option} if option else None)
    z = sample_z(range(3), 6)
    wanted = _expected(z).sigmoid() * 2 - 1
    assert generator.provenance.assumed == ()
    torch.testing.assert_close(
        generator.synthesis(z[:, None]), wanted, rtol=0, atol=1e-5 if option else 1 / 127.5
    )


def test_file_that_mixes_its_batch_runs_one_by_one(tmp_path: Path) -> None:
    generator = fastdirs.load_generator(_net(tmp_path / "net.onnx", batch=1, bend="sum_over_batch"))
    assert isinstance(generator, OnnxGraph)
    assert generator.config["one_by_one"]
    assert "one_by_one=true" in generator.provenance.assumed
    z = sample_z(range(3), 6)
    torch.testing.assert_close(generator.synthesis(z[:, None]), _expected(2 * z).tanh(), rtol=0, atol=1e-5)
    with pytest.raises(ContractError, match="one image at a time"):
        generator.graph_model()


def test_save_and_load(toy: Generator, toy_file: Path, latents: Tensor, tmp_path: Path) -> None:
    generator = fastdirs.load_generator(toy_file)
    save_generator(generator, tmp_path / "kept.safetensors")
    again = fastdirs.load_generator(tmp_path / "kept.safetensors")
    assert again.identity() == generator.identity()
    assert again.provenance == generator.provenance
    torch.testing.assert_close(again.synthesis(latents), toy.synthesis(latents), rtol=0, atol=1e-5)


def test_copy_opens_its_own_session(toy_file: Path, latents: Tensor) -> None:
    generator = fastdirs.load_generator(toy_file)
    images = generator.synthesis(latents)
    assert torch.equal(copy.deepcopy(generator).synthesis(latents), images)


def test_loading_weights_replaces_the_session(tmp_path: Path) -> None:
    first = fastdirs.load_generator(_net(tmp_path / "first.onnx"))
    latents = sample_z(range(2), 6)[:, None]
    before = first.synthesis(latents)
    model = onnx.load(tmp_path / "first.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), "weight"))
    onnx.save(model, tmp_path / "second.onnx")
    first.load_state_dict(fastdirs.load_generator(tmp_path / "second.onnx").state_dict())
    torch.testing.assert_close(first.synthesis(latents), -before)


def test_graph_model_is_ready_for_export(toy: Generator, toy_file: Path, latents: Tensor) -> None:
    generator = fastdirs.load_generator(toy_file)
    assert isinstance(generator, HasGraph)
    model = generator.graph_model()
    onnx.checker.check_model(model, full_check=True)
    shapes = [[axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
              for value in (*model.graph.input, *model.graph.output)]  # fmt: skip
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["latents", "images"]
    assert shapes == [["batch", 1, 16], ["batch", 3, 16, 16]]


def test_export_and_verify(toy_file: Path, tmp_path: Path) -> None:
    recipe = Recipe(generator="toy-file", batch=Batch(opt=2, max=4))
    artifact = fastdirs.export_generator(fastdirs.load_generator(toy_file), tmp_path / "out", recipe)
    assert any(row["accepted"] for row in artifact.content["verified"])


def test_old_file_that_lists_its_weights_as_inputs(tmp_path: Path) -> None:
    model = onnx.load(_net(tmp_path / "net.onnx"))
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, tmp_path / "old.onnx")
    generator = fastdirs.load_generator(tmp_path / "old.onnx")
    assert isinstance(generator, OnnxGraph)
    assert [value.name for value in generator.graph_model().graph.input] == ["latents"]


def test_picture_is_found_among_other_outputs(tmp_path: Path) -> None:
    model = onnx.load(_net(tmp_path / "net.onnx"))
    model.graph.output.insert(0, helper.make_tensor_value_info("row", TensorProto.FLOAT, ["batch", 6]))
    onnx.save(model, tmp_path / "net.onnx")
    assert fastdirs.load_generator(tmp_path / "net.onnx").img_resolution == 4


def test_licence_travels(tmp_path: Path) -> None:
    model = onnx.load(_net(tmp_path / "net.onnx"))
    model.metadata_props.add(key="license", value="CC0")
    onnx.save(model, tmp_path / "net.onnx")
    assert fastdirs.load_generator(tmp_path / "net.onnx").provenance.licence == "CC0"


def test_no_gradients(toy_file: Path, latents: Tensor) -> None:
    generator = fastdirs.load_generator(toy_file)
    with pytest.raises(ContractError, match="no gradients"):
        generator.synthesis(latents.clone().requires_grad_())


def _classifier() -> onnx.ModelProto:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _vector_to_vector(shape: list[int | str], elem_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["z"], ["y"])], "net",
        [helper.make_tensor_value_info("z", elem_type, shape)],
        [helper.make_tensor_value_info("y", elem_type, shape)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _two_inputs() -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6])
        for name in ("z", "truncation", "y")
    ]
    graph = helper.make_graph(
        [helper.make_node("Add", ["z", "truncation"], ["y"])], "net", values[:2], values[2:]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_classifier(), r"no generator: its input 'x' is \[batch, 3, 8, 8\]"),
        (_vector_to_vector(["batch", 6]), r"it returns 'y' \[1, 6\]"),
        (_vector_to_vector(["batch", "length"]), "how long z is"),
        (_vector_to_vector([6]), "how long z is"),
        (_vector_to_vector(["batch", 14, 512]), "14 latent layers"),
        (_vector_to_vector(["batch", 6], TensorProto.INT64), "int64"),
        (_two_inputs(), "2 inputs.*'z', 'truncation'"),
    ],
)
def test_what_is_no_generator_is_refused(model: onnx.ModelProto, reason: str, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match=reason):
        fastdirs.load_generator(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("bend", "reason"), [("nan", "NaN or infinite values in 'weight'"), ("noise", "random numbers")]
)
def test_damaged_and_random_files_are_refused(bend: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=reason):
        fastdirs.load_generator(_net(tmp_path / "net.onnx", bend=bend))


def test_fixed_batch_that_cannot_be_freed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exactly 4 images"):
        fastdirs.load_generator(_net(tmp_path / "net.onnx", batch=4, bend="sum_over_batch"))


def test_weights_beside_the_file_are_refused(tmp_path: Path) -> None:
    model = onnx.load(_net(tmp_path / "net.onnx"))
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    with pytest.raises(CheckpointError, match="in a file beside it"):
        fastdirs.load_generator(tmp_path / "big.onnx")


def test_truncated_file(tmp_path: Path) -> None:
    path = _net(tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="broken ONNX file"):
        fastdirs.load_generator(path)


def test_unknown_option_and_range(toy_file: Path) -> None:
    with pytest.raises(UnknownNameError, match="output_range"):
        fastdirs.load_generator(toy_file, options={"output_rang": "0:1"})
    with pytest.raises(UnknownNameError, match="0:255"):
        fastdirs.load_generator(toy_file, options={"output_range": "0:256"})


def test_without_onnxruntime(tmp_path: Path) -> None:
    _net(tmp_path / "net.onnx")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    program = """
import sys
sys.modules["onnxruntime"] = None
import fastdirs
from fastdirs.errors import FastdirsError
for name in ("net.onnx", "other.pt", "celeba"):
    try:
        fastdirs.load_generator(name)
    except FastdirsError as error:
        print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    graph, other, typo = done.stdout.splitlines()
    assert graph.startswith("MissingDependencyError")
    assert graph.endswith("pip install 'fastdirs[cpu]'")
    assert "too few for a DCGAN" in other
    assert "onnxruntime" not in other
    assert "Did you mean" in typo
