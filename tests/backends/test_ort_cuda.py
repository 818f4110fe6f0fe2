"""ONNX Runtime with CUDA: what it does on a GPU, and how tensors are bound, which a CPU can show as well."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.errors import BackendError
from fastdirs.generators import Generator
from fastdirs.graph_precision import typed
from fastdirs.latents import sample_z

pytest.importorskip("onnxruntime", reason="pip install 'fastdirs[cpu]'")

from fastdirs.backends._ort_gpu import CUDA, needs
from fastdirs.backends._ort_session import CPU, BoundSession, check_placement, open_graph


def _graph(op_type: str, kind: int, path: Path, out: int | None = None, axis: str | int = "batch") -> Path:
    helper = onnx.helper
    x = helper.make_tensor_value_info("x", kind, ["batch", 3])
    y = helper.make_tensor_value_info("y", kind if out is None else out, [axis, 3])
    attributes = {} if out is None else {"to": out}
    graph = helper.make_graph([helper.make_node(op_type, ["x"], ["y"], **attributes)], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def _bound(path: Path) -> BoundSession:
    return BoundSession("ort_cuda", open_graph(path, CPU), "f32", None)


def test_bound_tensors_give_what_arrays_give(toy_artifact: Artifact, toy: Generator) -> None:
    latents = toy.mapping(sample_z(range(5), toy.z_dim)).numpy()
    plain = BACKENDS.load("ort").open(toy_artifact.synthesis_path, "f32", False)
    session = _bound(toy_artifact.synthesis_path)
    for size in (1, 5, 2):
        images = session.run([latents[:size]])
        np.testing.assert_array_equal(images, plain.run([latents[:size]]))
    (kept,) = session.run_kept([torch.from_numpy(latents)])
    np.testing.assert_array_equal(np.asarray(kept), plain.run([latents]))
    session.close()
    session.close()
    with pytest.raises(AssertionError):
        session.run([latents])


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16])
def test_narrow_types_are_bound_as_they_are(kind: int, tmp_path: Path) -> None:
    session = _bound(_graph("Identity", kind, tmp_path / "identity.onnx"))
    values = np.array([[1.0, -2.5, 100.0]], np.float32)
    (kept,) = session.run_kept([values])
    assert isinstance(kept, torch.Tensor)
    assert kept.dtype == (torch.float16 if kind == onnx.TensorProto.FLOAT16 else torch.bfloat16)
    found = session.run([kept])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


def test_pixels_are_bound_as_uint8(tmp_path: Path) -> None:
    path = _graph("Cast", onnx.TensorProto.FLOAT, tmp_path / "cast.onnx", onnx.TensorProto.UINT8)
    found = _bound(path).run([np.array([[0.0, 7.0, 255.0]], np.float32)])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [[0, 7, 255]])


def test_a_size_that_no_input_gives_is_refused(tmp_path: Path) -> None:
    path = _graph("Identity", onnx.TensorProto.FLOAT, tmp_path / "odd.onnx", axis="other")
    with pytest.raises(BackendError, match=r"ort_cuda cannot bind y, tensor\(float\) \['other', 3\]"):
        _bound(path)


def test_work_left_to_the_cpu_is_refused(toy_artifact: Artifact) -> None:
    session = open_graph(toy_artifact.synthesis_path, CPU)
    assert re.fullmatch(r"\d+ nodes on CPUExecutionProvider", check_placement(session, CPU))
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider leaves .* to CPUExecutionProvider\."):
        check_placement(session, CUDA)


def test_says_which_libraries_it_needs() -> None:
    assert re.search(r"needs CUDA 1\d.* and cuDNN 9", needs(CUDA))
    assert "TensorRT" not in needs(CUDA)


def _needs_it() -> None:
    if missing := BACKENDS.load("ort_cuda").lacks():
        pytest.skip(missing)


@pytest.mark.gpu
def test_tensors_stay_on_the_gpu(toy_artifact: Artifact, toy: Generator) -> None:
    _needs_it()
    latents = toy.mapping(sample_z(range(8), toy.z_dim))
    session = BACKENDS.load("ort_cuda").open(toy_artifact.synthesis_path, "f32", True)
    assert session.device == "cuda"
    assert re.search(r"\d+ nodes on CUDAExecutionProvider", session.detail)
    reference = toy.synthesis(latents).numpy()
    on_gpu = latents.to("cuda")
    for turn in range(20):
        # What the caller's stream has begun is waited for, and memory is not used again too early.
        scaled = on_gpu * (turn + 1)
        (kept,) = session.run_kept([scaled / (turn + 1)])
        assert isinstance(kept, torch.Tensor)
        assert kept.is_cuda
        assert (kept.cpu().numpy() - reference).__abs__().max() < 1e-4
    np.testing.assert_allclose(session.run([latents.numpy()]), reference, atol=1e-4)


@pytest.mark.gpu
def test_typed_graphs_run_as_they_are(dcgan_artifact: Artifact, tmp_path: Path) -> None:
    _needs_it()
    path = tmp_path / "f16.onnx"
    onnx.save(typed(onnx.load(dcgan_artifact.synthesis_path), "f16"), path)
    session = BACKENDS.load("ort_cuda").open(path, "f16", False)
    assert "heavy layers in f16" in session.detail


@pytest.mark.gpu
def test_what_has_no_kernel_in_bf16_is_refused(dcgan_artifact: Artifact, tmp_path: Path) -> None:
    _needs_it()
    path = tmp_path / "bf16.onnx"
    onnx.save(typed(onnx.load(dcgan_artifact.synthesis_path), "bf16"), path)
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        BACKENDS.load("ort_cuda").open(path, "bf16", False)
