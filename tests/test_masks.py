import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.errors import (
    BankError,
    ContractError,
    MaskError,
    OutputError,
    SelectionError,
    UnknownNameError,
)
from fastdirs.generators import Generator
from fastdirs.generators.toy import Toy
from fastdirs.images import decode
from fastdirs.loading import load_generator
from fastdirs.mask_dataset import DATASET_FILE, open_mask_dataset
from fastdirs.mask_filters import Filters
from fastdirs.mask_settings import PRESETS, MaskSettings
from fastdirs.masks import make_masks
from fastdirs.recipe import Batch
from fastdirs.saliency.evaluation import Case, evaluate
from fastdirs.saliency.export import export_segmenter
from fastdirs.saliency.runtime import open_saliency
from fastdirs.saliency.settings import saliency_settings
from fastdirs.saliency.training import train_saliency
from fastdirs.shift_space import ShiftSpace

ROOT = Path(__file__).parents[1]
FIXTURES = Path(os.environ.get("FASTDIRS_FIXTURES", ROOT.parent / "shared" / "fixtures"))
SETTINGS = MaskSettings(direction=3, epsilon=4.0)
SMALL: dict[str, Any] = {"per_shard": 8, "backend": "ort", "precision": "f32", "batch_size": 4}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset(toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    dataset = make_masks(
        toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 20, **SMALL, progress=lambda *s: steps.append(s)
    )
    content = dataset.content
    assert (len(dataset), len(dataset.shards)) == (20, 3)
    assert content == open_mask_dataset(tmp_path / "out").content
    assert content["complete"] is True
    assert content["tried"] == 20 + sum(content["rejected"].values())
    assert content["acceptance"] == pytest.approx(20 / content["tried"], abs=1e-5)
    assert sum(content["areas"]) == 20
    assert content["runtime"]["backend"] == "ort"
    assert (content["direction"], content["epsilon"], content["rule"]) == (3, 4.0, "lightening")
    assert steps[0] == ("pairs", 0, 20)
    assert steps[-1] == ("pairs", 20, 20)
    pairs = list(dataset.pairs())
    assert len({pair.seed for pair in pairs}) == 20
    for pair in pairs:
        assert 0.05 < pair.mask.mean() < 0.5
        assert pair.facts["area"] == pytest.approx(pair.mask.mean(), abs=1e-6)
    dataset.check()
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 20
    assert "{{" not in page


def test_the_toy_gives_the_true_disc(toy: Generator, tmp_path: Path) -> None:
    assert isinstance(toy, Toy)
    true = toy.true_directions()
    bank = ShiftSpace(toy, (0,)).bank(true[:, 0], torch.ones(5), "true", {}, keep_signs=True)
    # The background goes up to white; what does not is the disc.
    settings = MaskSettings(direction=4, epsilon=6.0, rule="difference", threshold=0.5)
    dataset = make_masks(toy, bank, tmp_path / "out", settings, 16, image_format="png")
    for pair in dataset.pairs():
        disc = toy.mask(toy.mapping(toy.sample([pair.seed])))[0].numpy()
        assert (pair.mask & disc).sum() / (pair.mask | disc).sum() > 0.95


@pytest.mark.parametrize("backend", ["ort", "openvino_cpu", "eager"])
def test_the_same_pairs_on_every_backend(
    backend: str, toy: Generator, toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    # The toy's background does not change at all: at a threshold of 0 rounding would decide.
    settings = MaskSettings(
        direction=3, epsilon=4.0, threshold=0.02, filters=Filters(min_area=0.0, max_area=1)
    )
    wanted = make_masks(toy_artifact, toy_bank, tmp_path / "ort", settings, 12, **SMALL)
    source = toy if backend == "eager" else toy_artifact
    found = make_masks(source, toy_bank, tmp_path / "other", settings, 12, **{**SMALL, "backend": backend})
    for mine, theirs in zip(found.pairs(), wanted.pairs(), strict=True):
        assert mine.seed == theirs.seed
        assert (mine.mask != theirs.mask).mean() < 0.002
        assert np.abs(mine.image.astype(int) - theirs.image).max() <= 8


def test_again_and_with_other_numbers(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    make_masks(toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 20, **SMALL)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "shards").iterdir()}
    make_masks(toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 20, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "shards").iterdir()} == before
    others: list[tuple[MaskSettings, dict[str, Any], str]] = [
        (SETTINGS, {"per_shard": 4}, "per_shard"),
        (SETTINGS, {"batch_size": 2}, "batch_size"),
        (SETTINGS, {"backend": "openvino_cpu"}, "backend"),
        (SETTINGS, {"first_seed": 1}, "first_seed"),
        (MaskSettings(direction=3, epsilon=3.0), {}, "epsilon"),
        (MaskSettings(direction=3, epsilon=4.0, filters=Filters(max_area=0.4)), {}, "filters"),
    ]
    for settings, change, name in others:
        with pytest.raises(OutputError, match=f"holds a dataset with other {name}"):
            make_masks(toy_artifact, toy_bank, tmp_path / "out", settings, 20, **{**SMALL, **change})
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("kept")
    make_masks(toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 12, **SMALL, force=True)
    left = contents(tmp_path / "out")
    assert left.pop("mine.txt") == b"kept"
    assert len(open_mask_dataset(tmp_path / "out")) == 12
    # A shard that is as full as before holds the same, however many there are.
    assert left["shards/000000.tar"] == whole["shards/000000.tar"]
    full = (tmp_path / "out" / "shards" / "000000.tar").stat().st_mtime_ns
    make_masks(toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 20, **SMALL)
    assert (tmp_path / "out" / "shards" / "000000.tar").stat().st_mtime_ns == full, "more pairs leave it"
    assert contents(tmp_path / "out") == {**whole, "mine.txt": b"kept"}
    with pytest.raises(OutputError, match="holds a dataset with other count"):
        make_masks(toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 19, **SMALL)


def test_what_came_to_nothing_costs_nothing(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    none = MaskSettings(direction=3, epsilon=4.0, filters=Filters(min_area=0.97, max_area=0.98))
    with pytest.raises(MaskError):
        make_masks(toy_artifact, toy_bank, out, none, 20, **SMALL)
    # The folder is free for other settings.
    make_masks(toy_artifact, toy_bank, out, SETTINGS, 20, **SMALL)
    before = contents(out)
    with pytest.raises(MaskError):
        make_masks(toy_artifact, toy_bank, out, none, 20, **SMALL, force=True)
    assert contents(out) == before, "an earlier dataset is not lost to one that cannot be made"


@pytest.mark.parametrize("left", [".dataset.json.123.tmp", ".lock"])
def test_a_run_that_was_killed_before_its_first_file(
    left: str, toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / left).write_bytes(b"half")
    make_masks(toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 4, **SMALL)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_other_versions_do_not_go_on(toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path) -> None:
    make_masks(toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 4, **SMALL)
    path = tmp_path / "out" / DATASET_FILE
    content = json.loads(path.read_text())
    assert {"pillow", "scipy", "webdataset", "opencv-python-headless"} <= set(content["environment"])
    content["environment"]["pillow"] = "1.0"
    path.write_text(json.dumps(content))
    with pytest.raises(OutputError, match=r"was begun with pillow 1\.0, but here is"):
        make_masks(toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 8, **SMALL)


def test_curved_paths_and_grey_images(
    toy_artifact: Artifact, curved_bank: DirectionBank, tmp_path: Path
) -> None:
    dataset = make_masks(
        toy_artifact, curved_bank, tmp_path / "curved", MaskSettings(direction=3, epsilon=2.0, rule="mean"), 6
    )
    assert len(list(dataset.pairs())) == 6


def test_a_generator_of_grey_images(random_dcgan: Callable[..., nn.Sequential], tmp_path: Path) -> None:
    torch.save(random_dcgan((16, 24, 16), channels=1).state_dict(), tmp_path / "grey.pt")
    generator = load_generator(tmp_path / "grey.pt")
    bank = discover(generator, "random", 1)
    settings = MaskSettings(direction=0, epsilon=3.0, filters=Filters(min_area=0.0, max_area=1.0))
    dataset = make_masks(generator, bank, tmp_path / "out", settings, 5)
    assert {pair.image.shape[-1] for pair in dataset.pairs()} == {1}


_LONG = """
import os, resource, signal, sys
import fastdirs
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks
from fastdirs.recipe import Batch
from fastdirs.saliency.evaluation import Case, evaluate
from fastdirs.saliency.export import export_segmenter
from fastdirs.saliency.runtime import open_saliency
from fastdirs.saliency.settings import saliency_settings
from fastdirs.saliency.training import train_saliency

artifact, bank, out, how = sys.argv[1:]
if how == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))

def progress(phase, done, total):
    if how == "kill" and done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

try:
    make_masks(
        artifact, fastdirs.load_bank(bank), out, MaskSettings(direction=3, epsilon=4.0), 60, per_shard=6,
        backend="ort", precision="f32", batch_size=4, progress=progress, image_format="png",
    )
except fastdirs.errors.OutputError as error:
    sys.exit(str(error))
"""


def run_long(
    artifact: Artifact, bank: DirectionBank, out: Path, how: str
) -> "subprocess.CompletedProcess[str]":
    file = out.with_suffix(".bank.safetensors")
    bank.save(file)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", _LONG, str(artifact.folder), str(file), str(out), how],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip


def test_killed_it_resumes_and_ends_with_the_same_bytes(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    assert run_long(toy_artifact, toy_bank, out, "kill").returncode == -signal.SIGKILL
    done = sorted((out / "shards").glob("*.tar"))
    assert 0 < len(done) < 10
    assert json.loads((out / DATASET_FILE).read_text())["complete"] is False
    # As a kill in the middle of writing would leave it, and a shard whose JSON was not written any more.
    (out / "shards" / ".000009.tar.123.tmp").write_bytes(b"half")
    done[0].with_suffix(".json").unlink()
    before = {path: path.stat().st_mtime_ns for path in done[1:] if path.with_suffix(".json").exists()}
    long = {**SMALL, "per_shard": 6, "image_format": "png"}
    make_masks(toy_artifact, toy_bank, out, SETTINGS, 60, **long)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was whole was not made again"
    make_masks(toy_artifact, toy_bank, tmp_path / "whole", SETTINGS, 60, **long)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_full_disk_is_a_clear_error_and_leaves_whole_shards(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    out = tmp_path / "full"
    # A limit on the size of files, which the system reports as it does a full disk; shards here are small.
    small = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert small[1] == resource.RLIM_INFINITY
    done = run_long(toy_artifact, toy_bank, out, "full")
    assert done.returncode == 1
    assert "could not be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.tmp"))
    assert json.loads((out / DATASET_FILE).read_text())["complete"] is False
    for path in (out / "shards").glob("*.tar"):
        assert path.with_suffix(".json").is_file()
    long = {**SMALL, "per_shard": 6, "image_format": "png"}
    make_masks(toy_artifact, toy_bank, out, SETTINGS, 60, **long)
    make_masks(toy_artifact, toy_bank, tmp_path / "whole", SETTINGS, 60, **long)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_direction_that_removes_no_background(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    settings = MaskSettings(direction=3, epsilon=4.0, filters=Filters(min_area=0.97, max_area=0.98))
    with pytest.raises(MaskError, match=r"only 0 make a pair .*out\.rejected\.png shows what became of some"):
        make_masks(toy_artifact, toy_bank, tmp_path / "out", settings, 20, **SMALL)
    sheet = decode((tmp_path / "out.rejected.png").read_bytes())
    assert sheet.shape == (4 * 96, 3 * 96, 3), "four candidates: unshifted, shifted, what the mask keeps"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"count": 0}, SelectionError, "The count is 0"),
        ({"per_shard": 0}, SelectionError, "The pairs per shard is 0"),
        ({"first_seed": -1}, SelectionError, "First seed -1 is out of range"),
        ({"first_seed": 2**63 - 5}, SelectionError, "out of range. Expected 0 or more"),
        ({"image_format": "bmp"}, UnknownNameError, "no image format 'bmp'"),
        ({"backend": "ortt"}, UnknownNameError, "no backend 'ortt'"),
        ({"settings": MaskSettings(direction=9, epsilon=1.0)}, SelectionError, "direction 9"),
    ],
)
def test_what_cannot_be_made_leaves_nothing(
    change: dict[str, Any], error: type[Exception], message: str, toy_artifact: Artifact,
    toy_bank: DirectionBank, tmp_path: Path,
) -> None:  # fmt: skip
    given = {"settings": SETTINGS, "count": 10, **SMALL, **change}
    with pytest.raises(error, match=message):
        make_masks(toy_artifact, toy_bank, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else(toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError, match="holds no dataset of masks, so it is left alone"):
            make_masks(toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 10, **SMALL, force=force)
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def test_a_bank_of_another_generator(toy_bank: DirectionBank, small_dcgan: Generator, tmp_path: Path) -> None:
    with pytest.raises(BankError):
        make_masks(small_dcgan, toy_bank, tmp_path / "out", SETTINGS, 10)


def test_the_published_preset_on_a_small_biggan(tmp_path: Path) -> None:
    if not FIXTURES.is_dir():
        pytest.skip(f"needs a small BigGAN in {FIXTURES}")
    # The chain of the paper, with random weights: 120 numbers of z, a class for each seed, direction 59.
    generator = load_generator(FIXTURES / "biggan_r128_ch4_hier")
    assert generator.z_dim == 120
    bank = discover(generator, "coordinate", num_directions=60)
    settings = MaskSettings(**PRESETS["published"].values)
    dataset = make_masks(
        generator, bank, tmp_path / "out", MaskSettings(
            **{**PRESETS["published"].values, "filters": Filters(min_area=0.0, max_area=1.0)}
        ), 6, batch_size=2,
    )  # fmt: skip
    classes = {pair.facts["class"] for pair in dataset.pairs()}
    assert len(classes) > 1
    assert (dataset.content["direction"], dataset.content["epsilon"]) == (59, 26.0)
    assert (dataset.content["rule"], dataset.content["threshold"]) == ("intensity", settings.cut)
    assert len(dataset) == 6
    with pytest.raises(ContractError, match="needs a class"):
        make_masks(generator, bank, tmp_path / "none", MaskSettings(direction=59, epsilon=26.0), 2)
    # On to the model, with the published schedule, of which two steps have to do.
    chosen = saliency_settings("published", {"steps": "2", "batch": "4", "width": "8", "held_out": "1"})
    trained = train_saliency(dataset, tmp_path / "model.safetensors", chosen)
    artifact = export_segmenter(trained.path, tmp_path / "saliency", batch=Batch(opt=2, max=2))
    with open_saliency(artifact, "ort") as runtime:
        cases = [
            Case(str(pair.seed), None, runtime.saliency([pair.image])[0], pair.mask)
            for pair in dataset.pairs()
            if pair.mask.any()
        ]
    assert 0 <= evaluate(cases, shown=0).overall["iou"] <= 1
