import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from fastdirs.artifact import Artifact
from fastdirs.backends import Array
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.graph_parts import boundaries, mark_boundaries, part
from fastdirs.graphs import StatesGraph, synthesis_inputs
from fastdirs.images import to_uint8

NAMES = ("layered", "conditional", "classes")


@pytest.fixture(params=NAMES)
def exported(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, Generator]:
    artifact: Artifact = request.getfixturevalue(f"{request.param}_artifact")
    return onnx.load(str(artifact.synthesis_path)), request.getfixturevalue(request.param)


def _run(model: onnx.ModelProto, values: dict[str, Array]) -> dict[str, Array]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = [each.name for each in session.get_outputs()]
    read = {each.name: values[each.name] for each in session.get_inputs()}
    return dict(zip(outputs, session.run(outputs, read), strict=True))


def _values(generator: Generator, count: int = 3) -> dict[str, Array]:
    return dict(zip(("latents", "c"), synthesis_inputs(generator, range(count)), strict=False))


def test_every_boundary_cuts_the_graph_without_a_trace(exported: tuple[onnx.ModelProto, Generator]) -> None:
    model, generator = exported
    values = _values(generator)
    whole = _run(model, values)["images"]
    assert len(boundaries(model)) == len(generator.stages) - 1
    for stage in range(1, len(generator.stages)):
        state = _run(part(model, 0, stage), values)
        assert list(state) == boundaries(model)[stage - 1]
        images = _run(part(model, stage), {**values, **state})["images"]
        np.testing.assert_array_equal(images, whole)


def test_a_stretch_in_the_middle(exported: tuple[onnx.ModelProto, Generator]) -> None:
    model, generator = exported
    values = _values(generator)
    state = _run(part(model, 0, 1), values)
    middle = _run(part(model, 1, 2), {**values, **state})
    np.testing.assert_array_equal(
        _run(part(model, 2), {**values, **middle})["images"], _run(model, values)["images"]
    )


def test_no_work_is_done_in_both_halves(exported: tuple[onnx.ModelProto, Generator]) -> None:
    model, _ = exported
    for stage in range(1, len(boundaries(model)) + 1):
        halves = (part(model, 0, stage), part(model, stage))
        counts = [
            sum(node.op_type in ("Conv", "ConvTranspose") for node in each.graph.node)
            for each in (model, *halves)
        ]
        assert counts[0] == counts[1] + counts[2]
        assert all(counts[1:]), "both do something"


def test_a_half_asks_only_for_what_it_reads(classes_artifact: Artifact, layered_artifact: Artifact) -> None:
    model = onnx.load(str(classes_artifact.synthesis_path))
    # The class travels with the state, but it is an input of the whole anyway.
    assert all(len(names) == 1 for names in boundaries(model))
    assert [each.name for each in part(model, 1).graph.input] == ["latents", "c", *boundaries(model)[0]]
    unread = onnx.load(str(layered_artifact.synthesis_path))
    # The last stage of a network that reads no latents there.
    for node in unread.graph.node:
        for number, name in enumerate(node.input):
            if name == "latents":
                node.input[number] = "constant"
    unread.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((3, 3, 5), np.float32), "constant"))
    assert [each.name for each in part(unread, 2).graph.input] == boundaries(unread)[1]


@pytest.mark.parametrize("begin", [0, 1])
def test_pixels_are_those_of_the_host(exported: tuple[onnx.ModelProto, Generator], begin: int) -> None:
    model, generator = exported
    values = _values(generator)
    state = _run(part(model, 0, begin), values) if begin else {}
    found = _run(part(model, begin, pixels=True), {**values, **state})
    assert list(found) == ["pixels"]
    assert found["pixels"].dtype == np.uint8
    np.testing.assert_array_equal(found["pixels"], to_uint8(_run(model, values)["images"]))


def test_pixels_are_clipped_and_rounded_half_up() -> None:
    values = np.array([-9, -1, -1 + 0.5 / 127.5, 0, 1 / 127.5, 0.5 / 127.5 + 1e-6, 1, 9], dtype=np.float32)
    images = values.reshape(1, 1, 2, 4).repeat(3, 1)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["latents"], ["images"])],
        "same",
        [onnx.helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["batch", 3, 2, 4])],
        [onnx.helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 2, 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    found = _run(part(model, pixels=True), {"latents": images})["pixels"]
    np.testing.assert_array_equal(found, to_uint8(images))
    assert part(model, pixels=True).graph.node[-1].op_type == "Cast", "where TensorRT allows uint8"


@pytest.mark.parametrize("cut", [{"begin": 3}, {"end": 3}, {"begin": -1}, {"begin": 1, "end": 7}])
def test_a_stage_that_does_not_exist(layered_artifact: Artifact, cut: dict[str, int]) -> None:
    model = onnx.load(str(layered_artifact.synthesis_path))
    with pytest.raises(SelectionError, match=r"cannot be cut before stage -?\d.* It has 3 stages"):
        part(model, **cut)


def test_a_graph_of_one_stage_is_not_cut(toy_artifact: Artifact, toy: Generator) -> None:
    model = onnx.load(str(toy_artifact.synthesis_path))
    assert len(boundaries(model)) == len(toy.stages) - 1
    with pytest.raises(SelectionError, match="cannot be cut"):
        part(model, len(toy.stages))


def test_what_a_stage_hands_on_keeps_its_name() -> None:
    # Stage 0 makes a and b, stage 1 changes a alone, stage 2 adds them.
    node = onnx.helper.make_node
    nodes = [
        node("Neg", ["latents"], ["state0.0"]),
        node("Abs", ["latents"], ["b"]),
        node("Identity", ["b"], ["state0.1"]),
        node("Sqrt", ["b"], ["state1.0"]),
        node("Identity", ["b"], ["state1.1"]),
        node("Identity", ["latents"], ["state1.2"]),
        node("Add", ["state1.0", "b"], ["images"]),
    ]
    names = ["state0.0", "state0.1", "state1.0", "state1.1", "state1.2", "images"]
    infos = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in names]
    source = onnx.helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["batch", 2])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "states", [source], infos),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    mark_boundaries(model, [names[:2], names[2:5], names[5:]])
    onnx.checker.check_model(model, full_check=True)
    assert boundaries(model) == [["state0.0", "b"], ["state1.0", "b"]], "and inputs are not part of a state"
    assert [each.name for each in model.graph.output] == ["images"]
    # Neg is stage 0's, and nobody reads it; what only renamed a state is gone.
    assert [each.op_type for each in model.graph.node] == ["Neg", "Abs", "Sqrt", "Add"]
    latents = {"latents": np.array([[4.0, -9.0]], dtype=np.float32)}
    state = _run(part(model, 0, 1), latents)
    np.testing.assert_array_equal(_run(part(model, 1), {**latents, **state})["images"], [[6.0, 12.0]])


def test_a_traced_graph_names_its_states(classes: Generator, tmp_path: Path) -> None:
    module = StatesGraph(classes)
    assert module.states == [["state0.0", "state0.1"], ["state1.0", "state1.1"], ["images"]]
    outputs = module(*module.example())
    assert len(outputs) == 5
    np.testing.assert_array_equal(outputs[-1], classes.run_stages(*module.example()))


def test_graphs_of_others_have_no_boundaries() -> None:
    assert boundaries(onnx.ModelProto()) == []
    model = onnx.ModelProto()
    model.metadata_props.add(key="fastdirs", value=json.dumps({"generator": {}}))
    assert boundaries(model) == []


def test_no_stage_at_all(layered_artifact: Artifact) -> None:
    model = onnx.load(str(layered_artifact.synthesis_path))
    for begin, end in ((2, 1), (1, 1)):
        with pytest.raises(SelectionError, match="are none"):
            part(model, begin, end)
