"""What is special to ONNX Runtime on CPUs."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Array
from fastdirs.errors import BackendError, PrecisionError
from fastdirs.export import export_generator
from fastdirs.generators import Generator
from fastdirs.graph_precision import typed
from fastdirs.latents import sample_z
from fastdirs.parity import compare
from fastdirs.quantization import quantize
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, Graph, Recipe

pytest.importorskip("onnxruntime", reason="pip install 'fastdirs[cpu]'")

import onnxruntime

from fastdirs.backends._ort_session import CPU, BoundSession, graph_inputs, heavy_layers, open_graph


def _latents(generator: Generator, count: int) -> Array:
    return generator.mapping(sample_z(range(count), generator.z_dim)).numpy()


@pytest.fixture(scope="module")
def graphs(
    dcgan_artifact: Artifact, small_dcgan: Generator, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder, f32 = tmp_path_factory.mktemp("graphs"), dcgan_artifact.synthesis_path
    paths = {"f32": f32, **{name: folder / f"{name}.onnx" for name in ("f16", "bf16", "int8")}}
    onnx.save(typed(onnx.load(f32), "f16"), paths["f16"])
    onnx.save(typed(onnx.load(f32), "bf16"), paths["bf16"])
    latents = small_dcgan.mapping(sample_z(range(64), small_dcgan.z_dim))
    quantize(f32, paths["int8"], [[latents.numpy()]])
    return paths


def test_bf16_is_refused_and_not_emulated(graphs: dict[str, Path]) -> None:
    assert BACKENDS.load("ort").precisions() == ("f32", "int8")
    with pytest.raises(BackendError, match=r"ort has no precision 'bf16' on CPUs.* Use f32"):
        BACKENDS.load("ort").open(graphs["bf16"], "bf16", False)


def test_provider_is_read_back(toy_artifact: Artifact) -> None:
    session = BACKENDS.load("ort").open(toy_artifact.synthesis_path, "f32", False)
    assert session.provider == f"ONNX Runtime {onnxruntime.__version__}, CPUExecutionProvider"


def test_f16_is_verified_but_not_offered(graphs: dict[str, Path], small_dcgan: Generator) -> None:
    backend = BACKENDS.load("ort")
    assert "f16" not in backend.precisions()
    latents = small_dcgan.mapping(sample_z(range(4), small_dcgan.z_dim))
    session = backend.open(graphs["f16"], "f16", False)
    images = session.run([latents.numpy()])
    assert session.provider.endswith("CPUExecutionProvider (f16 rounded, computed in f32)")
    assert re.search(r"\d heavy layers in f16", session.detail)
    parity = compare(images, small_dcgan.synthesis(latents).numpy())
    assert parity.within(DEFAULT_ACCEPT["f16"])
    assert parity.max > 0.01, "nothing was rounded"
    assert images.dtype == np.float32


def test_int8_layers_are_counted_in_what_runs(graphs: dict[str, Path]) -> None:
    session = BACKENDS.load("ort").open(graphs["int8"], "int8", False)
    assert re.search(r"\d heavy layers in int8", session.detail)


@pytest.mark.parametrize(
    ("graph", "precision"),
    [("f32", "int8"), ("f32", "f16"), ("int8", "f32"), ("f16", "f32"), ("f16", "int8")],
)
def test_a_graph_is_what_it_says(graphs: dict[str, Path], graph: str, precision: str) -> None:
    with pytest.raises(BackendError, match=rf"is no {precision} graph: it has \d+ heavy layers in"):
        BACKENDS.load("ort").open(graphs[graph], precision, False)


def test_inputs_are_converted_to_what_the_graph_takes(tmp_path: Path) -> None:
    helper, half = onnx.helper, onnx.TensorProto.FLOAT16
    values = [helper.make_tensor_value_info(name, half, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    path = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    session = BACKENDS.load("ort").open(path, "f16", False)
    found = session.run([np.array([[1.0, 2.0, 0.1]], np.float32)])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, -np.array([[1.0, 2.0, 0.1]], np.float16).astype(np.float32))


def test_what_is_not_fused_is_no_int8(small_dcgan: Generator, tmp_path: Path) -> None:
    # ONNX Runtime has no transposed convolution in int8: it dequantises and multiplies floats.
    recipe = Recipe(generator="any", graph=Graph(lowering="plain"), batch=Batch(opt=2, max=2))
    plain = export_generator(small_dcgan, tmp_path / "plain", recipe)
    path = tmp_path / "int8.onnx"
    quantize(plain.synthesis_path, path, [[_latents(small_dcgan, 64)]])
    assert heavy_layers(path)["int8"] >= 2
    with pytest.raises(PrecisionError, match=r"no int8 graph: it has \d heavy layers in f32,"):
        BACKENDS.load("ort").open(path, "int8", False)
    session = BACKENDS.load("ort").open(path, "f32", False)
    assert session.provider.endswith("CPUExecutionProvider (int8 rounded, computed in f32)")


def test_a_graph_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph")
    for read in (heavy_layers, graph_inputs):
        with pytest.raises(BackendError, match=r"broken.onnx is no ONNX graph: .* Export it again"):
            read(path)


def test_too_little_memory_says_what_helps(tmp_path: Path) -> None:
    helper, kind, path = onnx.helper, onnx.TensorProto.FLOAT, tmp_path / "large.onnx"
    x = helper.make_tensor_value_info("x", kind, ["batch", 1])
    y = helper.make_tensor_value_info("y", kind, ["batch", 2**48])
    size = onnx.numpy_helper.from_array(np.array([1, 2**48]), "size")
    graph = helper.make_graph([helper.make_node("Expand", ["x", "size"], ["y"])], "g", [x], [y], [size])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    sessions = [
        BACKENDS.load("ort").open(path, "f32", False),
        BoundSession("ort_cuda", open_graph(path, CPU), "f32", None),
    ]
    for session in sessions:
        with pytest.raises(BackendError, match=r"too little memory .* Use a smaller --batch"):
            session.run([np.ones((3, 1), np.float32)])
