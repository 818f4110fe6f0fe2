"""Traversals of conditional generators: one class for all images, kept in the plan."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.errors import ContractError, OutputError, SelectionError
from fastdirs.gallery import traverse
from fastdirs.generators import Generator
from fastdirs.images import to_uint8
from fastdirs.writers import PLAN_FILE

SMALL: dict[str, Any] = {
    "seeds": (0, 5),
    "directions": (1,),
    "epsilons": (-2.0, 0.0, 2.0),
    "image_format": "png",
    "writers": ("strips",),
    "backend": "eager",
    "batch_size": 2,
}


@pytest.mark.parametrize("c", [0, 3])
def test_strips_show_the_class(classes: Generator, tmp_path: Path, c: int) -> None:
    bank = discover(classes, "sefa", num_directions=3)
    gallery = traverse(classes, bank, tmp_path / "out", psi=0.6, c=c, **SMALL)
    assert gallery.content["class"] == c
    for seed in SMALL["seeds"]:
        latents = classes.mapping(classes.sample([seed]), psi=0.6)
        wanted = [to_uint8(classes.synthesis(latents + bank.shift(1, e), c))[0] for e in SMALL["epsilons"]]
        difference = gallery.read_strip(seed, 1).astype(int) - np.stack(wanted)
        assert np.abs(difference).max() <= 1, "rounding alone"


def test_an_artefact_shows_the_class(classes: Generator, classes_artifact: Artifact, tmp_path: Path) -> None:
    bank = discover(classes, "sefa", num_directions=3)
    settings = {**SMALL, "backend": "ort", "precision": "f32", "batch_size": 0}
    gallery = traverse(classes_artifact, bank, tmp_path / "out", c=2, **settings)
    eager = traverse(classes, bank, tmp_path / "eager", c=2, **SMALL)
    for seed in SMALL["seeds"]:
        difference = gallery.read_strip(seed, 1).astype(int) - eager.read_strip(seed, 1)
        assert np.abs(difference).max() <= 1


def test_a_mapping_that_reads_the_class(conditional: Generator, tmp_path: Path) -> None:
    directions = torch.zeros(1, conditional.num_layers, conditional.dim)
    directions[0, 1, 2] = 1
    one = torch.ones(1)
    bank = DirectionBank(
        directions=directions, scales=one, scores=one, ranges=torch.tensor([[-1.0, 1.0]]), labels=("up",),
        layers=(1,), generator=conditional.identity(), method="hand",
    )  # fmt: skip
    settings = {**SMALL, "directions": (0,)}
    gallery = traverse(conditional, bank, tmp_path / "out", psi=0.6, c=1, **settings)
    for seed in SMALL["seeds"]:
        latents = conditional.mapping(conditional.sample([seed]), 1, psi=0.6)
        wanted = [to_uint8(conditional.synthesis(latents + bank.shift(0, e)))[0] for e in SMALL["epsilons"]]
        difference = gallery.read_strip(seed, 0).astype(int) - np.stack(wanted)
        assert np.abs(difference).max() <= 1
    with pytest.raises(ContractError, match=r"layered needs a class\. Name one from 0 to 2"):
        traverse(conditional, bank, tmp_path / "none", **settings)


def test_another_class_is_another_traversal(classes: Generator, tmp_path: Path) -> None:
    bank = discover(classes, "sefa", num_directions=3)
    out = tmp_path / "out"
    first = traverse(classes, bank, out, c=2, **SMALL)
    assert traverse(classes, bank, out, c=2, **SMALL).content == first.content
    with pytest.raises(OutputError, match="holds a traversal with other class"):
        traverse(classes, bank, out, c=1, **SMALL)
    assert traverse(classes, bank, out, c=1, force=True, **SMALL).content["class"] == 1


@pytest.mark.parametrize(
    ("c", "error", "message"),
    [
        (None, ContractError, r"classes needs a class\. Name one from 0 to 3"),
        (4, SelectionError, r"no class 4\. Classes run from 0 to 3"),
        (-1, SelectionError, r"no class -1"),
        (1.5, SelectionError, r"no class 1\.5"),
    ],
)
def test_a_class_is_needed(
    classes: Generator, tmp_path: Path, c: Any, error: type[Exception], message: str
) -> None:
    bank = discover(classes, "sefa", num_directions=3)
    with pytest.raises(error, match=message):
        traverse(classes, bank, tmp_path / "out", c=c, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_nothing_reads(toy: Generator, tmp_path: Path) -> None:
    bank = discover(toy, "sefa", num_directions=3)
    with pytest.raises(ContractError, match=r"toy takes no class\. Leave it out"):
        traverse(toy, bank, tmp_path / "out", c=0, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_traversal_of_an_earlier_version_goes_on(toy: Generator, tmp_path: Path) -> None:
    """Version 0.1.0 knew no classes."""
    bank = discover(toy, "sefa", num_directions=3)
    out = tmp_path / "out"
    first = traverse(toy, bank, out, **SMALL)
    content = json.loads((out / PLAN_FILE).read_text())
    del content["class"]
    (out / PLAN_FILE).write_text(json.dumps(content))
    assert traverse(toy, bank, out, **SMALL).content == first.content
