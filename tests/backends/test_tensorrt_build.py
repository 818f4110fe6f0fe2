"""Engines of every family, of parts and of what is refused, built by TensorRT for RTX, which needs no GPU."""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from functools import cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fastdirs.backends import BACKENDS
from fastdirs.backends._tensorrt_build import _read_timing, _write_timing
from fastdirs.backends._tensorrt_library import logger, tail
from fastdirs.errors import BackendError
from fastdirs.generators import GENERATORS
from fastdirs.graph_parts import boundaries, mark_boundaries, part
from fastdirs.graphs import MappingGraph, StatesGraph
from fastdirs.lowering import FORMS, lower
from fastdirs.manifest import Json, read_json
from fastdirs.recipe import Batch, Engine
from fastdirs.tracing import trace

trt = pytest.importorskip("tensorrt_rtx")

CONFIGS: dict[str, Json] = json.loads((Path(__file__).parents[1] / "generators" / "configs.json").read_text())
TARGETS = ("8.6", "8.9", "12.0")
BATCH = Batch(opt=3, max=8)
RTX = Engine(to="tensorrt-rtx", compute_capability=TARGETS)
build = BACKENDS.load("trt").build
assert build is not None


def traced(family: str, path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load(family.partition(" ")[0]).build(CONFIGS[family])
    module = StatesGraph(lower(generator, FORMS["folded"]))
    trace(
        module, module.example(), path, module.inputs, list(chain(*module.states)), 18, {"name": family},
        finish=partial(mark_boundaries, states=module.states),
    )  # fmt: skip


def ports(values: object) -> list[Json]:
    """Inputs or outputs of an ONNX graph, as the manifest of an engine describes them."""
    return [
        {
            "name": value.name,
            "dtype": helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            "shape": [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim],
        }
        for value in values
    ]


def check(graph: Path, folder: Path, precision: str = "f32") -> Json:
    path = folder / "made.engine"
    content = build(graph, path, BATCH, RTX)
    assert read_json(folder / "made.engine.json", "engine") == content
    engine = path.read_bytes()
    assert engine.startswith(b"vtrt")
    assert content["engine_sha256"] == hashlib.sha256(engine).hexdigest()
    assert content["graph_sha256"] == hashlib.sha256(graph.read_bytes()).hexdigest()
    assert (content["library"], content["version"]) == ("tensorrt-rtx", trt.__version__)
    assert content["compute_capabilities"] == list(TARGETS)
    assert content["profile"] == {"min": 1, "opt": 3, "max": 8}
    assert content["precision"] == precision
    # float32 means float32.
    assert content["tf32"] is False
    model = onnx.load(str(graph))
    assert content["inputs"] == ports(model.graph.input)
    assert content["outputs"] == ports(model.graph.output)
    assert sorted(each.name for each in folder.glob("made*")) == ["made.engine", "made.engine.json"]
    return content


# A family whose like is among the others waits for the slow tests: tracing takes seconds.
FAMILIES = [
    pytest.param(name, marks=pytest.mark.slow if name.endswith("with classes") else ())
    for name in sorted(set(CONFIGS) - {"onnx_graph"})
]


@pytest.fixture(scope="module")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def graph_of(family: str) -> Path:
        path = tmp_path_factory.mktemp("graph") / "synthesis.onnx"
        traced(family, path)
        return path

    return graph_of


@pytest.fixture
def sngan(graph_of: Callable[[str], Path]) -> Path:
    return graph_of("sngan")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, graph_of: Callable[[str], Path], tmp_path: Path) -> None:
    content = check(graph_of(family), tmp_path)
    # What the parser warns of would be another picture, such as noise that no seed repeats.
    assert content["warnings"] == []
    assert list(content["heavy_layers"]) == ["f32"]


@pytest.mark.parametrize(
    ("begin", "end", "pixels"), [(0, 2, False), (2, None, False), (0, None, True), (2, None, True)]
)
def test_parts(begin: int, end: int | None, pixels: bool, sngan: Path, tmp_path: Path) -> None:
    model = onnx.load(str(sngan))
    graph = tmp_path / "part.onnx"
    onnx.save(part(model, begin, end, pixels), str(graph))
    content = check(graph, tmp_path)
    state = boundaries(model)[1]
    if begin:
        assert set(state) <= {each["name"] for each in content["inputs"]}
    if end:
        assert [each["name"] for each in content["outputs"]] == state
    if pixels:
        assert content["outputs"] == [{"name": "pixels", "dtype": "uint8", "shape": [-1, 16, 16, 3]}]


def test_an_input_without_a_batch(layered: object, tmp_path: Path) -> None:
    # psi [layers] is the same for all images.
    module, graph = MappingGraph(layered), tmp_path / "mapping.onnx"
    trace(module, module.example(), graph, module.inputs, "latents", 18, {"name": "layered"})
    content = check(graph, tmp_path)
    assert [each["shape"] for each in content["inputs"]] == [[-1, 6], [3]]


def test_without_a_gpu_every_gpu_since_ampere(sngan: Path, tmp_path: Path) -> None:
    if not BACKENDS.load("trt").lacks():
        pytest.skip("there is a GPU, for which it builds")
    content = build(sngan, tmp_path / "all.engine", BATCH, Engine(to="tensorrt-rtx"))
    assert content["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0", "12.1"]


def made(nodes: list[onnx.NodeProto], path: Path, axes: list[object], **initializers: object) -> Path:
    """A graph of hand-made nodes: x -> y."""
    graph = helper.make_graph(
        nodes, "made", [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 18)]
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())
    return path


ANTIALIAS = [helper.make_node("Resize", ["x", "", "", "size"], ["y"], "shrink", mode="linear", antialias=1)]
EARLY = [
    helper.make_node("Cast", ["x"], ["u"], "to_bytes", to=TensorProto.UINT8),
    helper.make_node("Transpose", ["u"], ["y"], "moved", perm=[0, 2, 3, 1]),
]
CHANCE = [helper.make_node("Bernoulli", ["x"], ["y"], "chance")]
HALF = [
    helper.make_node("Cast", ["x"], ["h"], "halved", to=TensorProto.FLOAT16),
    helper.make_node("Add", ["h", "x"], ["y"], "mixed"),
]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (ANTIALIAS, r"node 'shrink' \(Resize\): Antialiasing is not supported"),
        (EARLY, r"node 'to_bytes' \(Cast\).*UINT8 types for intermediate"),
        (CHANCE, r"node 'chance' \(Bernoulli\): it knows no such operator"),
        # Strongly typed: nothing is converted behind one's back.
        (HALF, r"node 'mixed' \(Add\).*must have same input types"),
    ],
)
def test_refused_graphs_name_the_node(nodes: list[onnx.NodeProto], said: str, tmp_path: Path) -> None:
    graph = made(nodes, tmp_path / "odd.onnx", ["batch", 3, 8, 8], size=np.array([1, 3, 4, 4]))
    with pytest.raises(BackendError, match=f"refuses odd.onnx: {said}.*Export with another"):
        build(graph, tmp_path / "odd.engine", BATCH, RTX)
    assert os.listdir(tmp_path) == ["odd.onnx"]


RELU = [helper.make_node("Relu", ["x"], ["y"], "cut")]


@pytest.mark.parametrize("axes", [["batch", 3, "height", 8], [2, 3, 8, 8]])
def test_the_batch_alone_is_dynamic(axes: list[object], tmp_path: Path) -> None:
    graph = made(RELU, tmp_path / "odd.onnx", axes)
    with pytest.raises(BackendError, match="Expected a dynamic first axis, the batch, and no other"):
        build(graph, tmp_path / "odd.engine", BATCH, RTX)


@pytest.mark.parametrize(
    ("dtype", "precision"), [(TensorProto.FLOAT16, "f16"), (TensorProto.BFLOAT16, "bf16")]
)
def test_precision_is_that_of_the_graph(dtype: int, precision: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], "narrowed", to=dtype),
        helper.make_node("Relu", ["narrow"], ["cut"], "cut"),
        helper.make_node("Cast", ["cut"], ["y"], "widened", to=TensorProto.FLOAT),
    ]
    graph = made(nodes, tmp_path / "narrow.onnx", ["batch", 3, 8, 8])
    content = build(graph, tmp_path / "narrow.engine", BATCH, RTX)
    assert content["precision"] == precision


def test_int8_is_seen(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantized"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "back"),
        helper.make_node("Conv", ["d", "weight"], ["y"], "convolution"),
    ]
    values = {"scale": np.float32(0.1), "zero": np.int8(0), "weight": np.ones((2, 3, 1, 1), np.float32)}
    graph = made(nodes, tmp_path / "int8.onnx", ["batch", 3, 8, 8], **values)
    content = build(graph, tmp_path / "int8.engine", BATCH, RTX)
    assert content["precision"] == "int8"
    assert content["heavy_layers"] == {"int8": 1}


def test_heavy_layers_are_counted_by_precision(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["wide"], "in_float"),
        helper.make_node("Cast", ["wide"], ["narrow"], "narrowed", to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["narrow", "half"], ["cut"], "in_half"),
        helper.make_node("Conv", ["cut", "half"], ["last"], "in_half_too"),
        helper.make_node("Cast", ["last"], ["y"], "widened", to=TensorProto.FLOAT),
    ]
    ones = np.ones((3, 3, 1, 1), np.float32)
    graph = made(
        nodes, tmp_path / "mixed.onnx", ["batch", 3, 8, 8], weight=ones, half=ones.astype(np.float16)
    )
    content = build(graph, tmp_path / "mixed.engine", BATCH, RTX)
    assert content["heavy_layers"] == {"f32": 1, "f16": 2}


@pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")
def test_measurements_that_cannot_be_read_or_kept_do_no_harm(tmp_path: Path) -> None:
    # TensorRT for RTX still has the calls of TensorRT for them, which do nothing there.
    config = trt.Builder(logger("tensorrt-rtx")).create_builder_config()
    _write_timing(config, tmp_path / "none.timing")
    assert not any(tmp_path.iterdir())
    # A folder in the place of the file cannot be read, nor replaced.
    _read_timing(config, tmp_path)
    _write_timing(config, tmp_path)
    _read_timing(config, tmp_path / "missing.timing")
    _write_timing(config, tmp_path / "folder" / "kept.timing")
    assert (tmp_path / "folder" / "kept.timing").read_bytes()


def test_bad_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"refuses broken\.onnx: .*Failed to parse the ONNX model"):
        build(broken, tmp_path / "x.engine", BATCH, RTX)
    with pytest.raises(BackendError, match=r"missing\.onnx cannot be read: No such file"):
        build(tmp_path / "missing.onnx", tmp_path / "x.engine", BATCH, RTX)


def test_unknown_gpus(sngan: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"capability 9\.0, 1\.5\. It builds for: 7\.5, 8\.0, .*12\.0"):
        build(
            sngan, tmp_path / "x.engine", BATCH, Engine(to="tensorrt-rtx", compute_capability=("9.0", "1.5"))
        )
    with pytest.raises(BackendError, match="Engines of 'onnx' do not exist"):
        build(sngan, tmp_path / "x.engine", BATCH, Engine(to="onnx"))
    assert not any(tmp_path.iterdir())


def test_a_build_that_fails_says_what_the_library_says(sngan: Path, tmp_path: Path) -> None:
    # Turing has no float32 matrix product there.
    turing = Engine(to="tensorrt-rtx", compute_capability=("7.5",))
    with pytest.raises(
        BackendError, match=r"could not build an engine of synthesis\.onnx: .*Turing.*FP32 GEMM"
    ):
        build(sngan, tmp_path / "x.engine", BATCH, turing)
    assert not any(tmp_path.iterdir())


def test_progress(sngan: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build(sngan, tmp_path / "x.engine", BATCH, RTX, lambda *step: seen.append(step))
    assert all(1 <= done <= total for _, done, total in seen)
    assert len({phase for phase, _, _ in seen}) > 2


class _EnoughError(Exception):
    pass


def _raise() -> None:
    raise _EnoughError


@pytest.mark.parametrize(
    ("stop", "error"),
    [(_raise, _EnoughError), (lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt)],
)
def test_cancelled(stop: Callable[[], None], error: type[BaseException], sngan: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def progress(phase: str, done: int, total: int) -> None:
        seen.append(phase)
        stop()

    with pytest.raises(error):
        build(sngan, tmp_path / "x.engine", BATCH, RTX, progress)
    assert len(seen) == 1
    # It did not merely go on unseen.
    assert "BuildCanceled" in tail(logger("tensorrt-rtx"))
    assert not any(tmp_path.iterdir())
    # The next build is not cancelled with it.
    build(sngan, tmp_path / "x.engine", BATCH, RTX)
