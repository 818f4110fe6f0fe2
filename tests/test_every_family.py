"""Every family through the command line: looked at, searched, traversed, rendered, exported, measured."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fastdirs.cli import main
from fastdirs.directions import load_bank
from fastdirs.generators import GENERATORS, Generator
from fastdirs.loading import save_generator
from fastdirs.manifest import Json

CONFIGS: dict[str, Json] = json.loads((Path(__file__).parent / "generators" / "configs.json").read_text())


@pytest.fixture(params=sorted(CONFIGS))
def generator(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator:
    """A small one, saved as `model.safetensors` in the working directory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = GENERATORS.load(request.param.partition(" ")[0]).build(CONFIGS[request.param])
    save_generator(made, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return made


def _fastdirs(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def _class(generator: Generator) -> list[str]:
    return ["--class", "1"] if generator.c_dim else []


def test_looked_at_searched_and_rendered(generator: Generator) -> None:
    assert (
        json.loads(_fastdirs("inspect", "model.safetensors", "--json"))["generator"] == generator.identity()
    )
    some = "0" if len(generator.editable) == 1 else "1-2"
    _fastdirs(
        "discover", "model.safetensors", "--layers", some, "--directions", "2", "--out", "bank.safetensors"
    )
    bank = load_bank("bank.safetensors")
    others = [layer for layer in range(generator.num_layers) if layer not in bank.layers]
    assert not bank.directions[:, others].any()
    seeds = ("--seeds", "0-1")
    _fastdirs(
        "traverse", "model.safetensors", "bank.safetensors", *seeds, "--epsilons", "-2,0,2",
        *_class(generator), "--out", "out",
    )  # fmt: skip
    assert Path("out/index.html").is_file()
    _fastdirs("render", "model.safetensors", *seeds, "--psi", "0.7", *_class(generator), "--out", "samples")
    assert {path.name for path in Path("samples").iterdir()} >= {"seed0000.png", "seed0001.png", "grid.png"}


@pytest.mark.slow
def test_exported_verified_and_measured(generator: Generator) -> None:
    _fastdirs("export", "model.safetensors", "--max-batch", "3", "--out", "artifact")
    _fastdirs("verify", "artifact")
    _fastdirs("render", "artifact", "--seeds", "0-3", *_class(generator), "--out", "samples")
    rows = json.loads(_fastdirs("bench", "model.safetensors", "--batch", "2", "--rounds", "1", "--json"))
    done = [row for row in rows["rows"] if row["failure"] is None]
    assert {row["backend"] for row in done} == {"eager", "ort", "openvino_cpu"}
