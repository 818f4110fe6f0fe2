"""Graphs in several precisions, engines of them, and what is left when a graph changes the picture."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fastdirs.artifact import Artifact, open_artifact
from fastdirs.backends import engine_path
from fastdirs.errors import BackendError, OutputError, ParityError, RecipeError, UnknownNameError
from fastdirs.export import export_generator
from fastdirs.generators import Generator
from fastdirs.images import decode, to_uint8
from fastdirs.manifest import sha256_file
from fastdirs.module_generator import ModuleGenerator
from fastdirs.recipe import Batch, Engine, Graph, Recipe, Tolerance, usual_accept
from fastdirs.runtime import open_runtime
from fastdirs.verification import verify_artifact

ALL = ("f32", "f16", "bf16", "int8")
LENIENT = Tolerance(mean=30.0, max=255.0, psnr=0.0)


def _recipe(*precisions: str, **changes: object) -> Recipe:
    recipe = Recipe(
        generator="any", graph=Graph(precisions=precisions),
        accept={**usual_accept(precisions), "int8": LENIENT}, batch=Batch(opt=4, max=5),
    )  # fmt: skip
    return replace(recipe, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def everything(small_dcgan: Generator, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_generator(small_dcgan, tmp_path_factory.mktemp("precisions") / "artifact", _recipe(*ALL))


def test_a_graph_for_each_precision(everything: Artifact) -> None:
    assert {name: path.name for name, path in everything.graphs.items()} == {
        "f32": "synthesis.onnx", "f16": "synthesis.f16.onnx", "bf16": "synthesis.bf16.onnx",
        "int8": "synthesis.int8.onnx",
    }  # fmt: skip
    for path in everything.graphs.values():
        assert everything.content["files"][path.name] == sha256_file(path)
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
        kinds = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
        assert set(kinds) == {onnx.TensorProto.FLOAT}, "whoever feeds them need not know"
    assert everything.content["int8"], "what was done is recorded"
    assert open_artifact(everything.folder).graphs == everything.graphs


def test_each_is_verified_at_three_batch_sizes(everything: Artifact) -> None:
    rows = {(row["backend"], row["precision"]): row for row in everything.content["verified"]}
    assert {precision for _, precision in rows} == set(ALL)
    for row in rows.values():
        assert row["batch_sizes"] == [1, 2, 5]
        assert row["accepted"]
    assert "f16 rounded, computed in f32" in rows["ort", "f16"]["provider"], "no CPU computes in f16"
    assert "bf16 rounded, computed in f32" in rows["ort", "bf16"]["provider"]
    errors = {precision: rows["ort", precision]["parity"]["mean"] for precision in ALL}
    # As many bits as each has.
    assert errors["f32"] < errors["f16"] < errors["bf16"] < errors["int8"]
    again = verify_artifact(everything)
    assert {(row["backend"], row["precision"]) for row in again} == set(rows)


@pytest.mark.parametrize("backend", ["ort", "openvino_cpu"])
def test_int8_is_run_where_it_is_asked_for(
    backend: str, everything: Artifact, small_dcgan: Generator
) -> None:
    latents = small_dcgan.mapping(small_dcgan.sample(range(3)))
    with open_runtime(everything, backend, "int8") as runtime:
        assert runtime.precision == "int8"
        found = runtime.synthesize(latents.numpy())
    error = np.abs(found - small_dcgan.synthesis(latents).detach().numpy())
    assert 0 < error.mean() * 127.5 < LENIENT.mean


def test_an_artefact_without_the_graph(layered_artifact: Artifact) -> None:
    accept = {**layered_artifact.content["accept"], "int8": {"mean": 30.0, "max": 255.0, "psnr": 0.0}}
    wider = Artifact(layered_artifact.folder, {**layered_artifact.content, "accept": accept})
    with pytest.raises(BackendError, match=r"written in int8, but this artefact holds f32\. Export again"):
        open_runtime(wider, "ort", "int8")


class _Huge(nn.Module):
    """Its features are beyond 65504, the largest number of f16; its images are not beyond 1."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 8, 1)
        self.narrow = nn.Conv2d(8, 3, 3, padding=1)
        nn.init.constant_(self.wide.weight, 3000.0)
        nn.init.constant_(self.narrow.weight, 1e-7)
        nn.init.constant_(self.narrow.bias, -0.7)

    def forward(self, z: Tensor) -> Tensor:
        features = z.abs().add(8)[:, :, None, None].expand(-1, -1, 8, 8)
        return torch.tanh(self.narrow(torch.relu(self.wide(features))))


def test_a_precision_that_overflows_is_refused_with_a_picture(tmp_path: Path) -> None:
    generator = ModuleGenerator(_Huge().eval(), z_dim=4)
    out = tmp_path / "artifact"
    with pytest.raises(ParityError, match=r"synthesis\.f16\.onnx on ort in f16 differs") as error:
        export_generator(generator, out, _recipe("f32", "f16"))
    assert "artifact.failed.png shows the worst image" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.failed.png"], "nothing else is kept"
    picture = decode((tmp_path / "artifact.failed.png").read_bytes())
    assert picture.shape == (8, 3 * 8, 3)
    references = [
        to_uint8(generator.synthesis(generator.mapping(generator.sample([seed]))))[0] for seed in range(5)
    ]
    assert any(np.array_equal(picture[:, :8], each) for each in references), "torch's image is on the left"
    # In bf16, which has the range of f32, it is fine.
    wider = Tolerance(mean=1.0, max=24.0, psnr=42.0)
    accept = {**usual_accept(("f32", "bf16")), "bf16": wider}
    export_generator(generator, out, _recipe("f32", "bf16", accept=accept))
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"], "and the picture is out of date"


def test_what_is_accepted_nowhere_shows_its_worst_image(layered: Generator, tmp_path: Path) -> None:
    exact = Tolerance(mean=0.0, max=0.0, psnr=300.0)
    with pytest.raises(ParityError, match=r"artifact\.failed\.png shows the worst image"):
        export_generator(layered, tmp_path / "artifact", _recipe("f32", accept={"f32": exact}))
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.failed.png"]


def test_engines_lie_beside_their_graphs(layered: Generator, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    recipe = _recipe(
        "f32", "f16", engine=Engine(to="tensorrt-rtx", compute_capability=("8.6", "8.9", "12.0"))
    )
    seen: list[tuple[str, int, int]] = []
    artifact = export_generator(layered, tmp_path / "a", recipe, progress=lambda *step: seen.append(step))
    assert seen
    names = [engine_path(path, "tensorrt-rtx").name for path in artifact.graphs.values()]
    assert names == ["synthesis.tensorrt-rtx.engine", "synthesis.f16.tensorrt-rtx.engine"]
    assert set(artifact.content["engines"]) == {*names, "mapping.tensorrt-rtx.engine"}
    for name, content in artifact.content["engines"].items():
        assert json.loads((artifact.folder / f"{name}.json").read_text()) == content
        assert content["compute_capabilities"] == ["8.6", "8.9", "12.0"]
        assert {name, f"{name}.json"} <= set(artifact.content["files"])
    assert open_artifact(artifact.folder).content == artifact.content


def test_full_tensorrt_needs_a_gpu(layered: Generator, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(BackendError, match="driver"):
        export_generator(layered, tmp_path / "a", _recipe("f32", engine=Engine(to="tensorrt")))
    assert not any(tmp_path.iterdir())


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=r"no precision 'fp16'\. Did you mean 'f16'"):
        usual_accept(("fp16",))
    with pytest.raises(RecipeError, match=r"no target 'tensorrt_rtx'\. Did you mean 'tensorrt-rtx'"):
        Engine(to="tensorrt_rtx")
    with pytest.raises(RecipeError, match="no engine is built"):
        Engine(compute_capability=("8.9",))
    with pytest.raises(RecipeError, match="'foo' is no compute capability"):
        Engine(to="tensorrt-rtx", compute_capability=("foo",))
    with pytest.raises(RecipeError, match="optimization_level is 6"):
        Engine(optimization_level=6)
    with pytest.raises(RecipeError, match=r"names 'int8', but there is no \[accept.int8\]"):
        Recipe(generator="toy", graph=Graph(precisions=("f32", "int8")))


def test_the_folder_that_one_is_in(
    layered: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", "/"):
        with pytest.raises(OutputError):
            export_generator(layered, out, _recipe("f32"))


def test_what_a_traversal_resumes_with_depends_on_every_graph(everything: Artifact) -> None:
    files = {**everything.content["files"], "synthesis.int8.onnx": "another"}
    assert Artifact(everything.folder, {**everything.content, "files": files}).sha256 != everything.sha256
