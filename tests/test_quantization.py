"""Quantised graphs: which layers, how large the error, and that a graph stays what it was otherwise."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fastdirs.backends import BACKENDS, Array
from fastdirs.errors import ContractError, PrecisionError, RecipeError, SelectionError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.graph_parts import boundaries, mark_boundaries, part
from fastdirs.graphs import StatesGraph, SynthesisGraph, synthesis_inputs
from fastdirs.lowering import FORMS, lower
from fastdirs.manifest import Json
from fastdirs.parity import Parity, compare
from fastdirs.quantization import quantize
from fastdirs.recipe import DEFAULT_ACCEPT
from fastdirs.tracing import trace

CONFIGS: dict[str, Json] = json.loads((Path(__file__).parent / "generators" / "configs.json").read_text())
QUICK = ("sngan",)
MOVES = {
    "Concat",
    "DepthToSpace",
    "Identity",
    "Relu",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


def traced(generator: Generator, form: str, path: Path) -> Path:
    states = StatesGraph(lower(generator, FORMS[form]))
    outputs = [name for names in states.states for name in names]
    trace(
        states, states.example(), path, states.inputs, outputs, 18, generator.identity(),
        finish=lambda model: mark_boundaries(model, states.states),
    )  # fmt: skip
    return path


def calibration(generator: Generator) -> list[list[Array]]:
    return [list(synthesis_inputs(generator, range(start, start + 16))) for start in (1000, 1016, 1032)]


def error(graph: Path, generator: Generator, backend: str, precision: str = "int8") -> Parity:
    inputs = synthesis_inputs(generator, range(8))
    with torch.inference_mode():
        wanted = SynthesisGraph(generator)(*map(torch.from_numpy, inputs)).numpy()
    try:
        session = BACKENDS.load(backend).open(graph, precision)
    except PrecisionError:
        # ONNX Runtime fuses nothing of some graphs: then it rounds to 8 bits, and multiplies in float32.
        assert backend == "ort"
        session = BACKENDS.load(backend).open(graph, "f32")
    found = session.run(inputs)
    session.close()
    return compare(found, wanted)


def run(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[Array] = session.run(None, {each.name: feed[each.name] for each in session.get_inputs()})
    return found


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


@pytest.fixture(scope="module")
def float_graph(small_dcgan: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return traced(small_dcgan, "subpixel", tmp_path_factory.mktemp("float") / "synthesis.onnx")


@pytest.fixture(scope="module")
def done(
    small_dcgan: Generator, float_graph: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Json]:
    """The small DCGAN's quantised graph, and what was said about it."""
    out = tmp_path_factory.mktemp("int8") / "synthesis.int8.onnx"
    return out, quantize(float_graph, out, calibration(small_dcgan))


@pytest.mark.parametrize("backend", ["ort", "openvino_cpu"])
def test_the_error_is_small_but_there(
    backend: str, small_dcgan: Generator, done: tuple[Path, Json], float_graph: Path
) -> None:
    parity = error(done[0], small_dcgan, backend)
    assert 0.05 < parity.mean < 1.5
    assert parity.within(DEFAULT_ACCEPT["int8"])
    assert error(float_graph, small_dcgan, backend, "f32").mean < 0.01


def test_vectors_and_the_layer_that_writes_the_picture_stay_in_float(
    done: tuple[Path, Json], float_graph: Path
) -> None:
    path, said = done
    nodes = {node.name: node for node in onnx.load(str(float_graph)).graph.node}
    convolutions = [name for name, node in nodes.items() if node.op_type == "Conv"]
    assert said["quantised"] == convolutions[:-1]
    assert [nodes[name].op_type for name in said["left_in_float"]] == ["Gemm", "Conv"]
    assert said["left_in_float"][-1] == convolutions[-1]
    assert said["images"] == 48
    assert said["activations"] == "uint8"
    model = onnx.load(str(path))
    values, made_by = constants(model), {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.name in said["quantised"]:
            integers, scale = (values[name] for name in made_by[node.input[1]].input[:2])
            assert integers.dtype == np.int8
            assert scale.shape == (len(integers),)
            # Each output channel uses all of its levels.
            assert (np.abs(integers.reshape(len(integers), -1)).max(axis=1) == 127).all()
        if node.name in said["left_in_float"]:
            assert values[node.input[1]].dtype == np.float32


def test_it_becomes_smaller(done: tuple[Path, Json], float_graph: Path) -> None:
    weights = {
        path: sum(value.nbytes for value in constants(onnx.load(str(path))).values())
        for path in (done[0], float_graph)
    }
    assert weights[done[0]] < 0.75 * weights[float_graph]


def test_convolutions_that_feed_others_write_8_bits(done: tuple[Path, Json], tmp_path: Path) -> None:
    """ONNX Runtime fuses them, since nothing between them is in float."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(done[0]), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node]
    # Four for each layer that doubles the size; the second one's result goes into the layer in float.
    assert kinds.count("QLinearConv") == 4


def test_names_types_and_metadata_stay(done: tuple[Path, Json], float_graph: Path) -> None:
    before, after = onnx.load(str(float_graph)), onnx.load(str(done[0]))
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert list(after.metadata_props) == list(before.metadata_props)
    made = {name for node in after.graph.node for name in node.output}
    assert {name for node in before.graph.node for name in node.output} <= made
    assert len(made) == sum(len(node.output) for node in after.graph.node)


def require_same_parts(model: onnx.ModelProto, generator: Generator) -> None:
    """Cut before any stage, it computes what it computes in one go."""
    inputs = synthesis_inputs(generator, range(2))
    feed = dict(zip((each.name for each in model.graph.input), inputs, strict=True))
    (whole,) = run(model, feed)
    states = boundaries(model)
    assert len(states) == len(generator.stages) - 1
    for stage, names in enumerate(states, start=1):
        state = dict(zip(names, run(part(model, 0, stage), feed), strict=True))
        (found,) = run(part(model, stage), {**feed, **state})
        np.testing.assert_allclose(found, whole, atol=2e-2)
        assert np.abs(found - whole).mean() < 1e-3


def test_it_can_be_cut(done: tuple[Path, Json], small_dcgan: Generator) -> None:
    require_same_parts(onnx.load(str(done[0])), small_dcgan)


def require_rounded_values_stay_inside(model: onnx.ModelProto, said: Json) -> None:
    """What stays in float, skip connections too, reads values that were not rounded."""
    rounded = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.output[0].endswith(".rounded")
    }
    assert rounded
    for node in model.graph.node:
        if rounded & set(node.input):
            assert node.name in said["quantised"] or node.op_type in MOVES, node.name


@pytest.mark.parametrize(
    ("name", "symmetric"),
    [
        ("stylegan2", True),
        *(pytest.param(name, False, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CONFIGS),
    ],
)
def test_every_family(name: str, symmetric: bool, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load(name.partition(" ")[0]).build(CONFIGS[name])
    graph, out = traced(generator, "folded", tmp_path / "f32.onnx"), tmp_path / "int8.onnx"
    said = quantize(graph, out, calibration(generator), symmetric)
    for backend in ("ort", "openvino_cpu"):
        parity = error(out, generator, backend)
        assert parity.mean > 0.02
        assert parity.within(DEFAULT_ACCEPT["int8"]), parity
    model = onnx.load(str(out))
    require_same_parts(model, generator)
    require_rounded_values_stay_inside(model, said)


def test_symmetric_is_what_tensorrt_asks_for(
    small_dcgan: Generator, float_graph: Path, done: tuple[Path, Json], tmp_path: Path
) -> None:
    out = tmp_path / "symmetric.onnx"
    assert quantize(float_graph, out, calibration(small_dcgan), symmetric=True)["activations"] == (
        "int8, symmetric"
    )
    model = onnx.load(str(out))
    values = constants(model)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    # One level in two stands for what ReLU never gives.
    parity = error(out, small_dcgan, "ort")
    assert error(done[0], small_dcgan, "ort").mean < parity.mean < 2


def test_tensorrt_rtx_builds_it(small_dcgan: Generator, float_graph: Path, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    quantize(float_graph, tmp_path / "int8.onnx", calibration(small_dcgan), symmetric=True)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(tmp_path / "int8.onnx")), parser.get_error(0).desc()
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    profile.set_shape("latents", (1, 1, 16), (4, 1, 16), (8, 1, 16))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


def two_convolutions(weight: Array, bias: Array | None) -> onnx.ModelProto:
    """`x` `[batch, 3, 4, 4]` -> convolution, ReLU, convolution -> `images`."""
    last = np.full((3, len(weight), 1, 1), 0.1, np.float32)
    tensors = {"weight": weight, "last": last} | ({} if bias is None else {"bias": bias})
    given = ["x", "weight"] + ([] if bias is None else ["bias"])
    graph = helper.make_graph(
        [
            helper.make_node("Conv", given, ["made"]),
            helper.make_node("Relu", ["made"], ["positive"]),
            helper.make_node("Conv", ["positive", "last"], ["images"]),
        ],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def pictures(count: int = 4) -> Array:
    return np.random.default_rng(0).uniform(-1, 2, (count, 3, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bias", [None, (0.7, -0.2)])
def test_a_channel_without_weights_keeps_its_bias(
    bias: Sequence[float] | None, symmetric: bool, tmp_path: Path
) -> None:
    """Its scale must not be 0. Nodes have no names here, and what is quantised is an input of the graph."""
    weight = np.array([[0.5, -1, 0.3], [0, 0, 0]], np.float32)[:, :, None, None]
    model = two_convolutions(weight, None if bias is None else np.array(bias, np.float32))
    onnx.save(model, tmp_path / "f32.onnx")
    said = quantize(tmp_path / "f32.onnx", tmp_path / "int8.onnx", [[pictures()]], symmetric)
    assert len(said["quantised"]) == 1
    (wanted,), (found,) = (
        run(each, {"x": pictures()}) for each in (model, onnx.load(tmp_path / "int8.onnx"))
    )
    assert 0 < np.abs(found - wanted).max() < 5e-3


def scale_of_input(batches: list[list[Array]], folder: Path) -> float:
    onnx.save(two_convolutions(np.ones((2, 3, 1, 1), np.float32), None), folder / "f32.onnx")
    quantize(folder / "f32.onnx", folder / "int8.onnx", batches)
    return float(constants(onnx.load(folder / "int8.onnx"))["x.scale"])


def test_the_outermost_values_are_clipped(tmp_path: Path) -> None:
    many = pictures(20_000)
    usual = scale_of_input([[many]], tmp_path)
    assert usual == pytest.approx(3 / 255, rel=1e-3)
    many[0, 0, 0, 0] = 1000
    assert scale_of_input([[many]], tmp_path) == pytest.approx(usual, rel=1e-3)


def test_ranges_are_means_over_batches(tmp_path: Path) -> None:
    scale = scale_of_input([[pictures()], [3 * pictures()]], tmp_path)
    assert scale == pytest.approx(2 * scale_of_input([[pictures()]], tmp_path), rel=1e-5)


def test_equal_bytes_and_quiet(
    small_dcgan: Generator, float_graph: Path, done: tuple[Path, Json], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    quantize(float_graph, tmp_path / "again.onnx", iter(calibration(small_dcgan)))
    assert (tmp_path / "again.onnx").read_bytes() == done[0].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.onnx"]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def _not_finite(batches: list[list[Array]]) -> list[list[Array]]:
    return [[np.full_like(each, np.nan) for each in batches[0]]]


@pytest.mark.parametrize(
    ("batches", "wrong", "words"),
    [(lambda batches: [], SelectionError, "at least one batch"), (_not_finite, ContractError, "not finite")],
)
def test_images_that_cannot_be_calibrated_on(
    batches: Callable[[list[list[Array]]], list[list[Array]]],
    wrong: type[Exception],
    words: str,
    small_dcgan: Generator,
    float_graph: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(wrong, match=words):
        quantize(float_graph, tmp_path / "int8.onnx", batches(calibration(small_dcgan)))
    assert not list(tmp_path.iterdir())


def test_a_graph_without_inner_convolutions(tmp_path: Path) -> None:
    model = two_convolutions(np.ones((2, 3, 1, 1), np.float32), None)
    del model.graph.node[0]
    model.graph.node[0].input[0] = "x"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "other"))
    model.graph.node[1].input[1] = "other"
    onnx.save(model, tmp_path / "f32.onnx")
    with pytest.raises(RecipeError, match="no convolution to quantise"):
        quantize(tmp_path / "f32.onnx", tmp_path / "int8.onnx", [[pictures()]])


def test_without_onnxruntime(float_graph: Path, python_without: Callable[..., str], tmp_path: Path) -> None:
    code = """
from pathlib import Path
from fastdirs.errors import MissingDependencyError
from fastdirs.quantization import quantize
try:
    quantize(Path(sys.argv[1]), Path(sys.argv[2]), [])
except MissingDependencyError as error:
    print(error)
"""
    said = python_without(["onnxruntime"], code, float_graph, tmp_path / "int8.onnx")
    assert "onnxruntime" in said or "fastdirs[" in said
    assert not list(tmp_path.iterdir())
