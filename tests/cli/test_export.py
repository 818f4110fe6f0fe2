from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fastdirs.artifact import open_artifact
from fastdirs.manifest import manifest, write_json
from fastdirs.reconstructor_export import open_reconstructor_artifact

SMALL_TOY = ("toy", "--generator-option", "resolution=32", "--lowering", "folded", "--max-batch", 4)
RECIPE = """
generator = "toy"

[graph]
lowering = "folded"

[batch]
opt = 2
max = 3
"""


def test_an_artefact_is_made(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("export", *SMALL_TOY, "--out", "artifact")
    assert result.exit_code == 0, result.output
    assert result.stdout == "artifact\n"
    assert "at batch 1, 2, 4" in result.stderr
    assert "accepted" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert open_artifact("artifact").content["batch"] == {"opt": 4, "max": 4}


def test_json(run_json: Callable[..., Any]) -> None:
    made = run_json("export", *SMALL_TOY, "--out", "artifact")
    assert made == {"artifact": "artifact", **open_artifact("artifact").content}


def test_what_exists_is_kept(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "thesis.txt").write_text("years of work")
    for more, message in (((), "--force"), (("--force",), "was not made by this command")):
        result = run("export", *SMALL_TOY, "--out", "artifact", *more)
        assert result.exit_code == 1
        assert "artifact" in result.stderr
        assert message in result.stderr
        assert [path.name for path in (tmp_path / "artifact").iterdir()] == ["thesis.txt"]


def test_a_recipe_and_force(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    assert run("export", "mine.toml", "--out", "artifact").exit_code == 0
    assert open_artifact("artifact").content["batch"] == {"opt": 2, "max": 3}
    assert run("export", *SMALL_TOY, "--out", "artifact").exit_code == 1
    assert run("export", *SMALL_TOY, "--out", "artifact", "--force").exit_code == 0
    assert open_artifact("artifact").content["batch"] == {"opt": 4, "max": 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "mine.toml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--lowering", "folded"),
        ("--max-batch", "8"),
        ("--family", "dcgan"),
        ("--generator", "mine:make"),
        ("--generator-option", "resolution=32"),
    ],
)
def test_a_recipe_says_everything_itself(
    arguments: tuple[str, str], run: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    result = run("export", "mine.toml", *arguments, "--out", "artifact")
    assert result.exit_code == 2
    assert f"leave out {arguments[0]}, or edit the recipe" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("toy", "--lowering", "subpixle"), 1, "'subpixle'. Did you mean 'subpixel'?"),
        (("toy", "--max-batch", "0"), 2, "0 is not in the range"),
        (("tyo",), 1, "'tyo'. Did you mean 'toy'?"),
        (("missing.toml",), 1, "missing.toml"),
        ((), 2, "Missing argument 'MODEL'"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], exit_code: int, message: str, run: Callable[..., Result], tmp_path: Path
) -> None:
    result = run("export", *arguments, "--out", "artifact")
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert not result.stdout
    assert not list(tmp_path.iterdir())


def test_own_code(run: Callable[..., Result], own_module: str) -> None:
    result = run("export", "--generator", f"{own_module}:make", "--max-batch", 2, "--out", "artifact")
    assert result.exit_code == 0, result.output
    assert open_artifact("artifact").generator["name"] == "mine:make"


def test_a_reconstructor(run: Callable[..., Result], reconstructor_file: Path, tmp_path: Path) -> None:
    result = run("export", reconstructor_file, "--max-batch", 3, "--out", "artifact")
    assert result.exit_code == 0, result.output
    assert result.stdout == "artifact\n"
    assert "f32 at batch 1, 2, 3: largest error of logits" in result.stderr
    content = open_reconstructor_artifact("artifact").content
    assert content["recorded"] == {"bank_sha256": "ab"}
    assert content["batch"]["max"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", reconstructor_file.name]


def test_a_reconstructor_with_json_and_force(
    run: Callable[..., Result], run_json: Callable[..., Any], reconstructor_file: Path
) -> None:
    made = run_json("export", reconstructor_file, "--max-batch", 2, "--out", "artifact")
    assert made == {"artifact": "artifact", **open_reconstructor_artifact("artifact").content}
    refused = run("export", reconstructor_file, "--max-batch", 2, "--out", "artifact")
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert run("export", reconstructor_file, "--max-batch", 1, "--out", "artifact", "--force").exit_code == 0
    assert open_reconstructor_artifact("artifact").content["batch"]["max"] == 1


def test_the_folder_of_a_run(run: Callable[..., Result], reconstructor_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bank.run"
    write_json(folder / "run.json", manifest("training-run", {"asked": {}}))
    result = run("export", "bank.run", "--out", "artifact")
    assert result.exit_code == 1
    assert "The training run in bank.run has not finished" in result.stderr
    assert not (tmp_path / "artifact").exists()
    reconstructor_file.rename(folder / "reconstructor.safetensors")
    result = run("export", "bank.run", "--max-batch", 2, "--out", "artifact")
    assert result.exit_code == 0, result.output
    assert open_reconstructor_artifact("artifact").content["recorded"] == {"bank_sha256": "ab"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--lowering", "folded"),
        ("--family", "dcgan"),
        ("--generator", "mine:make"),
        ("--generator-option", "resolution=32"),
    ],
)
def test_a_reconstructor_is_no_generator(
    arguments: tuple[str, str], run: Callable[..., Result], reconstructor_file: Path, tmp_path: Path
) -> None:
    result = run("export", reconstructor_file, *arguments, "--max-batch", 2, "--out", "artifact")
    assert result.exit_code == 2
    assert f"is a reconstructor, not a generator: leave out {arguments[0]}." in result.stderr
    assert not (tmp_path / "artifact").exists()


def test_a_reconstructor_that_is_broken(
    run: Callable[..., Result], reconstructor_file: Path, tmp_path: Path
) -> None:
    data = bytearray(reconstructor_file.read_bytes())
    data[-4:] = b"\xff\xff\xff\x7f"
    reconstructor_file.write_bytes(data)
    result = run("export", reconstructor_file, "--out", "artifact")
    assert result.exit_code == 1
    assert "NaN or infinite values" in result.stderr
    assert not (tmp_path / "artifact").exists()
