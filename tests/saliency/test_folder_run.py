"""What a run over a folder records: names of outputs, its choice of a runtime, damage."""

import json
from pathlib import Path

import pytest

from fastdirs.errors import ArtifactError, DatasetError, OutputError
from fastdirs.manifest import manifest, write_json
from fastdirs.recipe import Batch
from fastdirs.saliency.export import export_segmenter, segmenter_settings
from fastdirs.saliency.folder_run import (
    KIND,
    RUN_FILE,
    choice_of,
    earlier_run,
    name_outputs,
    remove_run,
    remove_stale,
)
from fastdirs.segmenters import build_segmenter, save_segmenter

ASKED = {
    "segmenter": "ab", "threshold": 0.5, "hard": False, "backend": "ort", "precision": "f32", "batch_size": 4,
}  # fmt: skip


def _paths(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12")
    return [folder / name for name in names]


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (["a.jpg", "b.png"], ["a.png", "b.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["x/a.jpg", "a.png"], ["x/a.png", "a.png"]),
        (["a.jpg", "a.jpg.png", "a.png"], ["a.jpg.png", "a.jpg.png.png", "a.png.png"]),
        (["a.jpg", "A.bmp"], ["a.jpg.png", "A.bmp.png"]),
        (["a.b.jpg", "a.c.jpg"], ["a.b.png", "a.c.png"]),
    ],
)
def test_names_of_outputs(names: list[str], outputs: list[str], tmp_path: Path) -> None:
    pictures = name_outputs(_paths(tmp_path, *names), tmp_path)
    assert [picture.output for picture in pictures] == outputs
    assert [picture.record for picture in pictures] == [[name, 2] for name in names]


def test_a_picture_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.png cannot be looked at: No such file"):
        name_outputs([tmp_path / "gone.png"], tmp_path)


def test_what_was_chosen(tmp_path: Path) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "out"
    segmenter = build_segmenter("unet", 3, 32, 4)
    save_segmenter(segmenter, model, {})
    artifact = export_segmenter(model, tmp_path / "artifact", batch=Batch(opt=1, max=1))
    assert choice_of(out, model) is None
    mine = {**ASKED, "segmenter": segmenter_settings(segmenter)["weights_sha256"]}
    choice = {"backend": "ort", "precision": "f32", "batch_size": 4}
    for changes, of_graph, of_weights in (
        ({}, choice, None),
        ({"backend": "eager"}, None, {**choice, "backend": "eager"}),
        ({"segmenter": "ab"}, None, None),
        ({"backend": "abacus"}, None, None),
        ({"backend": None}, None, None),
    ):
        write_json(out / RUN_FILE, manifest(KIND, {**mine, **changes, "what": [], "pictures": {}}))
        assert choice_of(out, artifact.folder) == of_graph
        assert choice_of(out, model) == of_weights


def test_an_empty_folder_is_begun(tmp_path: Path) -> None:
    assert earlier_run(tmp_path / "new", ASKED, False) is None
    (tmp_path / ".lock").touch()
    (tmp_path / f".{RUN_FILE}.77.tmp").touch()
    assert earlier_run(tmp_path, ASKED, False) is None
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="holds no run"):
        earlier_run(tmp_path, ASKED, False)


@pytest.mark.parametrize("change", [{"pictures": None}, {"what": "masks"}, {"pictures": [1]}])
def test_damage(change: dict[str, object], tmp_path: Path) -> None:
    content = manifest(KIND, {**ASKED, "what": ["masks"], "pictures": {}})
    write_json(tmp_path / RUN_FILE, {**content, **change})
    with pytest.raises(OutputError, match=r"run\.json is damaged\. Pass --force"):
        earlier_run(tmp_path, ASKED, False)
    assert earlier_run(tmp_path, ASKED, True) is None


def test_another_schema(tmp_path: Path) -> None:
    content = manifest(KIND, {**ASKED, "what": ["masks"], "pictures": {}})
    (tmp_path / RUN_FILE).write_text(json.dumps({**content, "schema": 99}))
    with pytest.raises(ArtifactError, match="has schema 99"):
        earlier_run(tmp_path, ASKED, False)


def test_only_its_own_files_are_removed(tmp_path: Path) -> None:
    _paths(tmp_path, "masks/a.png", "mine/a.png", RUN_FILE, "preview.png")
    remove_run(tmp_path, ("masks", "cutouts", "preview.png"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_stale_outputs_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _paths(out, "masks/a.png", "cutouts/a.png", "masks/b.png", "masks/x/.b.png.1.tmp", "masks/.mine.tmp")
    pictures = name_outputs(_paths(tmp_path, "a.jpg", "b.jpg", "c.jpg"), tmp_path)
    remove_stale(out, pictures, {"a.png": ["a.jpg", 3], "b.png": ["b.jpg", 2]})
    left = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert left == ["masks/.mine.tmp", "masks/b.png"]
