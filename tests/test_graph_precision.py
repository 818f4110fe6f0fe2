import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, shape_inference
from torch import nn

from fastdirs.backends import Array
from fastdirs.errors import BackendError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.graph_parts import boundaries, mark_boundaries, part
from fastdirs.graph_precision import emulated, typed
from fastdirs.graphs import StatesGraph, SynthesisGraph, synthesis_inputs
from fastdirs.loading import load_generator
from fastdirs.lowering import FORMS, lower
from fastdirs.manifest import Json
from fastdirs.parity import Parity, compare
from fastdirs.recipe import DEFAULT_ACCEPT
from fastdirs.tracing import opset_of, trace

CONFIGS: dict[str, Json] = json.loads((Path(__file__).parent / "generators" / "configs.json").read_text())
LOW = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# Mean and largest error of f16 and of bf16 in grey levels, seeds 0 to 2, as measured. Pictures of these
# random weights vary by 40 to 70 grey levels, of StyleGAN 2 and 3 by 14 to 27.
MEASURED = {
    ("biggan", "folded"): ((0.054, 0.36), (0.48, 3.2)),
    ("proggan", "folded"): ((0.055, 0.79), (0.43, 7.1)),
    ("sngan", "folded"): ((0.036, 0.24), (0.28, 1.9)),
    ("sngan", "subpixel"): ((0.034, 0.24), (0.28, 2.5)),
    ("stylegan", "folded"): ((0.035, 0.18), (0.29, 1.6)),
    ("stylegan2", "folded"): ((0.014, 0.09), (0.11, 0.8)),
    ("stylegan3", "folded"): ((0.009, 0.08), (0.21, 1.7)),
    ("biggan_deep", "folded"): ((0.023, 0.12), (0.20, 1.2)),
    ("stylegan2 with classes", "folded"): ((0.017, 0.13), (0.15, 1.2)),
    ("biggan", "subpixel"): ((0.059, 0.58), (0.45, 3.2)),
}
QUICK = list(MEASURED)[:7]
ISLANDS = {
    "biggan": {"Softmax": 1, "Tanh": 1},
    "proggan": {"Pow": 5, "ReduceMean": 5, "Sqrt": 5, "Reciprocal": 5, "Tanh": 1},
    "stylegan": {"InstanceNormalization": 3, "Tanh": 1},
    "stylegan2": {"Pow": 5, "Sqrt": 5, "Reciprocal": 5},
    "stylegan3": {"Sin": 1, "Sqrt": 6, "Reciprocal": 5, "Pow": 7, "Div": 3},
}

Exported = tuple[onnx.ModelProto, Generator]


def _traced(generator: Generator, form: str) -> onnx.ModelProto:
    module = StatesGraph(lower(generator, FORMS[form]))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        names = [name for state in module.states for name in state]
        trace(
            module, module.example(), path, module.inputs, names, 18, {"name": "test"},
            finish=lambda model: mark_boundaries(model, module.states),
        )  # fmt: skip
        return onnx.load(str(path))


@cache
def _exported(name: str, form: str) -> Exported:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load(name.partition(" ")[0]).build(CONFIGS[name])
    return _traced(generator, form), generator


@pytest.fixture(
    params=[
        pytest.param(key, id=" ".join(key), marks=[] if key in QUICK else [pytest.mark.slow])
        for key in MEASURED
    ]
)
def key(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


def _run(model: onnx.ModelProto, values: dict[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = [each.name for each in session.get_outputs()]
    read = {each.name: values[each.name] for each in session.get_inputs()}
    return dict(zip(outputs, session.run(outputs, read), strict=True))


def _values(generator: Generator, count: int = 3) -> dict[str, Array]:
    return dict(zip(("latents", "c"), synthesis_inputs(generator, range(count)), strict=False))


def _torch(generator: Generator, values: dict[str, Array]) -> Array:
    with torch.inference_mode():
        images: Array = SynthesisGraph(generator)(*map(torch.from_numpy, values.values())).numpy()
    return images


def _error(model: onnx.ModelProto, generator: Generator, count: int) -> Parity:
    values = _values(generator, count)
    return compare(_run(model, values)["images"], _torch(generator, values))


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every tensor of a graph."""
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    return {
        **{info.name: info.type.tensor_type.elem_type for info in infos},
        **{tensor.name: tensor.data_type for tensor in graph.initializer},
    }


def _counts(model: onnx.ModelProto, kind: int) -> Counter[str]:
    """How many nodes of each operator make a tensor of a type."""
    types = _types(model)
    return Counter(node.op_type for node in model.graph.node if types[node.output[0]] == kind)


@pytest.mark.parametrize("precision", LOW)
def test_pictures_are_those_of_torch_within_the_rounding(key: tuple[str, str], precision: str) -> None:
    model, generator = _exported(*key)
    made = typed(model, precision)
    rounded = emulated(made)
    onnx.checker.check_model(rounded, full_check=True)
    mean, largest = MEASURED[key][precision == "bf16"]
    for count in (1, 2, 3):
        error = _error(rounded, generator, count)
        # Chips sum in other orders, so there is room above; a graph that rounds nowhere has no error.
        assert 0.2 * mean < error.mean < 1.6 * mean, error
        assert error.max < 2 * largest, error
        if precision == "f16":
            assert _error(made, generator, count).max < 2 * largest


@pytest.mark.parametrize("precision", LOW)
def test_each_node_gets_one_type_and_what_is_heavy_is_low(key: tuple[str, str], precision: str) -> None:
    model, _ = _exported(*key)
    made = typed(model, precision)
    types = _types(made)
    floats = {TensorProto.FLOAT, LOW[precision]}
    for node in made.graph.node:
        read = {types[name] for name in node.input[: 1 if node.op_type == "Resize" else None] if name}
        if node.op_type != "Cast":
            assert len(read & floats) <= 1, node
    low, full = _counts(made, LOW[precision]), _counts(made, TensorProto.FLOAT)
    wanted = Counter(node.op_type for node in model.graph.node)
    for operator in ("Conv", "ConvTranspose", "Resize"):
        # TensorRT has no transposed convolutions in bf16.
        here, there = (full, low) if (operator, precision) == ("ConvTranspose", "bf16") else (low, full)
        assert (here[operator], there[operator]) == (wanted[operator], 0), operator
    assert full["Gemm"] == wanted["Gemm"], "styles are vectors"
    for operator, count in ISLANDS.get(key[0], {}).items():
        assert (full[operator], low[operator]) == (count, 0), operator


@pytest.mark.parametrize("precision", LOW)
def test_few_casts(key: tuple[str, str], precision: str) -> None:
    made = typed(_exported(*key)[0], precision)
    casts = [node for node in made.graph.node if node.op_type == "Cast"]
    assert not {node.input[0] for node in casts} & {node.output[0] for node in casts}, "there and back"
    assert len({node.input[0] for node in casts}) == len(casts), "a tensor is cast once"
    most = {"sngan": 2, "stylegan3": 11, "proggan": 10}.get(key[0])
    assert most is None or len(casts) <= most


@pytest.mark.parametrize("precision", LOW)
def test_inputs_outputs_names_and_metadata_stay(key: tuple[str, str], precision: str) -> None:
    model, generator = _exported(*key)
    before = model.SerializeToString()
    made = typed(model, precision)
    assert model.SerializeToString() == before
    for mine, wanted in ((made.graph.input, model.graph.input), (made.graph.output, model.graph.output)):
        assert [(each.name, each.type) for each in mine] == [(each.name, each.type) for each in wanted]
    assert list(made.metadata_props) == list(model.metadata_props)
    assert len(boundaries(made)) == len(generator.stages) - 1
    assert opset_of(made) == (22 if precision == "bf16" else 18)
    # Raising the operator set left every other node as it was.
    kept = {node.name: node.op_type for node in made.graph.node}
    assert all(
        kept.get(node.name) == node.op_type
        for node in model.graph.node
        if node.op_type != "BatchNormalization"
    )


def test_typed_graphs_are_cut_where_their_stages_meet(key: tuple[str, str]) -> None:
    model, generator = _exported(*key)
    made = typed(model, "f16")
    values = _values(generator)
    whole, exact = _run(made, values)["images"], _run(emulated(made), values)["images"]
    _, largest = MEASURED[key][0]
    low = 0
    for stage in range(1, len(generator.stages)):
        first, second = part(made, 0, stage), part(made, stage)
        for each in (first, second):
            onnx.checker.check_model(each, full_check=True)
        state = _run(first, values)
        low += sum(array.dtype == np.float16 for array in state.values())
        images = _run(second, {**values, **state})["images"]
        # The runtime rounds to f16 between the parts, and nowhere inside them.
        assert np.abs(images - whole).max() * 127.5 < 2 * largest
        state = _run(emulated(first), values)
        images = _run(emulated(second), {**values, **state})["images"]
        assert np.abs(images - exact).max() * 127.5 < largest / 2
    assert low >= len(generator.stages) - 2, "pictures between stages are in f16"


@pytest.mark.parametrize("precision", LOW)
def test_tensorrt_builds_typed_graphs(key: tuple[str, str], precision: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(typed(_exported(*key)[0], precision).SerializeToString())
    assert parsed, [parser.get_error(number).desc() for number in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        profile.set_shape(tensor.name, *((size, *tuple(tensor.shape)[1:]) for size in (1, 2, 3)))
    assert config.add_optimization_profile(profile) == 0
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
    assert network.get_output(0).dtype == trt.DataType.FLOAT


def _tiny(*nodes: onnx.NodeProto, opset: int = 18, **constants: Array) -> onnx.ModelProto:
    """A graph of latents `[batch, 4, 4]` -> images `[batch, 1, 4, 4]`."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["batch", 4, 4])],
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


SIZES = np.array([-1, 1, 4, 4], np.int64)
ONE = np.ones((1, 1, 1, 1), np.float32)
NODE = helper.make_node
UNFOLD = NODE("Reshape", ["latents", "sizes"], ["picture"])


@pytest.mark.parametrize(("precision", "kind"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_emulation_rounds_like_the_type(precision: str, kind: torch.dtype) -> None:
    model = _tiny(UNFOLD, NODE("Conv", ["picture", "w"], ["images"]), sizes=SIZES, w=1.0001 * 3 * ONE)
    latents = np.random.RandomState(0).randn(5, 4, 4).astype(np.float32)
    picture = torch.from_numpy(latents).to(kind).float() * torch.tensor(3.0003).to(kind).float()
    images = _run(emulated(typed(model, precision)), {"latents": latents})["images"]
    np.testing.assert_array_equal(images[:, 0], picture.to(kind).float().numpy())


def test_a_constant_that_both_read_is_there_twice() -> None:
    model = _tiny(
        NODE("Mul", ["latents", "c"], ["scaled"]),
        NODE("Reshape", ["scaled", "sizes"], ["picture"]),
        NODE("Mul", ["picture", "c"], ["again"]),
        NODE("Conv", ["again", "w"], ["images"]),
        sizes=SIZES, c=np.float32(3)[None], w=ONE,
    )  # fmt: skip
    made = typed(model, "f16")
    found = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert found == {
        "sizes": TensorProto.INT64,
        "c": TensorProto.FLOAT,
        "c.f16": TensorProto.FLOAT16,
        "w.f16": TensorProto.FLOAT16,
    }


def test_squares_of_pictures_and_what_follows_up_to_the_next_picture_stay_exact() -> None:
    model = _tiny(
        UNFOLD,
        NODE("Mul", ["picture", "picture"], ["square"]),
        NODE("Mul", ["square", "c"], ["share"]),
        NODE("ReduceMean", ["share", "axes"], ["mean"]),
        NODE("Mul", ["picture", "mean"], ["scaled"]),
        NODE("Conv", ["scaled", "w"], ["images"]),
        sizes=SIZES, c=np.float32(3)[None], axes=np.array([1], np.int64), w=ONE,
    )  # fmt: skip
    types = _types(typed(model, "f16"))
    assert {types[name] for name in ("square", "share", "mean")} == {TensorProto.FLOAT}
    assert {types[name] for name in ("picture", "scaled")} == {TensorProto.FLOAT16}
    # A thousand squared does not fit into f16, its root does.
    latents = np.full((1, 4, 4), 1000, np.float32)
    roots = _tiny(
        UNFOLD,
        NODE("Mul", ["picture", "picture"], ["square"]),
        NODE("Sqrt", ["square"], ["root"]),
        NODE("Conv", ["root", "w"], ["images"]),
        sizes=SIZES, w=ONE,
    )  # fmt: skip
    assert (_run(emulated(typed(roots, "f16")), {"latents": latents})["images"] == 1000).all()


def test_pixels_are_made_of_float32(small_dcgan: Generator) -> None:
    made = typed(_traced(small_dcgan, "subpixel"), "bf16")
    types = _types(made)
    tail = [node for node in made.graph.node if node.op_type in ("Tanh", "DepthToSpace")]
    assert [node.op_type for node in tail][-2:] == ["Tanh", "DepthToSpace"]
    assert {types[name] for node in tail[-2:] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}


@pytest.mark.parametrize("last", ["Tanh", "Identity"])
def test_moves_before_the_pixels_stay_low(last: str) -> None:
    model = _tiny(
        UNFOLD,
        NODE("Conv", ["picture", "w"], ["wide"]),
        NODE("Transpose", ["wide"], ["turned"], perm=[0, 1, 3, 2]),
        NODE(last, ["turned"], ["images"]),
        sizes=SIZES, w=ONE,
    )  # fmt: skip
    made = typed(model, "f16")
    low = _counts(made, TensorProto.FLOAT16)
    assert (low["Transpose"], low[last]) == (1, last == "Identity")
    assert made.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_what_f16_cannot_hold_is_named() -> None:
    model = _tiny(
        UNFOLD, NODE("Conv", ["picture", "big.weight"], ["images"]),
        sizes=SIZES, **{"big.weight": 70_000 * ONE},
    )  # fmt: skip
    with pytest.raises(BackendError, match=r"big\.weight holds 70000.*65504"):
        typed(model, "f16")
    assert _counts(typed(model, "bf16"), TensorProto.BFLOAT16)["Conv"] == 1


def test_activations_beyond_f16_are_seen(random_dcgan: Callable[..., nn.Sequential], tmp_path: Path) -> None:
    module = random_dcgan((16, 12, 10, 8), norm_after=())
    # Equal to the original one but for what lies between.
    for number, scale in enumerate((300.0, 3000.0, 1 / 300, 1 / 3000)):
        module[2 * number].get_parameter("weight").mul_(scale * 3)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    generator = load_generator(tmp_path / "model.pt")
    model = _traced(generator, "subpixel")
    error = _error(emulated(typed(model, "f16")), generator, 3)
    assert not np.isfinite(error.mean)
    assert not error.within(DEFAULT_ACCEPT["f16"])
    assert _error(emulated(typed(model, "bf16")), generator, 3).within(DEFAULT_ACCEPT["bf16"])


def test_graphs_that_gain_nothing_are_refused(toy: Generator, layered: Generator) -> None:
    with pytest.raises(BackendError, match="leave f16 out"):
        typed(_traced(toy, "plain"), "f16")
    transposed = _traced(layered, "plain")
    assert _counts(typed(transposed, "f16"), TensorProto.FLOAT16)["ConvTranspose"] == 3
    with pytest.raises(BackendError, match="'subpixel', or leave bf16 out"):
        typed(transposed, "bf16")


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph(
        [NODE("Conv", ["picture", "w"], ["out"])], "branch", [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 1, 4, 4])],
    )  # fmt: skip
    chosen = NODE("If", ["yes"], ["images"], then_branch=branch, else_branch=branch)
    model = _tiny(UNFOLD, chosen, sizes=SIZES, w=ONE, yes=np.array(True))
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(BackendError, match="control flow"):
        typed(model, "f16")


def test_an_operator_set_without_a_way_to_bf16_is_refused() -> None:
    # The oldest batch norms could have a mean for each pixel; the converter has no word for it.
    norm = NODE("BatchNormalization", ["wide", "v", "v", "v", "v"], ["images"], spatial=0)
    model = _tiny(
        UNFOLD, NODE("Conv", ["picture", "w"], ["wide"]), norm,
        opset=8, sizes=SIZES, w=ONE, v=np.ones(1, np.float32),
    )  # fmt: skip
    with pytest.raises(BackendError, match="from operator set 8 to 22"):
        typed(model, "bf16")
