import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from fastdirs.artifact import MANIFEST, MAPPING, REFERENCE, SYNTHESIS, Artifact, open_artifact
from fastdirs.backends import BACKENDS, Array
from fastdirs.errors import (
    ArtifactError,
    BackendError,
    ContractError,
    OutputError,
    ParityError,
    RecipeError,
    UnknownNameError,
)
from fastdirs.export import export_generator, export_recipe
from fastdirs.generators import Generator
from fastdirs.graphs import SynthesisGraph, synthesis_inputs
from fastdirs.latents import sample_z
from fastdirs.loading import load_generator, save_generator
from fastdirs.lowering import FORMS
from fastdirs.manifest import sha256_file
from fastdirs.module_generator import ModuleGenerator
from fastdirs.parity import compare
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, Graph, Recipe, Tolerance, load_recipe
from fastdirs.runtime import open_runtime
from fastdirs.verification import verify_artifact

EXACT = Tolerance(mean=0.0, max=0.0, psnr=300.0)


def _recipe(lowering: str = "folded", opset: int = 18, **values: object) -> Recipe:
    graph = Graph(lowering=lowering, opset=opset)
    return Recipe(**{"generator": "any", "graph": graph, "batch": Batch(opt=2, max=4), **values})  # type: ignore[arg-type]


def _run(path: Path, *inputs: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    images: Array = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return images


def _axes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


@pytest.fixture(params=["toy", "dcgan", "layered", "conditional", "classes"])
def exported(request: pytest.FixtureRequest) -> tuple[Artifact, Generator]:
    generator = "small_dcgan" if request.param == "dcgan" else request.param
    return request.getfixturevalue(f"{request.param}_artifact"), request.getfixturevalue(generator)


def test_one_file_with_names_and_metadata(exported: tuple[Artifact, Generator]) -> None:
    artifact, generator = exported
    expected = {MANIFEST, SYNTHESIS, REFERENCE} | ({MAPPING} if generator.has_mapping else set())
    assert {path.name for path in artifact.folder.iterdir()} == expected
    model = onnx.load(str(artifact.synthesis_path), load_external_data=False)
    assert all(each.data_location == onnx.TensorProto.DEFAULT for each in model.graph.initializer)
    read = ["c"] if generator.class_in == "synthesis" else []
    assert [each.name for each in model.graph.input] == ["latents", *read]
    assert [_axes(each) for each in model.graph.input[1:]] == [["batch", generator.c_dim]] * len(read)
    assert [each.name for each in model.graph.output] == ["images"]
    size = generator.img_resolution
    assert _axes(model.graph.input[0]) == ["batch", generator.num_layers, generator.dim]
    assert _axes(model.graph.output[0]) == ["batch", generator.img_channels, size, size]
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert model.producer_name == "fastdirs"
    metadata = {each.key: each.value for each in model.metadata_props}
    assert json.loads(metadata["fastdirs"])["generator"] == generator.identity()


def test_says_nothing_of_the_machine_that_made_it(exported: tuple[Artifact, Generator]) -> None:
    data = exported[0].synthesis_path.read_bytes()
    for word in (str(Path(__file__).parent), str(Path(torch.__file__).parent), "stack_trace"):
        assert word.encode() not in data


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_runs_at_any_batch_size(exported: tuple[Artifact, Generator], batch: int) -> None:
    artifact, generator = exported
    inputs = synthesis_inputs(generator, range(10, 10 + batch))
    images = _run(artifact.synthesis_path, *inputs)
    parity = compare(images, SynthesisGraph(generator)(*map(torch.from_numpy, inputs)).numpy())
    assert parity.within(DEFAULT_ACCEPT["f32"]), parity


def test_manifest_says_what_was_done(exported: tuple[Artifact, Generator]) -> None:
    artifact, generator = exported
    content = artifact.content
    assert content == json.loads((artifact.folder / MANIFEST).read_text())
    assert content["generator"] == generator.identity()
    assert content["batch"] == {"opt": 4, "max": 8}
    assert content["graph"]["lowering"] in FORMS
    assert content["graph"]["opset"] == 18
    assert set(content["accept"]) == {"f32", "bf16"}
    for name, expected in content["files"].items():
        assert sha256_file(artifact.folder / name) == expected
    installed = {
        (name, precision)
        for name in BACKENDS.names()
        if BACKENDS.load(name).runs == "graph"
        for precision in BACKENDS.load(name).precisions()
        if BACKENDS.load(name).graph_of(precision) == "f32"
    }
    assert {(row["backend"], row["precision"]) for row in content["verified"]} == installed
    assert all(row["batch_sizes"] == [1, 2, 8] for row in content["verified"])
    assert all(row["accepted"] for row in content["verified"] if row["precision"] == "f32")


def test_verifies_where_there_is_no_checkpoint(exported: tuple[Artifact, Generator]) -> None:
    lines: list[str] = []
    artifact = open_artifact(exported[0].folder)
    rows = verify_artifact(artifact, lines.append)
    if artifact.mapping_path is not None:
        assert lines.pop(0).startswith("latents by mapping.onnx")
    assert len(rows) == len(lines) == len(exported[0].content["verified"])
    assert all(row["accepted"] for row in rows if row["precision"] == "f32")
    assert all("at batch 1, 2, 8" in line for line in lines)


@pytest.mark.parametrize(
    ("form", "transposed", "shuffles", "products"),
    [("plain", 4, 0, 0), ("folded", 3, 0, 1), ("subpixel", 0, 2, 1)],
)
def test_every_form(
    small_dcgan: Generator, tmp_path: Path, form: str, transposed: int, shuffles: int, products: int
) -> None:
    artifact = export_generator(small_dcgan, tmp_path / "artifact", _recipe(form))
    assert artifact.content["graph"]["lowering"] == form
    nodes = Counter(node.op_type for node in onnx.load(str(artifact.synthesis_path)).graph.node)
    assert nodes["ConvTranspose"] == transposed
    assert nodes["DepthToSpace"] == shuffles
    assert nodes["Gemm"] + nodes["MatMul"] == products


def test_auto_takes_the_fastest_form_and_says_so(small_dcgan: Generator, tmp_path: Path) -> None:
    lines: list[str] = []
    weights, images = small_dcgan.weights_sha256, small_dcgan.synthesis(small_dcgan.latent_mean[None])
    artifact = export_generator(small_dcgan, tmp_path / "artifact", _recipe("auto"), report=lines.append)
    form = artifact.content["graph"]["lowering"]
    assert f"lowering: {form}, fastest here" in lines
    speeds = {line.split(" / ")[0]: 0.0 for line in lines if "images/s" in line}
    for line in lines:
        if "images/s" in line:
            name, speed = line.split(" / ")[0], float(line.split(": ")[1].split()[0])
            speeds[name] = max(speeds[name], speed)
    assert set(speeds) == {"folded", "subpixel"}
    assert speeds[form] == max(speeds.values())
    # The forms that lost are not kept, and the generator itself is as it was.
    assert {path.name for path in artifact.folder.iterdir()} == {MANIFEST, SYNTHESIS, REFERENCE}
    torch.testing.assert_close(small_dcgan.synthesis(small_dcgan.latent_mean[None]), images, rtol=0, atol=0)
    assert small_dcgan.weights_sha256 == weights


def test_batch_sizes_follow_the_image_size(tmp_path: Path) -> None:
    large = load_generator("toy", options={"resolution": "256"})
    artifact = export_generator(large, tmp_path / "artifact")
    assert artifact.content["batch"] == {"opt": 8, "max": 16}
    assert {tuple(row["batch_sizes"]) for row in artifact.content["verified"]} == {(1, 2, 16)}
    # 3 x 256 x 256 values of float32 each, of which 8 MiB are kept.
    assert len(artifact.reference().images) == 8


def test_unknown_form(toy: Generator, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no lowering form 'subpixle'. Did you mean 'subpixel'\?"):
        export_generator(toy, tmp_path / "artifact", _recipe("subpixle"))
    assert list(tmp_path.iterdir()) == []


def test_opset_is_the_one_asked_for(small_dcgan: Generator, tmp_path: Path) -> None:
    artifact = export_generator(small_dcgan, tmp_path / "artifact", _recipe(opset=20))
    assert onnx.load(str(artifact.synthesis_path)).opset_import[0].version == 20
    assert artifact.content["graph"]["opset"] == 20


def test_an_opset_that_the_exporter_does_not_write(
    small_dcgan: Generator,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    disabled = logging.root.manager.disable
    with pytest.raises(RecipeError, match=r"cannot be written in opset 7\. Use 18"):
        export_generator(small_dcgan, tmp_path / "artifact", _recipe(opset=7))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", ""), "what the exporter says is no help to a user"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.root.manager.disable == disabled, "what others log is seen again"


def test_beyond_the_tolerance_nothing_is_kept(toy: Generator, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"synthesis\.onnx on \w+ in f32 differs from torch fp32 by mean"):
        export_generator(toy, tmp_path / "artifact", _recipe(accept={"f32": EXACT}))
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.failed.png"]


def test_nothing_required_is_not_nothing_verified(toy: Generator, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="by more than is accepted in every precision"):
        export_generator(toy, tmp_path / "artifact", _recipe(accept={"f32": EXACT}, required=()))
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.failed.png"]


def test_a_precision_that_is_not_required_may_fail(toy: Generator, tmp_path: Path) -> None:
    accept = {"f32": DEFAULT_ACCEPT["f32"], "bf16": EXACT}
    artifact = export_generator(toy, tmp_path / "artifact", _recipe(accept=accept))
    assert artifact.content["precisions"] == ["f32"]
    assert {row["precision"] for row in artifact.content["verified"] if not row["accepted"]} <= {"bf16"}
    verify_artifact(artifact)
    with open_runtime(artifact) as runtime:
        assert runtime.precision == "f32"


def test_bf16_alone(layered: Generator, tmp_path: Path) -> None:
    recipe = _recipe(accept={"bf16": DEFAULT_ACCEPT["bf16"]}, required=("bf16",))
    if "bf16" not in BACKENDS.load("openvino_cpu").precisions():
        for accept in (recipe.accept, DEFAULT_ACCEPT):
            with pytest.raises(BackendError, match="Nothing here computes in bf16"):
                export_generator(layered, tmp_path / "artifact", replace(recipe, accept=accept))
        return
    artifact = export_generator(layered, tmp_path / "artifact", recipe)
    assert artifact.content["precisions"] == ["bf16"]
    assert [row["precision"] for row in verify_artifact(artifact)] == ["bf16"]


def test_an_interrupted_export_leaves_nothing(toy: Generator, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if "at batch" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_generator(toy, tmp_path / "artifact", _recipe(), report=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists(toy: Generator, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    before = export_generator(toy, out, _recipe())
    with pytest.raises(OutputError, match=r"exists already\. Choose another --out, or pass --force"):
        export_generator(toy, out, _recipe())
    with pytest.raises(ParityError):
        export_generator(toy, out, _recipe(accept={"f32": EXACT}), force=True)
    assert open_artifact(out) == before, "a failure costs nothing that was there"
    (out / "left-over.txt").write_text("of an earlier version")
    again = export_generator(toy, out, _recipe(), force=True)
    assert {path.name for path in out.iterdir()} == {MANIFEST, SYNTHESIS, REFERENCE}
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert again.content["files"] == before.content["files"], "equal work gives equal bytes"


def test_force_refuses_a_folder_that_it_did_not_make(toy: Generator, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("years of work")
    with pytest.raises(OutputError, match="was not made by this command"):
        export_generator(toy, out, _recipe(), force=True)
    assert [path.name for path in out.iterdir()] == ["chapter.txt"]


def test_a_recipe_for_other_weights(toy: Generator, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"for weights {'0' * 12}, but toy has {toy.weights_sha256[:12]}"):
        export_generator(toy, tmp_path / "artifact", _recipe(weights_sha256="0" * 64))
    assert list(tmp_path.iterdir()) == []


def test_what_no_graph_repeats(toy: Generator, tmp_path: Path) -> None:
    class Noisy(type(toy)):  # type: ignore[misc]
        exportable = False

    with pytest.raises(ContractError, match=r"toy draws new noise for each picture.*constant noise"):
        export_generator(Noisy(16), tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


class _BranchesOnValues(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        picture = z[:, :3, None, None].expand(-1, 3, 8, 8)
        return picture if picture.sum() > 0 else -picture


class _BuildsTheBatchIn(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        rows = [z[row : row + 1, :3, None, None].expand(-1, 3, 8, 8) for row in range(len(z))]
        return torch.cat(rows)


@pytest.mark.parametrize("module", [_BranchesOnValues, _BuildsTheBatchIn])
def test_a_module_that_cannot_be_traced(
    module: Callable[[], nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    generator = ModuleGenerator(module(), z_dim=4, name="mine")
    with pytest.raises(ContractError, match="mine cannot be traced into a graph with a dynamic batch"):
        export_generator(generator, tmp_path / "artifact", _recipe())
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_users_own_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3 * 8 * 8), nn.Tanh(), nn.Unflatten(1, (3, 8, 8)))
    artifact = export_generator(
        ModuleGenerator(module, z_dim=4, name="mine"), tmp_path / "artifact", _recipe()
    )
    z = sample_z(range(3), 4)
    found = _run(artifact.synthesis_path, z[:, None].numpy())
    assert compare(found, module(z).detach().numpy()).within(DEFAULT_ACCEPT["f32"])


def _swap_reference(artifact: Artifact, folder: Path, latents: Array, images: Array) -> Artifact:
    """A copy with other reference images, and a manifest that vouches for them."""
    shutil.copytree(artifact.folder, folder)
    tensors = {"latents": latents, "images": np.ascontiguousarray(images)}
    save_file(tensors, folder / REFERENCE)
    content = json.loads((folder / MANIFEST).read_text())
    content["files"][REFERENCE] = sha256_file(folder / REFERENCE)
    (folder / MANIFEST).write_text(json.dumps(content))
    return open_artifact(folder)


def test_verification_compares_with_the_reference_images(dcgan_artifact: Artifact, tmp_path: Path) -> None:
    reference = dcgan_artifact.reference()
    latents, images = reference.latents, reference.images
    verify_artifact(_swap_reference(dcgan_artifact, tmp_path / "same", latents, images))
    swapped = _swap_reference(dcgan_artifact, tmp_path / "swapped", latents, images[::-1])
    with pytest.raises(ParityError, match=r"synthesis\.onnx on \w+ in f32 differs from torch fp32"):
        verify_artifact(swapped)


def test_verification_needs_reference_images(toy_artifact: Artifact, tmp_path: Path) -> None:
    reference = toy_artifact.reference()
    empty = _swap_reference(toy_artifact, tmp_path / "empty", reference.latents[:0], reference.images[:0])
    with pytest.raises(ArtifactError, match="holds no reference images"):
        verify_artifact(empty)


def test_the_file_that_a_recipe_names_lies_beside_it(small_dcgan: Generator, tmp_path: Path) -> None:
    save_generator(small_dcgan, tmp_path / "weights.safetensors")
    text = 'generator = "weights.safetensors"\n[graph]\nlowering = "folded"\n[batch]\nopt = 1\nmax = 2\n'
    (tmp_path / "recipe.toml").write_text(text)
    artifact = export_recipe(load_recipe(tmp_path / "recipe.toml"), tmp_path, tmp_path / "artifact")
    assert artifact.generator["weights_sha256"] == small_dcgan.weights_sha256
    assert artifact.content["batch"] == {"opt": 1, "max": 2}


def test_a_generator_that_is_a_graph_already(dcgan_artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "own.onnx"
    model = onnx.load(str(dcgan_artifact.synthesis_path))
    onnx.helper.set_model_props(model, {})
    onnx.save(model, str(path))
    generator = load_generator(path)
    with pytest.raises(RecipeError, match="is a graph already: lowering 'folded' cannot apply"):
        export_generator(generator, tmp_path / "artifact", _recipe())
    artifact = export_generator(generator, tmp_path / "artifact", _recipe("auto"))
    assert artifact.content["graph"] == {"lowering": "plain", "opset": 18, "reads": []}
    latents = generator.mapping(sample_z(range(3), generator.z_dim))
    found = _run(artifact.synthesis_path, latents.numpy())
    assert compare(found, generator.synthesis(latents).numpy()).within(DEFAULT_ACCEPT["f32"])
