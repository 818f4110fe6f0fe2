"""`fastdirs discover` with methods that train: what it leaves behind, and what can go wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fastdirs.directions import load_bank

TOY = ("toy", "--generator-option", "resolution=16", "--directions", "3", "--method", "voynov")
_OPTIONS = {"steps": 4, "batch": 8, "log_every": 2, "save_every": 2, "held_out": 8, "precision": "f32"}


def options(**changes: object) -> list[str]:
    return [part for name, value in {**_OPTIONS, **changes}.items() for part in ("-o", f"{name}={value}")]


def test_bank_and_run_folder(run_json: Callable[..., Any]) -> None:
    found = run_json("discover", *TOY, *options(), "--out", "bank.safetensors")
    assert found["run"] == "bank.run"
    assert load_bank("bank.safetensors").method == "voynov"
    names = {path.name for path in Path("bank.run").iterdir()}
    assert names == {
        "checkpoint.safetensors", "log.jsonl", "reconstructor.safetensors", "run.json", "strips",
        "tensorboard",
    }  # fmt: skip


def test_the_run_folder_may_be_named(run: Callable[..., Result]) -> None:
    result = run("discover", *TOY, *options(), "--out", "bank.safetensors", "--folder", "elsewhere")
    assert result.exit_code == 0, result.output
    assert Path("elsewhere/reconstructor.safetensors").is_file()
    assert "elsewhere" in result.stderr


def test_a_run_is_continued(run: Callable[..., Result]) -> None:
    assert run("discover", *TOY, *options(), "--out", "bank.safetensors").exit_code == 0
    result = run("discover", *TOY, *options(steps=8), "--out", "bank.safetensors", "--force")
    assert result.exit_code == 0, result.output
    assert "continued after step 4" in result.stderr


def test_a_run_with_other_settings_names_the_one_that_differs(run: Callable[..., Result]) -> None:
    assert run("discover", *TOY, *options(), "--out", "bank.safetensors").exit_code == 0
    before = Path("bank.safetensors").read_bytes()
    result = run("discover", *TOY, *options(seed=1), "--out", "bank.safetensors", "--force")
    assert result.exit_code == 1
    assert "seed=0, not seed=1" in result.stderr
    assert Path("bank.safetensors").read_bytes() == before


def test_a_loss_that_is_no_number(run: Callable[..., Result]) -> None:
    wild = options(steps=200, reconstructor_lr=1e9, directions_lr=1e9)
    result = run("discover", *TOY, *wild, "--out", "bank.safetensors")
    assert result.exit_code == 1
    assert "not finite" in result.stderr
    assert "Lower" in result.stderr
    assert not Path("bank.safetensors").exists()


def test_a_run_folder_that_holds_something_else(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    result = run("discover", *TOY, *options(), "--out", "bank.safetensors", "--folder", "thesis")
    assert result.exit_code == 1
    assert "holds no training run" in result.stderr
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deformator": "orto"}, "Did you mean 'ortho'?"),
        ({"reconstructor": "resnet"}, "Did you mean 'resnet18'?"),
        ({"reconstructor": "lenet"}, "lenet takes images of 32 pixels or more"),
        ({"steps": "many"}, "steps='many' is not a int"),
        ({"min_shift": 7}, "min_shift=7 is out of range"),
    ],
)
def test_wrong_options(changes: dict[str, object], message: str, run: Callable[..., Result]) -> None:
    result = run("discover", *TOY, *options(**changes), "--out", "bank.safetensors")
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert not Path("bank.safetensors").exists()
    assert not Path("bank.run").exists()


def test_a_folder_for_a_method_that_keeps_nothing(run: Callable[..., Result]) -> None:
    result = run("discover", "toy", "--method", "sefa", "--folder", "x", "--out", "bank.safetensors")
    assert result.exit_code == 2
    assert "does not train" in result.stderr


def test_the_bank_cannot_be_the_folder(run: Callable[..., Result]) -> None:
    result = run("discover", *TOY, *options(), "--folder", "here", "--out", "here")
    assert result.exit_code == 2
    assert "cannot be the bank and the folder" in result.stderr
    assert not Path("here").exists()


def test_a_variable_of_another_launcher_changes_nothing(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("discover", "toy", "--out", "bank.safetensors").exit_code == 0
    assert Path("bank.safetensors").is_file()


def test_without_the_library_that_trains(python_without: Callable[..., str]) -> None:
    code = """
import click, sys
from fastdirs.cli import main
for words in (["list", "methods"], ["discover", "toy", "--method", "voynov", "--out", "bank.safetensors"]):
    try:
        main(words, standalone_mode=False)
    except click.ClickException as error:
        print(error.message)
"""
    for package in ("lightning_fabric", "tensorboard"):
        printed = python_without([package], code)
        assert "sefa" in printed
        assert printed.count(f"The discovery method 'voynov' needs {package}, which is not installed") == 2
        assert "pip install 'fastdirs[train]'" in printed
