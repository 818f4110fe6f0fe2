"""Commands run in an empty folder, as a user would run them."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fastdirs.artifact import Artifact
from fastdirs.cli import main
from fastdirs.directions import DirectionBank
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks
from fastdirs.reconstructors import build_reconstructor, save_reconstructor

Run = Callable[..., Result]

_MODULE = """
import torch
from torch import nn


class Mine(nn.Module):
    z_dim = 6

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(6, 3 * 8 * 8)

    def forward(self, z):
        return self.layer(z).tanh().reshape(-1, 3, 8, 8)


def make():
    return Mine()


def load(path):
    return Mine(int(path.read_text()))


NUMBER = 3


def make_nothing():
    return NUMBER
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in `tmp_path`: `run("list", "zoo")` -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)

    return invoke


@pytest.fixture
def run_json(run: Run) -> Callable[..., Any]:
    """Run a command line with `--json`; standard output must be one JSON value and nothing else."""

    def invoke(*arguments: object) -> Any:
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout, parse_constant=_refuse)

    return invoke


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.fixture
def bank_file(toy_bank: DirectionBank, tmp_path: Path) -> Path:
    """The bank of the toy of 32 pixels."""
    toy_bank.save(tmp_path / "bank.safetensors")
    return Path("bank.safetensors")


@pytest.fixture(scope="session")
def pairs(toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the toy with their masks, as `fastdirs masks` makes them. Read only."""
    out = tmp_path_factory.mktemp("pairs") / "pairs"
    settings = MaskSettings(direction=4, epsilon=4.0, rule="mean")
    make_masks(toy_artifact, toy_bank, out, settings, 60, per_shard=25, backend="ort")
    return out


@pytest.fixture
def reconstructor_file(tmp_path: Path) -> Path:
    """A small reconstructor with random weights."""
    path = tmp_path / "reconstructor.safetensors"
    save_reconstructor(build_reconstructor("lenet", 4, 1, 32), path, {"bank_sha256": "ab"})
    return Path(path.name)


@pytest.fixture
def own_module(tmp_path: Path) -> Iterator[str]:
    """A user's module beside which the commands run: `make()` and `load(path)` return generators."""
    (tmp_path / "mine.py").write_text(_MODULE)
    yield "mine"
    sys.modules.pop("mine", None)
