import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fastdirs.artifact import Artifact
from fastdirs.discovery import discover
from fastdirs.generators import Generator
from fastdirs.mask_dataset import open_mask_dataset

Run = Callable[..., Result]
MEAN = ("--direction", 4, "--epsilon", 4, "--rule", "mean")


@pytest.fixture
def model(toy_artifact: Artifact) -> Path:
    return toy_artifact.folder


def test_pairs(run: Run, model: Path, bank_file: Path, tmp_path: Path) -> None:
    result = run("masks", model, bank_file, *MEAN, "--count", 30, "--per-shard", 10, "--out", "pairs")
    assert result.exit_code == 0, result.output
    assert result.stdout == "pairs/index.html\n"
    assert "% of" in result.stderr
    assert "candidates make a pair; rejected:" in result.stderr
    dataset = open_mask_dataset(tmp_path / "pairs")
    assert [shard.count for shard in dataset.shards] == [10, 10, 10]
    checked = run("dataset", "check", "pairs")
    assert checked.stdout == "30 pairs in 3 shards, all as they were written\n"
    (tmp_path / "pairs" / "shards" / "000001.tar").write_bytes(b"other")
    checked = run("dataset", "check", "pairs")
    assert checked.exit_code == 1
    assert "000001.tar changed" in checked.stderr
    # The same command writes again what is not whole.
    again = run("masks", model, bank_file, *MEAN, "--count", 30, "--per-shard", 10, "--out", "pairs")
    assert again.exit_code == 0, again.output
    assert run("dataset", "check", "pairs").exit_code == 0


def test_every_option_reaches_the_manifest(
    run_json: Callable[..., Any], model: Path, bank_file: Path
) -> None:
    found = run_json(
        "masks", model, bank_file, *MEAN, "--threshold", 0.01, "--area", "0.02:0.6", "--peaks", 1,
        "--component", 0.1, "--refine", "--agreement", 0.2, "--psi", 0.9, "--first-seed", 7, "--count", 6,
        "--per-shard", 4, "--image-format", "png", "--batch", 2, "--backend", "ort", "--precision", "f32",
        "--out", "pairs",
    )  # fmt: skip
    assert found["folder"] == "pairs"
    assert found["threshold"] == 0.01
    assert found["refine"] is True
    assert found["filters"] == {
        "min_area": 0.02, "max_area": 0.6, "min_peaks": 1, "min_component": 0.1, "min_agreement": 0.2,
    }  # fmt: skip
    assert (found["psi"], found["first_seed"], found["image_format"]) == (0.9, 7, "png")
    assert (found["batch_size"], found["runtime"]["backend"]) == (2, "ort")
    assert [shard["count"] for shard in found["shards"]] == [4, 2]


def test_a_preset_and_what_changes_it(run_json: Callable[..., Any], model: Path, bank_file: Path) -> None:
    given = ("--direction", 4, "--epsilon", 4, "--rule", "mean", "--peaks", 0, "--count", 4, "--out", "pairs")
    # The preset's class is for BigBiGAN: the toy has none.
    result = run_json("masks", model, bank_file, "--preset", "bgw", *given)
    assert result["filters"]["min_component"] == 0.2
    assert result["filters"]["min_peaks"] == 0
    assert result["rule"] == "mean"
    assert result["classes"] is None


def test_a_ranking(
    run: Run, run_json: Callable[..., Any], model: Path, bank_file: Path, tmp_path: Path
) -> None:
    result = run("masks", model, bank_file, "--find", "--out", "ranking")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["direction", "label", "epsilon", "rule", "score", "separation", "polarity",
                                "stability", "area"]  # fmt: skip
    assert lines[1].split()[0] == "4", "the toy's background"
    assert "go on with: fastdirs masks" in result.stderr
    assert (tmp_path / "ranking" / "index.html").is_file()
    found = run_json("masks", model, bank_file, "--find", "--rule", "mean", "--out", "ranking", "--force")
    assert {remover["rule"] for remover in found["removers"]} == {"mean"}
    # The command that it prints works as it is.
    arguments = found["command"].replace("PAIRS", "pairs").split()[1:]
    done = run(*arguments, "--count", 5)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Missing option '--direction'. Rank the directions first"),
        (("--direction", 4), 2, "Missing option '--epsilon'"),
        ((*MEAN, "--area", "0.5"), 2, "'0.5' is not LOW:HIGH"),
        ((*MEAN, "--area", "0.9:0.1"), 1, "The area range 0.9 to 0.1 is empty"),
        ((*MEAN, "--class", "x"), 2, "'x' is no class. Expected an index"),
        ((*MEAN, "--class", "1"), 1, "takes no class"),
        ((*MEAN, "--count", "0"), 2, "0 is not in the range"),
        (("--direction", 9, "--epsilon", 4), 1, "direction 9"),
        (("--direction", 4, "--epsilon", 0), 1, "Epsilon 0 is out of range"),
        ((*MEAN[:4], "--rule", "meen"), 1, "There is no mask rule 'meen'. Did you mean 'mean'?"),
        (("--find", "--class", "random"), 2, "A ranking looks at one class"),
        (
            ("--find", "--refine", "--peaks", 2),
            2,
            "A ranking does not look at --peaks, --refine. Leave it out",
        ),
        ((*MEAN, "--area", "0.98:0.99"), 1, "only 0 make a pair"),
    ],
)
def test_bad_input(
    arguments: tuple[object, ...], code: int, message: str, run: Run, model: Path, bank_file: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    result = run("masks", model, bank_file, *arguments, "--out", "pairs")
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("pairs/**/*.tar"))


def test_the_command_that_a_ranking_prints_names_what_was_ranked(
    run_json: Callable[..., Any], run: Run, classes_artifact: Artifact, classes: Generator, tmp_path: Path
) -> None:
    discover(classes, "random", 3).save(tmp_path / "my bank.safetensors")
    given = ("--class", 2, "--psi", 0.8, "--area", "0:1", "--backend", "ort", "--precision", "f32")
    found = run_json(
        "masks", classes_artifact.folder, "my bank.safetensors", "--find", *given, "--out", "rank"
    )
    arguments = shlex.split(found["command"])[1:]
    for part in ("my bank.safetensors", "--class", "2", "--psi", "0.8", "--backend", "ort"):
        assert part in arguments
    done = run(*[part.replace("PAIRS", "pairs") for part in arguments], "--count", 3)
    assert done.exit_code == 0, done.output
    assert open_mask_dataset(tmp_path / "pairs").content["classes"] == 2
    # Whether there is room is said before the work.
    again = run("masks", classes_artifact.folder, "my bank.safetensors", "--find", *given, "--out", "rank")
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert "directions" not in again.stderr


@pytest.mark.parametrize(
    ("package", "named"), [("scipy", "Masks need scipy"), ("webdataset", "Datasets of masks need webdataset"),
                           ("cv2", "Refined masks need OpenCV")],
)  # fmt: skip
def test_a_package_that_is_missing(
    package: str, named: str, python_without: Callable[..., str], model: Path, bank_file: Path, tmp_path: Path
) -> None:
    code = """
import sys
from click.testing import CliRunner
from fastdirs.cli import main
result = CliRunner().invoke(main, sys.argv[1:])
print(result.exit_code, result.output)
"""
    refined = (
        "masks",
        model,
        tmp_path / bank_file,
        *MEAN,
        "--refine",
        "--count",
        2,
        "--out",
        tmp_path / "pairs",
    )
    said = python_without([package], code, *refined)
    assert said.startswith("1 ")
    assert named in said
    assert "fastdirs[masks]" in said
    assert not (tmp_path / "pairs").exists()


def test_without_a_bank(run: Run, model: Path) -> None:
    result = run("masks", model, "--out", "pairs")
    assert result.exit_code == 2
    assert "Missing argument 'BANK'" in result.stderr


def test_a_dataset_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "missing or unreadable"), ("nothing", "does not exist")):
        result = run("dataset", "check", name)
        assert result.exit_code == 1
        assert message in result.stderr
    (tmp_path / "empty" / "dataset.json").write_text(json.dumps({"kind": "mask-dataset"}))
    assert run("dataset", "check", "empty").exit_code == 1
