"""A module becomes one ONNX file."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from fastdirs.errors import ContractError, MissingDependencyError, RecipeError
from fastdirs.tracing import opset_of, trace


class _Double(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return 2 * latents


class _BranchesOnBatch(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return latents.view(2, 4)


def _trace(module: nn.Module, path: Path, opset: int = 18) -> onnx.ModelProto:
    trace(module, (torch.zeros(2, 4),), path, ["latents"], "images", opset, {"name": "double"})
    return onnx.load(str(path))


@pytest.mark.parametrize("opset", [18, 20])
def test_names_dynamic_batch_opset_and_identity(opset: int, tmp_path: Path) -> None:
    model = _trace(_Double(), tmp_path / "double.onnx", opset)
    assert opset_of(model) == opset
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["latents", "images"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert "double" in model.metadata_props[0].value
    assert [path.name for path in tmp_path.iterdir()] == ["double.onnx"]


class _Several(nn.Module):
    def forward(self, images: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor]:
        return images + shifted, (images - shifted).sum(dim=1)


def test_several_outputs(tmp_path: Path) -> None:
    example, path = (torch.zeros(2, 4), torch.zeros(2, 4)), tmp_path / "several.onnx"
    identity = {"name": "several"}
    trace(
        _Several(), example, path, ["images", "shifted"], ["sum", "difference"], 18, identity, "reconstructor"
    )
    model = onnx.load(str(path))
    assert [value.name for value in model.graph.output] == ["sum", "difference"]
    axes = [value.type.tensor_type.shape.dim[0] for value in (*model.graph.input, *model.graph.output)]
    assert {axis.dim_param for axis in axes} == {"batch"}
    assert json.loads(model.metadata_props[0].value) == {"reconstructor": identity}


def test_opset_under_its_long_name() -> None:
    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    model.opset_import[0].domain = "ai.onnx"
    assert opset_of(model) == model.opset_import[0].version


def test_a_module_made_for_one_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="double cannot be traced"):
        _trace(_BranchesOnBatch(), tmp_path / "fixed.onnx")
    assert not list(tmp_path.iterdir())


class _NeedsAnother(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        import not_installed_anywhere  # type: ignore[import-not-found]

        return not_installed_anywhere.double(latents)  # type: ignore[no-any-return]


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    wanted = "needs not_installed_anywhere, which is not installed: pip install not_installed_anywhere"
    with pytest.raises(MissingDependencyError, match=wanted):
        _trace(_NeedsAnother(), tmp_path / "double.onnx")
    assert not list(tmp_path.iterdir())


def test_the_exporter_needs_a_package_itself(python_without: Callable[..., str], tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import torch
from fastdirs.errors import MissingDependencyError
from fastdirs.tracing import trace
try:
    trace(torch.nn.ReLU(), (torch.zeros(2, 4),), Path(sys.argv[1]), ["x"], "y", 18, {"name": "mine"})
except MissingDependencyError as error:
    print(error)
"""
    printed = python_without(["onnxscript"], code, tmp_path / "a.onnx")
    assert "Exporting mine needs onnxscript, which is not installed: pip install onnxscript" in printed


def test_an_opset_that_is_not_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="opset 5"):
        _trace(_Double(), tmp_path / "old.onnx", 5)
    assert not list(tmp_path.iterdir())


class _PixelNorm(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return latents * torch.rsqrt(1e-8 + (latents.square().mean(dim=1, keepdim=True) + 1e-8))


def test_the_epsilon_of_a_root_stays(tmp_path: Path) -> None:
    # The exporter takes 1e-8 for 0: a pixel of zeros would become 0 * infinity.
    model = _trace(_PixelNorm(), tmp_path / "norm.onnx")
    assert [node.op_type for node in model.graph.node].count("Add") == 2
    zeros = torch.zeros(2, 4)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"latents": zeros.numpy()})
    assert (found == 0).all()
    torch.testing.assert_close(_PixelNorm()(zeros), zeros)
