"""What edits share is computed once, without a bit of difference: every family, every runtime, every cut."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Array, Session, graph_backends
from fastdirs.errors import BackendError, ParityError, SelectionError
from fastdirs.export import export_generator
from fastdirs.generators import GENERATORS, Generator
from fastdirs.graph_parts import mark_boundaries
from fastdirs.graphs import StatesGraph, SynthesisGraph, synthesis_inputs
from fastdirs.halves import open_halves
from fastdirs.images import to_uint8
from fastdirs.lowering import FORMS, lower
from fastdirs.recipe import Batch, Graph, Recipe, usual_accept
from fastdirs.runtime import open_runtime
from fastdirs.tracing import trace

CONFIGS = json.loads((Path(__file__).parent / "generators" / "configs.json").read_text())
BATCH = 6


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Generator, Path]:
    """A small generator with random weights, and its graph."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load(request.param.partition(" ")[0]).build(CONFIGS[request.param])
    module = StatesGraph(lower(generator, FORMS["folded"]))
    path = tmp_path_factory.mktemp("graphs") / "synthesis.onnx"
    trace(
        module, module.example(), path, module.inputs, list(chain(*module.states)), 18,
        generator.identity(), finish=partial(mark_boundaries, states=module.states),
    )  # fmt: skip
    return generator, path


def _edited(generator: Generator, layers: range) -> tuple[list[Array], list[Array]]:
    """Inputs of one seed for a whole batch, and the same with some layers shifted, each row otherwise."""
    inputs = [each[:1].repeat(BATCH, axis=0) for each in synthesis_inputs(generator, range(1))]
    shifted = inputs[0].copy()
    shifted[:, list(layers)] += np.linspace(-2, 2, BATCH, dtype=np.float32)[:, None, None]
    return inputs, [shifted, *inputs[1:]]


def _sources(
    family: tuple[Generator, Path],
) -> Iterator[tuple[str, Generator | Path, Callable[..., Session]]]:
    generator, path = family
    yield "eager", generator, BACKENDS.load("eager").open
    for name in dict.fromkeys(name for name, _ in graph_backends(("f32",))[0]):
        yield name, path, BACKENDS.load(name).open


def test_edits_of_later_layers_share_what_lies_before(family: tuple[Generator, Path]) -> None:
    generator, _ = family
    with open_runtime(generator) as runtime:
        stage_of = {layer: runtime.first_stage([layer]) for layer in generator.editable}
    assert stage_of[0] == 0
    assert list(stage_of.values()) == sorted(stage_of.values())
    for name, source, opened in _sources(family):
        whole = opened(SynthesisGraph(generator) if isinstance(source, Generator) else source, "f32")
        for layer, stage in stage_of.items():
            if not stage or stage == stage_of.get(layer - 1):
                continue
            unshifted, shifted = _edited(generator, range(layer, len(generator.editable)))
            with open_halves(source, stage, "f32", opened) as halves:
                wanted = whole.run(shifted)
                assert np.ptp(wanted, axis=0).max() > 0, "the edit does something"
                # Two rows, as a traversal of one seed has them, and as many as there are images.
                for rows in (2, BATCH):
                    state = halves.state([each[:rows] for each in unshifted])
                    repeated = [each[[0] * BATCH] for each in state]
                    found = halves.suffix.run(halves.inputs(shifted, repeated))
                    # Torch takes other kernels for other batch sizes and strides: the last bits differ.
                    atol = 1e-5 if name == "eager" else 0.0
                    where = f"{name}, cut before stage {stage}, {rows} rows"
                    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=where)
        whole.close()


def test_an_edit_before_the_cut_would_be_lost(layered: Generator) -> None:
    # The test above could not fail if cuts were no cuts.
    unshifted, shifted = _edited(layered, range(3))
    opened = BACKENDS.load("eager").open
    with open_halves(layered, 1, "f32", opened) as halves:
        found = halves.suffix.run(halves.inputs(shifted, halves.state(unshifted)))
    assert np.abs(found - SynthesisGraph(layered)(torch.from_numpy(shifted[0])).numpy()).max() > 0.01


@pytest.mark.parametrize("name", ["layered", "classes"])
@pytest.mark.parametrize("backend", ["eager", "ort", "openvino_cpu"])
def test_a_runtime_opens_its_halves_and_checks_them(
    name: str, backend: str, request: pytest.FixtureRequest
) -> None:
    generator: Generator = request.getfixturevalue(name)
    source = generator if backend == "eager" else request.getfixturevalue(f"{name}_artifact")
    inputs = synthesis_inputs(generator, range(4))
    with open_runtime(source, backend, "f32") as runtime:
        wanted = runtime.session.run(inputs)
        for stage in range(len(generator.stages)):
            with runtime.halves(stage, 4) as halves:
                assert halves.stage == stage
                assert (halves.suffix is runtime.session) == (stage == 0)
                state = halves.state(inputs)
                assert bool(state) == (stage > 0)
                np.testing.assert_array_equal(halves.suffix.run(halves.inputs(inputs, state)), wanted)
                np.testing.assert_array_equal(halves.joined().run(inputs), wanted)
            # What was borrowed is still open.
            np.testing.assert_array_equal(runtime.session.run(inputs), wanted)
        with pytest.raises(SelectionError, match=r"cannot be cut before stage 99\. It has 3 stages"):
            runtime.halves(99, 4)
    with pytest.raises(BackendError, match="was closed"):
        runtime.halves(1, 4)


def test_a_half_that_renders_something_else_is_refused(layered_artifact: Artifact) -> None:
    # The graph is the same, but from the cut on its images are brighter: a runtime that errs there alone.
    model = onnx.load(str(layered_artifact.synthesis_path))
    with open_runtime(layered_artifact, "ort", "f32") as runtime:
        bias = next(
            each for each in model.graph.initializer if each.name.endswith("stages.2.convolution.bias")
        )
        brighter = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.2, bias.name)
        model.graph.initializer.remove(bias)
        model.graph.initializer.append(brighter)
        data = layered_artifact.synthesis_path.read_bytes()
        try:
            onnx.save(model, str(layered_artifact.synthesis_path))
            with pytest.raises(ParityError, match="cut before stage 1 on ort differs from torch fp32"):
                runtime.halves(1, 4)
        finally:
            layered_artifact.synthesis_path.write_bytes(data)


def test_pixels_at_the_end_of_a_half(layered: Generator, layered_artifact: Artifact) -> None:
    opened = BACKENDS.load("ort").open
    inputs = synthesis_inputs(layered, range(3))
    wanted = to_uint8(opened(layered_artifact.synthesis_path, "f32").run(inputs))
    for stage in (0, 1, 2):
        with open_halves(layered_artifact.synthesis_path, stage, "f32", opened, pixels=True) as halves:
            np.testing.assert_array_equal(halves.joined().run(inputs), wanted)


def test_the_first_stage_of_artefacts_and_of_layers_nobody_reads(layered_artifact: Artifact) -> None:
    with open_runtime(layered_artifact, "ort", "f32") as runtime:
        assert [runtime.first_stage([layer]) for layer in range(3)] == [0, 1, 2]
        assert runtime.first_stage([2, 1]) == 1
        assert runtime.first_stage([]) == 2, "what shifts nothing touches nothing"
    graph = {key: value for key, value in layered_artifact.content["graph"].items() if key != "reads"}
    with open_runtime(
        Artifact(layered_artifact.folder, {**layered_artifact.content, "graph": graph}), "ort", "f32"
    ) as runtime:
        assert runtime.first_stage([2]) == 0, "an artefact of an earlier version is not cut"


def test_a_half_without_a_layer_of_the_precision(small_dcgan: Generator, tmp_path: Path) -> None:
    recipe = Recipe(
        generator="any", graph=Graph(lowering="subpixel", precisions=("f32", "int8")),
        accept=usual_accept(("int8",)), batch=Batch(opt=4, max=4),
    )  # fmt: skip
    artifact = export_generator(small_dcgan, tmp_path / "artifact", recipe)
    inputs = synthesis_inputs(small_dcgan, range(4))
    for backend in ("ort", "openvino_cpu"):
        with open_runtime(artifact, backend, "int8") as runtime:
            wanted, precisions = runtime.session.run(inputs), set()
            for stage in range(1, len(small_dcgan.stages)):
                with runtime.halves(stage, 4) as halves:
                    assert halves.prefix is not None
                    precisions.add((halves.prefix.precision, halves.suffix.precision))
                    assert np.abs(halves.joined().run(inputs) - wanted).max() * 127.5 < 16
            # The first stage is a matrix product and the last one writes the picture: int8 leaves both alone.
            assert {("f32", "int8"), ("int8", "f32")} <= precisions


def test_another_refusal_is_no_reason_for_float32(layered_artifact: Artifact) -> None:
    def refuse(source: object, precision: str) -> Session:
        if precision != "f32":
            raise BackendError("out of memory")
        return BACKENDS.load("ort").open(source, precision)

    with pytest.raises(BackendError, match="out of memory"):
        open_halves(layered_artifact.synthesis_path, 1, "int8", refuse)
