import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from fastdirs.cli.saliency import _OUTPUTS, _PRESETS
from fastdirs.images import decode, encode
from fastdirs.saliency.folder_run import OUTPUTS
from fastdirs.saliency.metrics import FIGURES
from fastdirs.saliency.settings import PRESETS
from fastdirs.segmenters import build_segmenter, is_segmenter, load_segmenter, save_segmenter

Run = Callable[..., Result]
QUICK = ("-o", "steps=4", "-o", "width=8", "-o", "batch=4", "-o", "log_every=2", "-o", "save_every=2")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A small network with random weights, for pictures of 32 pixels."""
    save_segmenter(build_segmenter("unet", 3, 32, 8).eval(), tmp_path / "model.safetensors", {})
    return Path("model.safetensors")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of different sizes, and masks of the same names."""
    random = np.random.default_rng(0)
    for name, (height, width) in {"a": (40, 60), "b": (32, 32), "c": (50, 20)}.items():
        picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width, 1), dtype=np.uint8)
        mask[height // 4 : height // 2, width // 4 :] = 255
        for folder, pixels in (("photos", picture), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.png").write_bytes(encode(pixels, "png"))
    return Path("photos")


def test_training(run: Run, run_json: Callable[..., Any], pairs: Path, tmp_path: Path) -> None:
    result = run("saliency", "train", pairs, *QUICK, "--out", "model.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stdout == "model.safetensors\n"
    assert "never trained on" in result.stderr
    assert is_segmenter(tmp_path / "model.safetensors")
    assert (tmp_path / "model.run" / "log.jsonl").is_file()
    again = run("saliency", "train", pairs, *QUICK, "--out", "model.safetensors")
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    forced = run_json("saliency", "train", pairs, *QUICK, "--force", "--out", "model.safetensors")
    assert forced["steps"] == 4
    assert forced["held_out"]["pairs"] > 0


def test_settings_in_effect(run: Run, run_json: Callable[..., Any], pairs: Path) -> None:
    found = run_json("saliency", "train", pairs, "--preset", "published", "--settings", "--out", "none")
    assert (found["lr"], found["batch"], found["steps"], found["temperature"]) == (0.005, 128, 15_000, 10.0)
    text = run("saliency", "train", pairs, "--settings", "--out", "none").stdout
    assert "preset: chosen here" in text


def test_a_folder_of_pictures(run: Run, run_json: Callable[..., Any], model_file: Path, photos: Path) -> None:
    outputs = ("--write", "masks,saliency,cutouts")
    result = run("saliency", "run", model_file, photos, *outputs, "--out", "out")
    assert result.exit_code == 0, result.output
    for name, shape in {"a": (40, 60), "b": (32, 32), "c": (50, 20)}.items():
        assert decode(Path(f"out/cutouts/{name}.png").read_bytes()).shape == (*shape, 4)
        assert set(np.unique(decode(Path(f"out/masks/{name}.png").read_bytes()))) <= {0, 255}
        assert decode(Path(f"out/saliency/{name}.png").read_bytes()).shape == (*shape, 1)
    again = run_json("saliency", "run", model_file, photos, *outputs, "--out", "out")
    assert (again["pictures"], again["written"]) == (3, 0)


def test_measured_against_masks(
    run: Run, run_json: Callable[..., Any], model_file: Path, photos: Path, tmp_path: Path
) -> None:
    result = run("saliency", "eval", model_file, "masks", "--images", photos, "--out", "report")
    assert result.exit_code == 0, result.output
    assert "MAE" in result.stdout
    assert (tmp_path / "report" / "index.html").is_file()
    run("saliency", "run", model_file, photos, "--write", "saliency", "--out", "out")
    # Stretched, the 256 levels of a file would be few for a network that knows nothing yet.
    found = run_json("saliency", "eval", "out/saliency", "masks", "--no-stretch", "--out", "report2")
    direct = run_json(
        "saliency", "eval", model_file, "masks", "--images", photos, "--no-stretch", "--out", "report",
        "--force",
    )  # fmt: skip
    assert set(found["figures"]) == set(direct["figures"])
    assert list(direct["figures"]) == [figure.key for figure in FIGURES]
    for name in ("mae", "s_measure"):
        assert found["figures"][name] == pytest.approx(direct["figures"][name], abs=0.01)
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert direct["figures"] == report["overall"]
    assert [image["name"] for image in report["images"]] == ["a", "b", "c"]
    perfect = run_json("saliency", "eval", "masks", "masks", "--out", "report3")["figures"]
    assert (perfect["iou"], perfect["accuracy"], perfect["max_f"], perfect["mae"]) == (1, 1, 1, 0)


def test_whether_a_report_can_be_written_is_known_before_the_work(
    run: Run, model_file: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.txt").write_text("years of work")
    # What the work would stop at.
    (tmp_path / "photos" / "b.png").write_bytes(b"torn")
    for force in ((), ("--force",)):
        for given in ((model_file, "masks", "--images", photos), ("masks", "masks")):
            result = run("saliency", "eval", *given, "--out", "report", *force)
            assert result.exit_code == 1
            assert ("left alone" if force else "exists already") in result.stderr
    result = run("saliency", "eval", "masks", "masks", "--out", "model.safetensors/report")
    assert result.exit_code == 1
    assert "model.safetensors/report" in result.stderr


def test_choices_are_those_of_the_library() -> None:
    assert set(_PRESETS) == set(PRESETS)
    assert _OUTPUTS == OUTPUTS


def test_a_run_goes_on_with_what_was_chosen_for_it(run: Run, model_file: Path, photos: Path) -> None:
    exported = run("saliency", "export", model_file, "--images", photos, "--max-batch", 4, "--out", "graph")
    assert exported.exit_code == 0, exported.output
    assert run("saliency", "run", model_file, photos, "--write", " masks,,", "--out", "out").exit_code == 0
    assert not Path("out/cutouts").exists()
    other = run("saliency", "run", "graph", photos, "--write", "masks", "--backend", "ort", "--out", "out")
    assert other.exit_code == 1
    assert "other settings: backend is eager, and ort is asked for now" in other.stderr
    assert (
        "other settings: backend is eager" in run("saliency", "run", "graph", photos, "--out", "out").stderr
    )
    nothing = run("saliency", "run", model_file, photos, "--write", ",", "--out", "none")
    assert "Nothing is to be written" in nothing.stderr


def test_forced_a_training_with_other_settings_begins_anew(
    run: Run, run_json: Callable[..., Any], pairs: Path
) -> None:
    assert run("saliency", "train", pairs, *QUICK, "--out", "m.safetensors").exit_code == 0
    forced = ("saliency", "train", pairs, *QUICK, "-o", "width=4", "--force", "--out", "m.safetensors")
    assert run_json(*forced)["steps"] == 4
    segmenter, _ = load_segmenter("m.safetensors")
    assert segmenter.width == 4
    # Its folder is no run of discovery.
    refused = run("export", "m.run", "--out", "graph")
    assert refused.exit_code == 1
    assert "discover" not in refused.stderr


def test_export_verify_and_inspect(run: Run, model_file: Path, photos: Path, tmp_path: Path) -> None:
    result = run("saliency", "export", model_file, "--images", photos, "--max-batch", 4, "--out", "saliency")
    assert result.exit_code == 0, result.output
    assert "IoU" in result.stderr
    assert run("verify", "saliency").exit_code == 0
    assert "kind: segmenter\n" in run("inspect", model_file).stdout
    assert "kind: segmenter-artifact\n" in run("inspect", "saliency").stdout
    assert run("saliency", "run", "saliency", photos, "--backend", "ort", "--out", "out").exit_code == 0
    refused = run("export", model_file, "--out", "other")
    assert refused.exit_code == 2
    assert "is a saliency model: fastdirs saliency export" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "nothing", "--out", "m"), 1, "nothing does not exist"),
        (("run", "nothing", "photos", "--out", "o"), 1, "nothing"),
        (("run", "model.safetensors", "nothing", "--out", "o"), 1, "nothing does not exist"),
        (("run", "model.safetensors", "photos", "--write", "masts", "--out", "o"), 1, "no output 'masts'"),
        (("run", "model.safetensors", "photos", "--threshold", "2", "--out", "o"), 2, "2.0 is not in"),
        (("run", "model.safetensors", "photos", "--threshold", "0", "--out", "o"), 2, "0.0 is not in"),
        (("eval", "model.safetensors", "masks", "--out", "r"), 2, "Missing option '--images'"),
        (("eval", "photos", "nothing", "--out", "r"), 1, "nothing does not exist"),
        (("export", "photos/a.png", "--out", "e"), 1, "a.png"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], code: int, message: str, run: Run, model_file: Path, photos: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    result = run("saliency", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_folders_that_do_not_pair(run: Run, model_file: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "masks" / "b.png").unlink()
    result = run("saliency", "eval", model_file, "masks", "--images", photos, "--out", "report")
    assert result.exit_code == 1
    assert "b" in result.stderr
    ignored = run(
        "saliency", "eval", model_file, "masks", "--images", photos, "--ignore-unpaired", "--out", "report"
    )
    assert ignored.exit_code == 0, ignored.output
