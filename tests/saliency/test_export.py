"""An exported segmenter: what is in the folder, what it was compared with, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fastdirs.backends import BACKENDS, engine_path, graph_backends
from fastdirs.errors import (
    ArtifactError,
    CheckpointError,
    OutputError,
    ParityError,
    SelectionError,
    UnknownNameError,
)
from fastdirs.manifest import Json, read_json, sha256_file, write_json
from fastdirs.recipe import Batch, Engine
from fastdirs.saliency.export import (
    GRAPH,
    REFERENCE,
    SaliencyGraph,
    SegmenterArtifact,
    export_segmenter,
    is_segmenter_artifact,
    make_scenes,
    open_segmenter_artifact,
    verify_segmenter,
)
from fastdirs.saliency.fitting import fit
from fastdirs.saliency.parity import ACCEPT, compare_saliency
from fastdirs.segmenters import SEGMENTERS, Segmenter, build_segmenter, save_segmenter

BATCH = Batch(opt=2, max=5)
CONTENT = {"dataset": {"sha256": "ab"}, "training": {"steps": 3}}
PAIRS = graph_backends(tuple(ACCEPT))[0]

pytest.importorskip("onnxruntime", reason="pip install 'fastdirs[cpu]'")


class _Tiny(Segmenter):
    """Saliency by brightness: quick to trace. With `drift` it answers differently once it has been traced."""

    kind = "tiny"

    def __init__(self, img_channels: int = 3, drift: float = 0.0, bias: float = 0.25) -> None:
        super().__init__(img_channels, 16, 1)
        self.bias = torch.nn.Parameter(torch.tensor(bias))
        self.drift = drift

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = 8 * images.mean(dim=1) + self.bias
        return logits if torch.compiler.is_exporting() else logits + self.drift


def _lived_in(kind: str) -> Segmenter:
    """Random weights, statistics of pictures, and saliency on both sides of the threshold."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        segmenter = build_segmenter(kind, 3, 32, 4)
        scenes = make_scenes(3, 32, 8)
        for _ in range(40):
            segmenter(scenes)
        logits = segmenter.eval()(scenes)
        last = [module for module in segmenter.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        scale = 4 / logits.std()
        last.weight *= scale
        assert last.bias is not None
        last.bias *= scale
        # Of two logits the difference counts, of one itself.
        last.bias[-1] -= scale * logits.median()
    return segmenter.train()


@pytest.fixture(scope="module", params=SEGMENTERS.names())
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SegmenterArtifact, Segmenter]:
    segmenter = _lived_in(request.param)
    out = tmp_path_factory.mktemp("segmenters") / "artifact"
    return export_segmenter(segmenter, out, content=CONTENT, batch=BATCH), segmenter


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact that is copied, not changed."""
    out = tmp_path_factory.mktemp("tiny") / "artifact"
    return export_segmenter(_Tiny(), out, content=CONTENT, batch=BATCH).folder


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copied"))


def _edit(folder: Path, changes: Json) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**content, **changes})


def test_the_graph(exported: tuple[SegmenterArtifact, Segmenter]) -> None:
    artifact, segmenter = exported
    assert sorted(path.name for path in artifact.folder.iterdir()) == ["manifest.json", REFERENCE, GRAPH]
    model = onnx.load(str(artifact.graph_path))
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["batch", 3, 32, 32], "saliency": ["batch", 32, 32]}
    identity = json.loads(model.metadata_props[0].value)["segmenter"]
    assert identity["kind"] == segmenter.kind


def test_the_manifest(exported: tuple[SegmenterArtifact, Segmenter]) -> None:
    artifact, segmenter = exported
    content = artifact.content
    assert open_segmenter_artifact(artifact.folder) == artifact
    assert content["kind"] == "segmenter-artifact"
    assert content["recorded"] == CONTENT
    assert content["segmenter"]["kind"] == segmenter.kind
    assert content["segmenter"]["img_resolution"] == 32
    assert content["files"] == {name: sha256_file(artifact.folder / name) for name in (GRAPH, REFERENCE)}
    assert artifact.batch == BATCH
    assert artifact.accept == ACCEPT
    assert {(row["backend"], row["precision"]) for row in content["verified"]} == set(PAIRS)
    for row in content["verified"]:
        assert row["batch_sizes"] == [1, 2, 5]
        assert row["parity"]["threshold"] == 0.5
        if row["precision"] == "f32":
            assert row["accepted"]
            assert row["parity"]["largest"] <= 1e-3
            assert row["parity"]["iou"] >= 0.999
    assert segmenter.training, "the caller's network is left as it was"
    text = (artifact.folder / "manifest.json").read_text() + artifact.graph_path.read_bytes().decode(
        "latin-1"
    )
    assert str(Path.home()) + "/" not in text
    assert "fastdirs/segmenters" not in text


def test_every_backend_answers_as_torch(exported: tuple[SegmenterArtifact, Segmenter]) -> None:
    artifact, segmenter = exported
    images = make_scenes(3, 32, 4).flip(2, 3)
    segmenter.eval()
    with torch.inference_mode():
        wanted = torch.sigmoid(segmenter(images)).numpy()
    segmenter.train()
    assert 0.2 < (wanted >= 0.5).mean() < 0.8, "there is a mask to compare"
    for backend, precision in PAIRS:
        session = BACKENDS.load(backend).open(artifact.graph_path, precision, False)
        found = session.run([images.numpy()])
        session.close()
        parity = compare_saliency(found, wanted)
        assert parity.within(ACCEPT[precision])


def test_verified_again_without_weights(exported: tuple[SegmenterArtifact, Segmenter]) -> None:
    lines: list[str] = []
    rows = verify_segmenter(open_segmenter_artifact(exported[0].folder), lines.append)
    assert [(row["backend"], row["precision"]) for row in rows] == PAIRS
    assert len(lines) == len(rows)
    assert all("IoU of masks" in line for line in lines)


@pytest.mark.parametrize("exported", ["unet"], indirect=True)
def test_a_file_of_weights(exported: tuple[SegmenterArtifact, Segmenter], tmp_path: Path) -> None:
    first, segmenter = exported
    save_segmenter(segmenter, tmp_path / "segmenter.safetensors", CONTENT)
    artifact = export_segmenter(
        tmp_path / "segmenter.safetensors", tmp_path / "out", batch=Batch(opt=1, max=1), precisions=("f32",)
    )
    assert artifact.content["recorded"] == CONTENT
    assert artifact.content["segmenter"] == first.content["segmenter"]
    assert sha256_file(artifact.graph_path) == sha256_file(first.graph_path), "equal weights, equal bytes"


def test_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        export_segmenter(tmp_path / "missing.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_grey_pictures_in_f32_alone(tmp_path: Path) -> None:
    artifact = export_segmenter(_Tiny(1), tmp_path / "grey", batch=Batch(opt=1, max=2), precisions=("f32",))
    assert artifact.reference()[0].shape == (8, 1, 16, 16)
    assert artifact.content["recorded"] == {}
    assert list(artifact.accept) == ["f32"]
    assert {row["precision"] for row in artifact.content["verified"]} == {"f32"}
    assert artifact.content["verified"][0]["batch_sizes"] == [1, 2]


def test_given_pictures_are_compared(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (40, 20 + n, 3), dtype=np.uint8) for n in range(3)]
    artifact = export_segmenter(
        _Tiny(), tmp_path / "out", images=pictures, batch=Batch(opt=1, max=1), precisions=("f32",)
    )
    images, saliency = artifact.reference()
    np.testing.assert_array_equal(images[2], fit(pictures[2], 3, 16))
    assert saliency.shape == (3, 16, 16)
    assert artifact.content["reference"] == "given pictures"


@pytest.mark.parametrize(
    ("precisions", "error", "message"),
    [
        (("f32", "bf61"), UnknownNameError, "'bf61'. Did you mean 'bf16'"),
        (("bf16",), SelectionError, "verified in f32 first; only bf16 was asked for"),
        ((), SelectionError, "only nothing was asked for"),
    ],
)
def test_precisions(
    precisions: tuple[str, ...], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_segmenter(_Tiny(), tmp_path / "out", precisions=precisions)


def test_a_graph_that_differs_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(
        ParityError, match=r"saliency\.onnx on .* in f32 differs from torch fp32: saliency error"
    ):
        export_segmenter(_Tiny(drift=0.5), tmp_path / "out", batch=BATCH)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_never_finds_anything_is_not_kept(tmp_path: Path) -> None:
    # Little saliency on the way in, none on the way out: all errors are small, and all masks empty.
    with pytest.raises(ParityError, match=r"IoU of masks 0.* at a saliency of"):
        export_segmenter(_Tiny(drift=20.0, bias=-32.0), tmp_path / "out", batch=BATCH)
    with pytest.raises(ParityError, match=r"so there are no masks to compare\. Pass --images"):
        export_segmenter(_Tiny(bias=-50.0), tmp_path / "out", batch=BATCH)
    assert not list(tmp_path.iterdir())
    artifact = export_segmenter(_Tiny(bias=-8.0), tmp_path / "out", batch=BATCH, precisions=("f32",))
    for row in artifact.content["verified"]:
        assert 0 < row["parity"]["threshold"] < 0.5
        assert row["parity"]["iou"] >= 0.999


def test_what_exists_is_kept(copied: Path) -> None:
    before = sha256_file(copied / "manifest.json")
    with pytest.raises(OutputError, match="exists already"):
        export_segmenter(_Tiny(), copied, batch=BATCH)
    with pytest.raises(ParityError):
        export_segmenter(_Tiny(drift=0.5), copied, batch=BATCH, force=True)
    assert sha256_file(copied / "manifest.json") == before
    export_segmenter(_Tiny(), copied, batch=Batch(opt=1, max=1), precisions=("f32",), force=True)
    assert open_segmenter_artifact(copied).batch == Batch(opt=1, max=1)


@pytest.mark.parametrize("name", [GRAPH, REFERENCE])
def test_missing_and_changed_files(name: str, copied: Path) -> None:
    with (copied / name).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArtifactError, match=f"{name} changed since its manifest was written"):
        open_segmenter_artifact(copied)
    (copied / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        open_segmenter_artifact(copied)


@pytest.mark.parametrize("key", ["segmenter", "recorded", "batch", "accept", "files"])
def test_a_manifest_that_lacks_something(key: str, copied: Path) -> None:
    content = json.loads((copied / "manifest.json").read_text())
    del content[key]
    write_json(copied / "manifest.json", content)
    with pytest.raises(ArtifactError, match=f"says nothing of {key}"):
        open_segmenter_artifact(copied)


def test_a_manifest_of_something_else(copied: Path) -> None:
    _edit(copied, {"kind": "artifact"})
    assert not is_segmenter_artifact(copied)
    with pytest.raises(ArtifactError, match="not the manifest of a fastdirs segmenter-artifact"):
        open_segmenter_artifact(copied)


def test_opens_by_folder_or_file(copied: Path, tmp_path: Path) -> None:
    for path in (copied, copied / GRAPH, copied / "manifest.json"):
        assert is_segmenter_artifact(path)
        assert open_segmenter_artifact(path).folder == copied
    assert not is_segmenter_artifact(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="does not exist"):
        open_segmenter_artifact(tmp_path / "nothing")


def test_a_broken_reference(copied: Path) -> None:
    (copied / REFERENCE).write_bytes(b"no tensors")
    _edit(copied, {"files": {name: sha256_file(copied / name) for name in (GRAPH, REFERENCE)}})
    with pytest.raises(ArtifactError, match=f"{REFERENCE} is broken"):
        verify_segmenter(open_segmenter_artifact(copied))


def test_scenes_are_the_same_each_time_and_hold_objects() -> None:
    scenes = make_scenes(3, 40, 5)
    assert scenes.shape == (5, 3, 40, 40)
    assert torch.equal(scenes, make_scenes(3, 40, 5))
    assert scenes.abs().max() <= 1
    assert scenes.std(dim=0).min() > 0
    assert scenes.std(dim=(2, 3)).min() > 0.05


def test_the_graph_ends_in_saliency() -> None:
    segmenter = _Tiny().eval()
    with torch.inference_mode():
        saliency = SaliencyGraph(segmenter)(make_scenes(3, 16, 2))
        assert torch.equal(saliency >= 0.5, segmenter(make_scenes(3, 16, 2)) >= 0)
    assert saliency.shape == (2, 16, 16)
    assert 0 <= saliency.min() <= saliency.max() <= 1


def test_an_engine_beside_the_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine, out = Engine(to="tensorrt-rtx", compute_capability=("8.9",)), tmp_path / "artifact"
    export_segmenter(_lived_in("unet"), out, batch=BATCH, engine=engine)
    path = engine_path(out / GRAPH, "tensorrt-rtx")
    content = read_json(path.with_name(f"{path.name}.json"), "engine")
    assert content["profile"] == {"min": 1, "opt": 2, "max": 5}
    assert {path.name, f"{path.name}.json"} <= set(open_segmenter_artifact(out).content["files"])
