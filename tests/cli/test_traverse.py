from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from fastdirs.artifact import Artifact
from fastdirs.discovery import discover
from fastdirs.generators import Generator
from fastdirs.registry import Registry

SMALL = ("--seeds", "0-2", "--directions", "0,3", "--epsilons", "-3:3:3")
WRITERS: Registry[object] = Registry("fastdirs.writers", "WRITER", "writer")


@pytest.fixture
def artifact(toy_artifact: Artifact) -> str:
    return str(toy_artifact.folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_strips_and_an_atlas(
    run: Callable[..., Result], artifact: str, bank_file: Path, tmp_path: Path
) -> None:
    result = run("traverse", artifact, bank_file, *SMALL, "--out", "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == "out/index.html\n"
    assert "fastest of " in result.stderr
    assert "error against torch fp32 on this machine: mean " in result.stderr
    assert "18 images, 15 rendered, in batches of 4" in result.stderr
    made = files(tmp_path / "out")
    assert len(made) == 2 + 2 * 3
    with Image.open(tmp_path / "out" / "strips" / "direction-0003" / "seed-000002.jpg") as strip:
        assert strip.size == (3 * 32, 32)


def test_json(run_json: Callable[..., Any], artifact: str, bank_file: Path) -> None:
    content = run_json("traverse", artifact, bank_file, *SMALL, "--out", "out")
    assert content["folder"] == "out"
    assert content["complete"] is True
    assert (content["seeds"], content["directions"], content["epsilons"]) == ([0, 1, 2], [0, 3], [-3, 0, 3])


@pytest.mark.parametrize(
    ("arguments", "sizes"), [((), {4}), (("--batch", "8"), {8}), (("--batch", "3"), {3}), (("--batch",), {8})]
)
def test_batch(
    arguments: tuple[str, ...], sizes: set[int], run_json: Callable[..., Any], artifact: str, bank_file: Path
) -> None:
    command = ("traverse", artifact, bank_file, *SMALL, "--write", "strips", *arguments, "--out", "out")
    assert run_json(*command)["batch_size"] in sizes


def test_every_writer(run: Callable[..., Result], artifact: str, bank_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="MP4 needs the extra 'video'")
    everything = ",".join(WRITERS.names())
    command = ("traverse", artifact, bank_file, *SMALL, "--write", everything, "--image-format", "png")
    result = run(*command, "--out", "out")
    assert result.exit_code == 0, result.output
    suffixes = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert suffixes == {".html", ".gif", ".mp4", ".npy", ".png", ".json"}


def test_without_a_page_the_folder_is_named(
    run: Callable[..., Result], artifact: str, bank_file: Path
) -> None:
    result = run("traverse", artifact, bank_file, *SMALL, "--write", "npy", "--out", "out")
    assert result.stdout == "out\n"
    array = np.load("out/npy/direction-0000/seed-000000.npy")
    assert array.shape == (3, 32, 32, 3)


def test_the_same_command_continues(
    run: Callable[..., Result], artifact: str, bank_file: Path, tmp_path: Path
) -> None:
    command = ("traverse", artifact, bank_file, *SMALL, "--out", "out")
    assert run(*command).exit_code == 0
    complete = files(tmp_path / "out")
    for name in (
        "index.html",
        "strips/direction-0003/seed-000001.jpg",
        "strips/direction-0000/seed-000002.jpg",
    ):
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / "strips" / "direction-0000" / ".seed-000002.jpg.1.tmp").write_bytes(b"half")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert files(tmp_path / "out") == complete


def test_another_command_does_not(
    run: Callable[..., Result], artifact: str, bank_file: Path, tmp_path: Path
) -> None:
    command = ("traverse", artifact, bank_file, *SMALL, "--out", "out")
    assert run(*command).exit_code == 0
    complete = files(tmp_path / "out")
    result = run(*command, "--psi", "0.5")
    assert result.exit_code == 1
    assert "out holds a traversal with other psi" in result.stderr
    assert files(tmp_path / "out") == complete
    assert run(*command, "--psi", "0.5", "--force").exit_code == 0
    assert files(tmp_path / "out") != complete


def test_force_replaces_traversals_only(
    run: Callable[..., Result], artifact: str, bank_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    result = run("traverse", artifact, bank_file, *SMALL, "--out", "out", "--force")
    assert result.exit_code == 1
    assert "left alone" in result.stderr
    assert list(files(tmp_path / "out")) == ["thesis.txt"]


def test_a_model_is_run_by_torch(run: Callable[..., Result], bank_file: Path) -> None:
    result = run("traverse", "toy", "--generator-option", "resolution=32", bank_file, *SMALL, "--out", "out")
    assert result.exit_code == 0, result.output
    assert "eager f32" in result.stderr


def test_own_code(run: Callable[..., Result], own_module: str, tmp_path: Path) -> None:
    own = ("--generator", f"{own_module}:make")
    assert run("discover", *own, "--directions", 4, "--out", "own.safetensors").exit_code == 0
    result = run("traverse", *own, "own.safetensors", *SMALL, "--out", "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "index.html").exists()


def test_own_code_that_takes_a_checkpoint(
    run: Callable[..., Result], own_module: str, tmp_path: Path
) -> None:
    (tmp_path / "7.ckpt").write_text("7")
    own = ("7.ckpt", "--generator", f"{own_module}:load")
    assert run("discover", *own, "--directions", 4, "--out", "own.safetensors").exit_code == 0
    result = run("traverse", *own, "own.safetensors", *SMALL, "--out", "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("--batch", "x"), 2, "'x' is not a number of images"),
        (("--batch", "9"), 1, "A batch of 9 is out of range"),
        (("--seeds", "5-1"), 1, "'5-1' runs backwards"),
        (("--seeds", "all"), 1, "Seeds have no 'all'"),
        (("--directions", "five"), 1, "'five' is not a list of directions"),
        (("--epsilons", "-6:6"), 1, "'-6:6' is not a list of epsilons"),
        (("--psi", "much"), 2, "'much' is not a valid float"),
        (("--psi", "nan"), 1, "psi is nan"),
        (("--cutoff", "2"), 1, "Cutoff 2 is out of range"),
        (("--write", "strips,atals"), 1, "'atals'. Did you mean 'atlas'?"),
        (("--backend", "openvino"), 1, "'openvino'. Did you mean 'openvino_cpu'?"),
        (("--backend", "eager"), 1, "eager runs models"),
        (("--precision", "f16"), 1, "'f16'"),
        (("--image-format", "bmp"), 2, "'bmp' is not one of 'jpg', 'png', 'webp'"),
        (("--generator", "make"), 2, "'make' is not PACKAGE.MODULE:FUNCTION"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], exit_code: int, message: str, run: Callable[..., Result], artifact: str,
    bank_file: Path, tmp_path: Path,
) -> None:  # fmt: skip
    result = run("traverse", artifact, bank_file, *arguments, "--out", "out")
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert not result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["bank.safetensors"]


def test_a_bank_is_needed(run: Callable[..., Result], artifact: str) -> None:
    result = run("traverse", artifact, "--out", "out")
    assert result.exit_code == 2
    assert "Missing argument 'BANK'" in result.stderr


def test_a_class(
    run: Callable[..., Result], run_json: Callable[..., Any], classes_artifact: Artifact, classes: Generator,
    tmp_path: Path,
) -> None:  # fmt: skip
    discover(classes, "sefa", num_directions=4).save(tmp_path / "classes.safetensors")
    command = ("traverse", classes_artifact.folder, "classes.safetensors", *SMALL, "--psi", "0.6")
    missing = run(*command, "--out", "out")
    assert missing.exit_code == 1
    assert "classes needs a class. Name one from 0 to 3." in missing.stderr
    assert run(*command, "--class", "4", "--out", "out").exit_code == 1
    assert run_json(*command, "--class", "2", "--out", "out")["class"] == 2
    other = run(*command, "--class", "1", "--out", "out")
    assert other.exit_code == 1
    assert "out holds a traversal with other class" in other.stderr


def test_a_class_that_the_model_lacks(
    run: Callable[..., Result], artifact: str, bank_file: Path, tmp_path: Path
) -> None:
    result = run("traverse", artifact, bank_file, *SMALL, "--class", "0", "--out", "out")
    assert result.exit_code == 1
    assert "toy takes no class. Leave it out." in result.stderr
    assert not (tmp_path / "out").exists()
