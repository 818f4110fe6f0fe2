from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

from fastdirs.artifact import Artifact


def test_a_bank(run_json: Callable[..., Any], bank_file: Path) -> None:
    facts = run_json("inspect", bank_file)
    assert facts["kind"] == "direction-bank"
    assert facts["generator"]["name"] == "toy"


def test_lines_for_people(run: Callable[..., Result], bank_file: Path) -> None:
    result = run("inspect", bank_file)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:2] == ["kind: direction-bank", "path: bank.safetensors"]
    assert "  name: toy" in lines
    assert not result.stderr


def test_an_artefact(run_json: Callable[..., Any], toy_artifact: Artifact) -> None:
    facts = run_json("inspect", toy_artifact.folder)
    assert facts["kind"] == "artifact"
    assert facts["batch"] == {"opt": 4, "max": 8}


def test_a_recipe(run_json: Callable[..., Any]) -> None:
    recipe = Path(__file__).parents[2] / "export" / "toy.toml"
    assert run_json("inspect", recipe)["kind"] == "recipe"


def test_nothing_there(run: Callable[..., Result]) -> None:
    result = run("inspect", "missing.pt")
    assert result.exit_code == 1
    assert "missing.pt" in result.stderr
    assert not result.stdout
