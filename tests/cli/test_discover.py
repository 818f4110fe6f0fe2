from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from fastdirs.directions import DirectionBank, load_bank

BANK = Path("bank.safetensors")
SMALL_TOY = ("toy", "--generator-option", "resolution=32")


def test_a_bank_is_written(run: Callable[..., Result]) -> None:
    result = run("discover", *SMALL_TOY, "--directions", 5, "--out", BANK)
    assert result.exit_code == 0, result.output
    assert result.stdout == "bank.safetensors\n"
    assert "5 directions of toy by sefa" in result.stderr
    bank = load_bank(BANK)
    assert (len(bank), bank.method, bank.layers) == (5, "sefa", (0,))


def test_json(run_json: Callable[..., Any]) -> None:
    found = run_json("discover", *SMALL_TOY, "--directions", 3, "--out", BANK)
    assert found == {
        "bank": "bank.safetensors",
        "method": "sefa",
        "directions": 3,
        "scores": load_bank(BANK).scores.tolist(),
    }


def test_a_bank_that_exists_is_kept(run: Callable[..., Result], bank_file: Path) -> None:
    before = bank_file.read_bytes()
    result = run("discover", *SMALL_TOY, "--directions", 2, "--out", bank_file)
    assert result.exit_code == 1
    assert "bank.safetensors exists already" in result.stderr
    assert "--force" in result.stderr
    assert bank_file.read_bytes() == before


def test_force_replaces_a_bank(run: Callable[..., Result], bank_file: Path) -> None:
    result = run("discover", *SMALL_TOY, "--directions", 2, "--out", bank_file, "--force")
    assert result.exit_code == 0, result.output
    assert len(load_bank(bank_file)) == 2


def test_force_replaces_nothing_else(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = run("discover", *SMALL_TOY, "--out", "thesis.txt", "--force")
    assert result.exit_code == 1
    assert "thesis.txt" in result.stderr
    assert "left alone" in result.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_option_of_the_method(run: Callable[..., Result]) -> None:
    result = run("discover", *SMALL_TOY, "--out", BANK, "-o", "normalize=none")
    assert result.exit_code == 0, result.output
    assert load_bank(BANK).settings == {"normalize": "none", "weights": "sefa"}


def test_layers(run: Callable[..., Result]) -> None:
    assert run("discover", *SMALL_TOY, "--out", BANK, "--layers", "0").exit_code == 0
    result = run("discover", *SMALL_TOY, "--out", BANK, "--force", "--layers", "6-13")
    assert result.exit_code == 1
    assert "There is no layer 13" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ((*SMALL_TOY, "--method", "seffa"), 1, "'seffa'. Did you mean 'sefa'?"),
        ((*SMALL_TOY, "-o", "normalise=none"), 1, "'normalise'. Did you mean 'normalize'?"),
        ((*SMALL_TOY, "-o", "normalize"), 2, "'normalize' is not KEY=VALUE"),
        (("toy", "--generator-option", "resolutoin=32"), 1, "'resolutoin'"),
        (("toy", "--generator-option", "resolution"), 2, "'resolution' is not KEY=VALUE"),
        (("toy", "--generator-option", "resolution=big"), 1, "big"),
        ((*SMALL_TOY, "--directions", "0"), 2, "0 is not in the range"),
        ((*SMALL_TOY, "--directions", "17"), 1, "17 directions are out of range"),
        (("--generator", "mine"), 2, "'mine' is not PACKAGE.MODULE:FUNCTION"),
        (("tyo",), 1, "'tyo'. Did you mean 'toy'?"),
        ((), 2, "Missing argument 'MODEL'"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], exit_code: int, message: str, run: Callable[..., Result], tmp_path: Path
) -> None:
    result = run("discover", *arguments, "--out", BANK)
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert not result.stdout
    assert not list(tmp_path.iterdir())


def test_unknown_family(run: Callable[..., Result], toy_bank: DirectionBank, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "model.pt")
    result = run("discover", "model.pt", "--family", "dcgna", "--out", BANK)
    assert result.exit_code == 1
    assert "'dcgna'. Did you mean 'dcgan'?" in result.stderr


def test_own_code(run: Callable[..., Result], own_module: str) -> None:
    result = run("discover", "--generator", f"{own_module}:make", "--out", BANK)
    assert result.exit_code == 1
    assert "10 directions are out of range" in result.stderr
    assert (
        run("discover", "--generator", f"{own_module}:make", "--directions", 4, "--out", BANK).exit_code == 0
    )
    assert load_bank(BANK).generator["name"] == "mine:make"


def test_own_code_that_takes_a_checkpoint(
    run: Callable[..., Result], own_module: str, tmp_path: Path
) -> None:
    hashes = set()
    for seed in (1, 2):
        (tmp_path / f"{seed}.ckpt").write_text(str(seed))
        arguments = (f"{seed}.ckpt", "--generator", f"{own_module}:load", "--directions", 4)
        result = run("discover", *arguments, "--out", f"{seed}.safetensors")
        assert result.exit_code == 0, result.output
        hashes.add(load_bank(f"{seed}.safetensors").generator["weights_sha256"])
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--generator", "mine:load"), "mine:load wants the path of a checkpoint"),
        (("x.ckpt", "--generator", "mine:make"), "mine:make takes no path"),
        (("--generator", "mine:mak"), "'mak'"),
        (("--generator", "mine:NUMBER"), "'NUMBER'"),
        (("--generator", "mine:make_nothing"), "mine:make_nothing returned a int"),
        (("--generator", "nowhere:make"), "'nowhere:make' cannot be imported"),
    ],
)
def test_own_code_that_does_not_fit(
    arguments: tuple[str, ...], message: str, run: Callable[..., Result], own_module: str
) -> None:
    result = run("discover", *arguments, "--out", BANK)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert not BANK.exists()
