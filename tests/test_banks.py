"""The banks that come with fastdirs are what their README says."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from fastdirs.directions import load_bank
from fastdirs.loading import load_generator
from fastdirs.recipe import load_recipe
from fastdirs.zoo import ZOO

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "banks"
BANKS = sorted(FOLDER.glob("*.safetensors"))
COMMANDS = {
    words[words.index("--out") + 1]: words
    for words in map(
        shlex.split, re.findall(r"^ +(fastdirs discover .*)$", (FOLDER / "README.md").read_text(), re.M)
    )
}

every_bank = pytest.mark.parametrize("path", BANKS, ids=lambda path: path.stem)


def test_each_has_its_command() -> None:
    assert BANKS
    assert set(COMMANDS) == {path.name for path in BANKS}


@every_bank
def test_the_command_is_the_one_that_made_it(path: Path) -> None:
    bank, words = load_bank(path), COMMANDS[path.name]
    options = dict(words[i + 1].split("=") for i, word in enumerate(words) if word == "-o")
    assert bank.method == words[words.index("--method") + 1]
    assert len(bank) == int(words[words.index("--directions") + 1])
    for name, value in options.items():
        assert bank.settings[name] == type(bank.settings[name])(value)
    assert bank.generator["name"] == Path(words[2]).stem


@every_bank
def test_it_belongs_to_a_generator_that_anyone_can_load(path: Path) -> None:
    bank = load_bank(path)
    name = bank.generator["name"]
    asset = ROOT / "assets" / f"{name}.safetensors"
    recipe = ROOT / "export" / f"{name}.toml"
    if asset.exists():
        assert bank.generator["weights_sha256"] == load_generator(asset).weights_sha256
    elif recipe.exists():
        assert bank.generator["weights_sha256"] == load_recipe(recipe).weights_sha256
    assert asset.exists() or name in ZOO.names()


@every_bank
def test_some_directions_have_names_and_a_judge(path: Path) -> None:
    bank = load_bank(path)
    named = [i for i, label in enumerate(bank.labels) if label != f"direction {i}"]
    assert len(named) >= 3
    assert all(bank.judges[i] and bank.tags[i] for i in named)


@every_bank
def test_directions_are_best_first_and_of_unit_length(path: Path) -> None:
    bank = load_bank(path)
    assert (bank.scores.diff() <= 0).all()
    torch.testing.assert_close(bank.directions.flatten(1).norm(dim=1), torch.ones(len(bank)))


def test_the_digits_are_digits() -> None:
    generator = load_generator(ROOT / "assets" / "sngan-mnist-32.safetensors")
    images = generator.synthesis(generator.mapping(generator.sample(range(16))))
    # Bright strokes on black.
    assert images.shape == (16, 1, 32, 32)
    assert (images < -0.9).float().mean() > 0.6
    assert 0.03 < (images > 0.5).float().mean() < 0.3
