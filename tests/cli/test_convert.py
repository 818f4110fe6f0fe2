import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import nn

import fastdirs


@pytest.fixture
def checkpoint(random_dcgan: Callable[..., nn.Sequential], tmp_path: Path) -> Path:
    torch.save(random_dcgan().state_dict(), tmp_path / "generator.pt")
    return Path("generator.pt")


def test_a_copy_that_needs_no_options(run: Callable[..., Result], checkpoint: Path, tmp_path: Path) -> None:
    original = fastdirs.load_generator(tmp_path / checkpoint)
    result = run("convert", checkpoint, "--out", "mine.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stdout == "mine.safetensors\n"
    assert f"weights {original.weights_sha256[:12]}" in result.stderr
    copy = fastdirs.load_generator(tmp_path / "mine.safetensors")
    assert copy.weights_sha256 == original.weights_sha256
    assert copy.config == original.config
    z = copy.sample(range(2))
    torch.testing.assert_close(copy.synthesis(copy.mapping(z)), original.synthesis(original.mapping(z)))
    assert json.loads((tmp_path / "mine.json").read_text())["generator"] == original.identity()


def test_what_was_assumed_and_read_is_said(
    run: Callable[..., Result], random_dcgan: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    state = random_dcgan().state_dict()
    torch.save({"generator": state, "discriminator": {"main.0.weight": torch.ones(3)}}, tmp_path / "both.pt")
    result = run("convert", "both.pt", "--out", "mine.safetensors")
    assert result.exit_code == 0, result.output
    assert "read was its part generator" in result.stderr
    assumed = fastdirs.load_generator(tmp_path / "mine.safetensors").provenance.assumed
    assert ("does not say, so assumed" in result.stderr) == bool(assumed)


def test_json(run_json: Callable[..., Any], checkpoint: Path) -> None:
    content = run_json("convert", checkpoint, "--family", "dcgan", "--out", "mine.safetensors")
    assert content["out"] == "mine.safetensors"
    assert content["generator"]["family"] == "dcgan"


def test_force(run: Callable[..., Result], checkpoint: Path) -> None:
    command = ("convert", checkpoint, "--out", "mine.safetensors")
    assert run(*command).exit_code == 0
    again = run(*command)
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert run(*command, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("none.pt",), 1, "none.pt does not exist"),
        (("toy",), 1, "toy has no checkpoint to convert"),
        (("generator.pt", "--family", "dcgna"), 1, "Did you mean 'dcgan'?"),
        (("generator.pt", "--generator-option", "strides"), 2, "'strides' is not KEY=VALUE"),
    ],
)
def test_wrong_arguments(
    run: Callable[..., Result], checkpoint: Path, tmp_path: Path, arguments: tuple[str, ...], exit_code: int,
    message: str,
) -> None:  # fmt: skip
    result = run("convert", *arguments, "--out", "mine.safetensors")
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
