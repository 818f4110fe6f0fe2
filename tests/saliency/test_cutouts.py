"""Masks, saliency maps and cut-outs of a folder: contents, bad pictures, settings, runs that were killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdirs.backends import graph_backends
from fastdirs.errors import BackendError, DatasetError, OutputError, SelectionError, UnknownNameError
from fastdirs.images import decode
from fastdirs.recipe import Batch
from fastdirs.saliency.cutouts import OUTPUTS, PREVIEW_FILE, render, run_folder
from fastdirs.saliency.export import SegmenterArtifact, export_segmenter
from fastdirs.saliency.parity import ACCEPT
from fastdirs.saliency.runtime import SaliencyRuntime, open_saliency
from fastdirs.segmenters import Segmenter

PAIRS = graph_backends(tuple(ACCEPT))[0]


class _Bright(Segmenter):
    """Saliency by brightness."""

    kind = "bright"

    def __init__(self, size: int = 16) -> None:
        super().__init__(3, size, 1)
        self.steepness = torch.nn.Parameter(torch.tensor(12.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.steepness * images.mean(dim=1)


@pytest.fixture
def runtime() -> SaliencyRuntime:
    return open_saliency(_Bright(), batch_size=2)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> SegmenterArtifact:
    pytest.importorskip("onnxruntime", reason="pip install 'fastdirs[cpu]'")
    return export_segmenter(_Bright(), tmp_path_factory.mktemp("out") / "artifact", batch=Batch(opt=2, max=4))


def _scene(height: int, width: int) -> np.ndarray:
    """A bright left half on a dark ground."""
    scene = np.full((height, width, 3), (20, 30, 40), np.uint8)
    scene[:, : width // 2] = (230, 220, 210)
    return scene


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of mixed sizes, modes and formats."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate([(40, 60), (16, 16), (33, 200), (300, 20)]):
        Image.fromarray(_scene(*size)).save(folder / f"scene{number}.png")
    Image.fromarray(_scene(50, 40)).save(folder / "photo.jpg", quality=95)
    Image.fromarray(_scene(30, 30)).convert("L").save(folder / "grey.png")
    Image.fromarray(_scene(30, 34)).convert("P").save(folder / "palette.gif")
    turned = Image.fromarray(_scene(20, 44))
    turned.getexif()[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=turned.getexif())
    (folder / "notes.txt").write_text("no picture")
    return folder


def _sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {path.name: decode(path.read_bytes()).shape for path in sorted(folder.iterdir())}


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_every_picture_gets_its_outputs(runtime: SaliencyRuntime, folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    run = run_folder(runtime, folder, out, progress=lambda done, total: seen.append((done, total)))
    assert (run.num_pictures, run.num_written, run.skipped) == (8, 8, {})
    assert sorted(path.name for path in out.iterdir()) == sorted([*OUTPUTS, PREVIEW_FILE, "run.json"])
    wanted = {
        "grey.png": (30, 30), "palette.png": (30, 34), "photo.png": (50, 40), "scene0.png": (40, 60),
        "scene1.png": (16, 16), "scene2.png": (33, 200), "scene3.png": (300, 20), "turned.png": (44, 20),
    }  # fmt: skip
    for name, channels in zip(OUTPUTS, (1, 1, 4), strict=True):
        assert _sizes(out / name) == {key: (*size, channels) for key, size in wanted.items()}
    assert seen[0] == (0, 8)
    assert seen[-1] == (8, 8)
    assert seen == sorted(seen)


def test_what_the_outputs_show(runtime: SaliencyRuntime, folder: Path, tmp_path: Path) -> None:
    out = run_folder(runtime, folder, tmp_path / "out").folder
    mask = decode((out / "masks" / "scene0.png").read_bytes())[..., 0]
    assert set(np.unique(mask)) == {0, 255}
    assert (mask[:, :27] == 255).all()
    assert (mask[:, 33:] == 0).all()
    saliency = decode((out / "saliency" / "scene0.png").read_bytes())[..., 0]
    assert saliency[:, :20].min() > 240
    assert saliency[:, 40:].max() < 15
    cutout = decode((out / "cutouts" / "scene0.png").read_bytes())
    np.testing.assert_array_equal(cutout[..., 3], saliency)
    shown = saliency > 0
    np.testing.assert_array_equal(cutout[shown][:, :3], _scene(40, 60)[shown])
    # Turned as it is to be looked at: the bright half is on top.
    turned = decode((out / "masks" / "turned.png").read_bytes())[..., 0]
    assert turned[:15].min() == 255
    assert turned[30:].max() == 0


def test_rendering() -> None:
    pixels = np.full((1, 3, 3), 7, np.uint8)
    saliency = np.array([[0, 0.4, 1]], np.float32)
    assert render("saliency", pixels, saliency).tolist() == [[[0], [102], [255]]]
    assert render("masks", pixels, saliency).tolist() == [[[0], [0], [255]]]
    assert render("masks", pixels, saliency, 0.4).tolist() == [[[0], [255], [255]]]
    assert render("cutouts", pixels, saliency).tolist() == [[[0, 0, 0, 0], [7, 7, 7, 102], [7, 7, 7, 255]]]
    hard = render("cutouts", pixels, saliency, hard=True)
    assert hard.tolist() == [[[0, 0, 0, 0], [0, 0, 0, 0], [7, 7, 7, 255]]]


def test_a_cut_out_keeps_the_opacity_of_its_picture(runtime: SaliencyRuntime, tmp_path: Path) -> None:
    pixels = np.full((1, 3, 4), 7, np.uint8)
    pixels[0, :, 3] = 255, 128, 0
    ones = np.ones((1, 3), np.float32)
    assert render("cutouts", pixels, ones).tolist() == [[[7, 7, 7, 255], [7, 7, 7, 128], [0, 0, 0, 0]]]
    assert render("cutouts", pixels, ones / 2, hard=True)[0, :, 3].tolist() == [255, 128, 0]
    assert render("masks", pixels, ones)[0, :, 0].tolist() == [255, 255, 255]
    scene = np.concatenate([_scene(40, 60), np.full((40, 60, 1), 255, np.uint8)], axis=-1)
    scene[:10, :, 3] = 0
    (tmp_path / "pictures").mkdir()
    Image.fromarray(scene).save(tmp_path / "pictures" / "a.png")
    run_folder(runtime, tmp_path / "pictures", tmp_path / "out")
    cutout = decode((tmp_path / "out" / "cutouts" / "a.png").read_bytes())
    assert cutout[:10].max() == 0
    assert cutout[20:, :20, 3].min() > 240


@pytest.mark.parametrize(("backend", "precision"), PAIRS)
def test_every_backend(
    backend: str, precision: str, artifact: SegmenterArtifact, runtime: SaliencyRuntime, folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    run_folder(runtime, folder, tmp_path / "torch")
    with open_saliency(artifact, backend, precision) as opened:
        run = run_folder(opened, folder, tmp_path / "out")
    assert (run.content["backend"], run.content["precision"]) == (backend, precision)
    for path in (tmp_path / "torch" / "saliency").iterdir():
        wanted = decode(path.read_bytes()).astype(int)
        found = decode((tmp_path / "out" / "saliency" / path.name).read_bytes())
        assert np.abs(found - wanted).max() <= (1 if precision == "f32" else 8)


def test_given_again_nothing_is_done(runtime: SaliencyRuntime, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_folder(runtime, folder, out)
    before, times = _files(out), {path: path.stat().st_mtime_ns for path in out.glob("*/*.png")}
    assert run_folder(runtime, folder, out).num_written == 0
    assert _files(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*.png")} == times


def test_what_is_missing_is_made_again_with_the_same_bytes(
    runtime: SaliencyRuntime, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_folder(runtime, folder, out)
    before = _files(out)
    (out / "masks" / "scene2.png").unlink()
    (out / "cutouts" / "photo.png").unlink()
    (out / "saliency" / ".scene1.png.123.tmp").write_bytes(b"half")
    (out / ".run.json.123.tmp").write_bytes(b"half")
    assert run_folder(runtime, folder, out).num_written == 2
    assert _files(out) == before


def test_outputs_may_be_added(runtime: SaliencyRuntime, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_folder(runtime, folder, out, what=["masks"]).content["what"] == ["masks"]
    assert not (out / "cutouts").exists()
    run = run_folder(runtime, folder, out, what=["cutouts"])
    assert run.content["what"] == ["masks", "cutouts"]
    assert len(list((out / "cutouts").iterdir())) == 8
    (out / "masks" / "grey.png").unlink()
    assert run_folder(runtime, folder, out, what=["cutouts"]).num_written == 1
    assert (out / "masks" / "grey.png").is_file()
    assert not (out / "saliency").exists()


def test_pictures_may_be_added_changed_and_removed(
    runtime: SaliencyRuntime, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_folder(runtime, folder, out)
    Image.fromarray(_scene(12, 13)).save(folder / "added.webp")
    Image.fromarray(_scene(70, 71)).save(folder / "grey.png")
    # Another file whose output has the same name.
    (folder / "photo.jpg").unlink()
    Image.fromarray(_scene(8, 9)).save(folder / "photo.bmp")
    (folder / "scene0.png").unlink()
    run = run_folder(runtime, folder, out)
    assert (run.num_pictures, run.num_written) == (8, 3)
    sizes = _sizes(out / "masks")
    assert sizes["added.png"] == (12, 13, 1)
    assert sizes["grey.png"] == (70, 71, 1)
    assert sizes["photo.png"] == (8, 9, 1)
    assert "scene0.png" in sizes, "what was made is never removed"


def test_names_that_collide(runtime: SaliencyRuntime, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(["a.png", "a.bmp", "a.bmp.png", "b.png"]):
        Image.fromarray(_scene(10 + number, 8)).save(folder / name)
    run = run_folder(runtime, folder, tmp_path / "out")
    assert run.num_pictures == 4
    heights = {name: size[0] for name, size in _sizes(tmp_path / "out" / "masks").items()}
    assert heights == {"a.png.png": 10, "a.bmp.png": 11, "a.bmp.png.png": 12, "b.png": 13}


def test_subfolders(runtime: SaliencyRuntime, folder: Path) -> None:
    (folder / "below").mkdir()
    Image.fromarray(_scene(9, 9)).save(folder / "below" / "scene0.png")
    # The outputs lie among the pictures, and are none of them.
    for _ in range(2):
        run = run_folder(runtime, folder, folder / "out", recursive=True)
        assert run.num_pictures == 9
    assert (folder / "out" / "masks" / "below" / "scene0.png").is_file()
    assert run_folder(runtime, folder, folder / "flat").num_pictures == 8


def _spoil(folder: Path) -> None:
    (folder / "scene1.png").write_bytes((folder / "scene1.png").read_bytes()[:60])


def test_an_unreadable_picture(runtime: SaliencyRuntime, folder: Path, tmp_path: Path) -> None:
    _spoil(folder)
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match=r"scene1\.png cannot be read as a picture"):
        run_folder(runtime, folder, out)
    assert not json.loads((out / "run.json").read_text())["complete"]
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    run = run_folder(runtime, folder, out, skip_unreadable=True)
    assert list(run.skipped) == ["scene1.png"]
    assert run.num_pictures == 7
    assert "scene1.png" in json.loads((out / "run.json").read_text())["skipped"]
    assert not (out / "masks" / "scene1.png").exists()
    (folder / "scene1.png").unlink()
    assert run_folder(runtime, folder, out).skipped == {}


def test_nothing_that_can_be_read(runtime: SaliencyRuntime, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DatasetError, match="holds no picture"):
        run_folder(runtime, tmp_path / "pictures", tmp_path / "out")
    (tmp_path / "pictures" / "a.png").write_bytes(b"torn")
    with pytest.raises(DatasetError, match=r"None of 1 pictures can be read\. The first: .*a\.png"):
        run_folder(runtime, tmp_path / "pictures", tmp_path / "out", skip_unreadable=True)
    with pytest.raises(DatasetError, match="does not exist"):
        run_folder(runtime, tmp_path / "nowhere", tmp_path / "out")


def test_other_settings(runtime: SaliencyRuntime, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_folder(runtime, folder, out, what=["masks"])
    (out / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match=r"other settings: threshold is 0\.5, and 0\.7 is asked for"):
        run_folder(runtime, folder, out, threshold=0.7)
    with pytest.raises(OutputError, match="hard is False"):
        run_folder(runtime, folder, out, hard=True)
    with pytest.raises(OutputError, match="batch_size is 2, and 3"):
        run_folder(open_saliency(_Bright(), batch_size=3), folder, out)
    other = _Bright()
    torch.nn.init.constant_(other.steepness, 1)
    with pytest.raises(OutputError, match="other settings: segmenter"):
        run_folder(open_saliency(other, batch_size=2), folder, out)
    run = run_folder(runtime, folder, out, what=["masks"], threshold=0.7, force=True)
    assert run.num_written == 8
    assert (out / "mine.txt").read_text() == "kept"


def test_folders_of_others_are_left_alone(runtime: SaliencyRuntime, folder: Path, tmp_path: Path) -> None:
    for out in (folder, tmp_path):
        for force in (False, True):
            with pytest.raises(OutputError, match="holds no run over pictures, so it is left alone"):
                run_folder(runtime, folder, out, force=force)
    assert not (folder / "run.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        run_folder(runtime, folder, tmp_path / "file")


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_thresholds_out_of_range(
    threshold: float, runtime: SaliencyRuntime, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SelectionError, match=r"is out of range\. Expected more than 0, up to 1"):
        run_folder(runtime, folder, tmp_path / "out", threshold=threshold)


def test_outputs_that_do_not_exist(runtime: SaliencyRuntime, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'masks'"):
        run_folder(runtime, folder, tmp_path / "out", what=["mask"])
    with pytest.raises(SelectionError, match="Nothing is to be written"):
        run_folder(runtime, folder, tmp_path / "out", what=[])
    runtime.close()
    with pytest.raises(BackendError, match="was closed"):
        run_folder(runtime, folder, tmp_path / "out")


_SCRIPT = """
import sys
from fastdirs.saliency.cutouts import run_folder
from fastdirs.saliency.runtime import open_saliency
run_folder(open_saliency(sys.argv[1], "ort", "f32"), sys.argv[2], sys.argv[3])
"""


@pytest.mark.slow
def test_killed_and_continued(artifact: SegmenterArtifact, tmp_path: Path) -> None:
    folder, whole, out = (tmp_path / name for name in ("pictures", "whole", "out"))
    folder.mkdir()
    for number in range(60):
        Image.fromarray(_scene(200 + number, 300)).save(folder / f"{number}.png")
    with open_saliency(artifact, "ort", "f32") as opened:
        run_folder(opened, folder, whole)
        for enough in (5, 60):
            process = subprocess.Popen([sys.executable, "-c", _SCRIPT, artifact.folder, folder, out])
            deadline = time.monotonic() + 120
            while len(list(out.glob("*/*.png"))) < enough and time.monotonic() < deadline:
                assert process.poll() is None, "it was done before it was killed"
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert not json.loads((out / "run.json").read_text())["complete"]
            for path in out.glob("*/*.png"):
                assert path.read_bytes() == (whole / path.relative_to(out)).read_bytes()
        run = run_folder(opened, folder, out)
    assert 0 < run.num_written < 60
    assert {key: data for key, data in _files(out).items() if key != ".lock"} == _files(whole)
