"""Exports of generators with a mapping network, with classes, and with statistics chosen by psi."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from fastdirs.artifact import MANIFEST, REFERENCE, SYNTHESIS, Artifact, open_artifact
from fastdirs.backends import Array
from fastdirs.errors import ArtifactError, ParityError
from fastdirs.export import export_generator, make_reference
from fastdirs.generators import Generator
from fastdirs.manifest import sha256_file
from fastdirs.parity import compare
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, Graph, Recipe
from fastdirs.runtime import open_runtime
from fastdirs.verification import verify_artifact

RECIPE = Recipe(generator="any", graph=Graph(lowering="folded"), batch=Batch(opt=2, max=4))


def _run(path: Path, *inputs: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    images: Array = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return images


def _axes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_a_mapping_network_is_a_graph_of_its_own(layered_artifact: Artifact, layered: Generator) -> None:
    path = layered_artifact.mapping_path
    assert path is not None
    model = onnx.load(str(path), load_external_data=False)
    assert [(each.name, _axes(each)) for each in model.graph.input] == [
        ("z", ["batch", layered.z_dim]),
        ("psi", [layered.num_layers]),
    ]
    assert [each.name for each in model.graph.output] == ["latents"]
    z = layered.sample(range(3))
    psi = np.array([0.5, 0.5, 1.0], dtype=np.float32)
    wanted = layered.mapping(z, psi=0.5, cutoff=2).numpy()
    np.testing.assert_allclose(_run(path, z.numpy(), psi), wanted, atol=1e-5)


def test_a_mapping_that_reads_classes(conditional_artifact: Artifact, conditional: Generator) -> None:
    path = conditional_artifact.mapping_path
    assert path is not None
    model = onnx.load(str(path), load_external_data=False)
    assert [(each.name, _axes(each)) for each in model.graph.input] == [
        ("z", ["batch", conditional.z_dim]),
        ("c", ["batch", conditional.c_dim]),
        ("psi", [conditional.num_layers]),
    ]
    z, c = conditional.sample(range(5)), torch.rand(5, conditional.c_dim)
    psi = np.array([0.5, 0.5, 1.0], dtype=np.float32)
    wanted = conditional.mapping(z, c, psi=0.5, cutoff=2).numpy()
    np.testing.assert_allclose(_run(path, z.numpy(), c.numpy(), psi), wanted, atol=1e-5)


def test_latents_that_carry_a_place_have_a_mapping_too(
    classes_artifact: Artifact, classes: Generator
) -> None:
    path = classes_artifact.mapping_path
    assert path is not None
    z = classes.sample(range(3))
    # Between the rows 2 and 3 of 5; the original code swaps their shares (see latents.statistics_place).
    latents = _run(path, z.numpy(), np.array([0.6, 0.6, 0.6, 2.6], dtype=np.float32))
    np.testing.assert_allclose(latents, classes.mapping(z, psi=0.6).numpy(), atol=1e-6)
    np.testing.assert_allclose(latents[:, 3], 2.6, atol=1e-6)


@pytest.mark.parametrize("backend", ["ort", "openvino_cpu"])
@pytest.mark.parametrize("name", ["layered", "conditional", "classes"])
@pytest.mark.parametrize(("psi", "cutoff"), [(1.0, None), (0.7, None), (0.7, 2), (0.0, None)])
def test_seeds_become_images_without_the_generator(
    name: str, backend: str, psi: float, cutoff: int | None, request: pytest.FixtureRequest
) -> None:
    generator: Generator = request.getfixturevalue(name)
    artifact: Artifact = request.getfixturevalue(f"{name}_artifact")
    seeds, c = (5, 3, 1000), 2 if generator.c_dim else None
    wanted = generator.mapping(generator.sample(seeds), c, psi, cutoff)
    with open_runtime(artifact.folder, backend) as runtime:
        found = runtime.latents_of(psi, cutoff, c)(seeds)
        images = runtime.synthesize(found.numpy(), c)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert compare(images, generator.synthesis(wanted, c).numpy()).within(DEFAULT_ACCEPT[runtime.precision])


def test_a_mapping_beyond_the_tolerance(layered: Generator, tmp_path: Path) -> None:
    class Forked(type(layered)):  # type: ignore[misc]
        """Its mapping does something else where it is traced, so the graph is not what torch computes."""

        def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
            latents: Tensor = super().map_z(z, c)
            return latents + 0.5 if torch.compiler.is_exporting() else latents

    forked = Forked().eval().requires_grad_(False)
    with pytest.raises(ParityError, match=r"mapping\.onnx on \w+ at batch \d differs from torch fp32"):
        export_generator(forked, tmp_path / "artifact", RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.failed.png"]


@pytest.mark.parametrize("name", ["conditional", "classes"])
def test_the_reference_keeps_the_classes(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    generator: Generator = request.getfixturevalue(name)
    artifact: Artifact = request.getfixturevalue(f"{name}_artifact")
    reference = artifact.reference()
    drawn = generator.sample_classes(range(8))
    assert drawn is not None
    assert reference.c is not None
    np.testing.assert_array_equal(reference.c.argmax(1), drawn.numpy())
    assert len(reference.inputs) == 1 + (generator.class_in == "synthesis")
    assert [len(reference.class_inputs(half)) for half in ("mapping", "synthesis")] == [
        int(generator.class_in == half) for half in ("mapping", "synthesis")
    ]
    made = make_reference(generator, 8)
    np.testing.assert_allclose(made.images, reference.images, atol=1e-6)
    # Other classes give other pictures, and a verification notices.
    folder = Path(shutil.copytree(artifact.folder, tmp_path / "artifact"))
    tensors = load_file(folder / REFERENCE)
    _rewrite(folder, {**tensors, "c": np.ascontiguousarray(np.roll(tensors["c"], 1, axis=1))})
    with pytest.raises(ParityError, match=f"{SYNTHESIS} on"):
        verify_artifact(open_artifact(folder))
    _rewrite(folder, {name: each for name, each in tensors.items() if name != "c"})
    with pytest.raises(ArtifactError, match=f"{REFERENCE} is broken"):
        verify_artifact(open_artifact(folder))


def _rewrite(folder: Path, tensors: dict[str, Array]) -> None:
    """Other reference images, and a manifest that vouches for them."""
    save_file(tensors, folder / REFERENCE)
    content = json.loads((folder / MANIFEST).read_text())
    content["files"][REFERENCE] = sha256_file(folder / REFERENCE)
    (folder / MANIFEST).write_text(json.dumps(content))


def test_torch_renders_nothing_twice(layered: Generator, tmp_path: Path) -> None:
    rendered: list[int] = []

    def note(stage: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        if not torch.compiler.is_exporting():
            rendered.append(len(output))

    handle = layered.stages[0].register_forward_hook(note)
    try:
        artifact = export_generator(layered, tmp_path / "artifact", RECIPE)
    finally:
        handle.remove()
    backends = {row["backend"] for row in artifact.content["verified"]}
    # Four to verify with; two to see what the stages hand on; for each backend what the mapping does worst,
    # and what it should be.
    assert sum(rendered) == 4 + 2 + len(backends) * 2
    assert len(artifact.reference().images) == 4


def test_an_artefact_of_an_earlier_version(layered_artifact: Artifact, toy_artifact: Artifact) -> None:
    """Version 0.1.0 recorded neither bounds nor classes nor statistics."""
    for artifact in (layered_artifact, toy_artifact):
        later = ("z_bound", "class_in", "truncation_rows")
        identity = {name: value for name, value in artifact.generator.items() if name not in later}
        old = replace(artifact, content={**artifact.content, "generator": identity})
        verify_artifact(old)
        with open_runtime(old, "ort") as runtime, open_runtime(artifact, "ort") as now:
            latents = runtime.latents_of(0.7)((1, 2)).numpy()
            np.testing.assert_array_equal(latents, now.latents_of(0.7)((1, 2)).numpy())
            np.testing.assert_array_equal(runtime.synthesize(latents), now.synthesize(latents))
