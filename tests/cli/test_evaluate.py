from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from fastdirs.artifact import Artifact
from fastdirs.discovery import discover
from fastdirs.generators import Generator
from fastdirs.reconstructor_export import export_reconstructor
from fastdirs.reconstructors import load_reconstructor

SMALL = ("--seeds", "3", "--batches", "2")
TOY = ("toy", "--generator-option", "resolution=32")


def test_a_report(
    run: Callable[..., Result], bank_file: Path, toy_reconstructor: Path, tmp_path: Path
) -> None:
    result = run("evaluate", bank_file, *TOY, *SMALL, "--reconstructor", toy_reconstructor, "--out", "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == "out/index.html\n"
    assert "eager f32" in result.stderr
    assert "RCA 0." in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.json", "index.html"]


def test_json(run_json: Callable[..., Any], bank_file: Path, toy_reconstructor: Path) -> None:
    command = ("evaluate", bank_file, *TOY, *SMALL, "--reconstructor", toy_reconstructor, "--out", "out")
    content = run_json(*command)
    assert content["folder"] == "out"
    assert content["kind"] == "evaluation"
    assert content["rca"]["pairs"] == 64
    assert (content["settings"]["seeds"], content["settings"]["batches"]) == (3, 2)
    assert len(content["directions"]) == 5


def test_one_is_trained(run_json: Callable[..., Any], bank_file: Path, tmp_path: Path) -> None:
    content = run_json("evaluate", bank_file, *TOY, *SMALL, "--steps", "5", "--out", "out")
    assert content["reconstructor"]["trained_here"] is True
    assert (tmp_path / "out" / "reconstructor.safetensors").is_file()


def test_the_compiled_pair_of_graphs(
    run_json: Callable[..., Any], bank_file: Path, toy_artifact: Artifact, toy_reconstructor: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    network, content = load_reconstructor(toy_reconstructor)
    recorded = {name: content[name] for name in ("generator", "bank_sha256", "shifts")}
    export_reconstructor(network, recorded, tmp_path / "judge")
    found = run_json(
        "evaluate", bank_file, toy_artifact.folder, *SMALL, "--reconstructor", "judge", "--out", "out"
    )
    assert found["runtime"]["backend"] == found["reconstructor"]["backend"] != "eager"


def test_real_pictures(run_json: Callable[..., Any], toy: Generator, tmp_path: Path) -> None:
    discover(toy, "sefa", num_directions=1).save(tmp_path / "one.safetensors")
    np.savez("real.npz", x=np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8))
    command = ("evaluate", "one.safetensors", *TOY, "--seeds", "2", "--steps", "0", "--real", "real.npz")
    content = run_json(*command, "--out", "out")
    assert content["rca"] is None
    assert 0 <= content["dvn"] <= 1


def test_own_code(run_json: Callable[..., Any], run: Callable[..., Result], own_module: str) -> None:
    own = ("--generator", f"{own_module}:make")
    assert run("discover", *own, "--method", "random", "--directions", 2, "--out", "own.st").exit_code == 0
    content = run_json("evaluate", "own.st", *own, "--seeds", "2", "--steps", "0", "--out", "out")
    assert content["generator"]["family"] == "custom"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("--seeds", "1"), 2, "1 is not in the range"),
        (("--batches", "0"), 2, "0 is not in the range"),
        (("--steps", "many"), 2, "'many' is not a valid integer"),
        (("--reconstructor", "none.safetensors"), 1, "none.safetensors cannot be read"),
        (("--real", "none"), 1, "none does not exist"),
        (("--backend", "eagre"), 1, "Did you mean 'eager'?"),
        ((), 1, "Pass --reconstructor with"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], exit_code: int, message: str, run: Callable[..., Result], bank_file: Path,
    toy_artifact: Artifact, tmp_path: Path,
) -> None:  # fmt: skip
    extra = () if "--backend" not in arguments else ("--steps", "0")
    result = run("evaluate", bank_file, toy_artifact.folder, *arguments, *extra, "--out", "out")
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert not result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["bank.safetensors"]


def test_a_model_is_needed(run: Callable[..., Result], bank_file: Path) -> None:
    result = run("evaluate", bank_file, "--out", "out")
    assert result.exit_code == 2
    assert "Missing argument 'MODEL'" in result.stderr


def test_a_bank_of_another_generator(run: Callable[..., Result], bank_file: Path) -> None:
    result = run("evaluate", bank_file, "toy", *SMALL, "--out", "out")
    assert result.exit_code == 1
    assert "The bank was made for toy" in result.stderr
