"""Curved banks through a whole traversal: torch and compiled graphs show the same shifts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdirs.artifact import Artifact
from fastdirs.backends import graph_backends
from fastdirs.directions import DirectionBank, load_bank
from fastdirs.gallery import traverse
from fastdirs.generators import Generator
from fastdirs.images import Pixels, to_uint8
from fastdirs.writers import INDEX_FILE, WRITERS, Gallery

SMALL: dict[str, Any] = {
    "seeds": (0, 5), "directions": (0, 3), "epsilons": (-5.0, -2.0, 0.0, 1.5, 4.0), "image_format": "png",
    "precision": "f32", "batch_size": 4, "psi": 0.8,
}  # fmt: skip
COMPILED = list(dict.fromkeys(name for name, _ in graph_backends(("f32",))[0]))


def images(gallery: Gallery) -> Pixels:
    """`[strips, steps, height, width, channels]`, uint8."""
    strips = [
        gallery.read_strip(seed, direction) for seed in gallery.seeds for direction in gallery.directions
    ]
    return np.stack(strips)


def wanted(toy: Generator, bank: DirectionBank) -> Pixels:
    strips = []
    for seed in SMALL["seeds"]:
        latents = toy.mapping(toy.sample([seed]), psi=SMALL["psi"])
        for direction in SMALL["directions"]:
            shifted = torch.cat([latents + bank.shift(direction, epsilon) for epsilon in SMALL["epsilons"]])
            strips.append(to_uint8(toy.synthesis(shifted)))
    return np.stack(strips)


def test_in_torch(toy: Generator, curved_bank: DirectionBank, tmp_path: Path) -> None:
    writers = [name for name in WRITERS.names() if name != "mp4"]
    gallery = traverse(toy, curved_bank, tmp_path / "out", backend="eager", writers=writers, **SMALL)
    found, direct = images(gallery), wanted(toy, curved_bank)
    assert np.abs(found.astype(int) - direct).max() <= 1
    assert np.ptp(found.astype(int), axis=1).max() > 100
    page = (tmp_path / "out" / INDEX_FILE).read_text()
    assert page.count("<img") >= 4
    assert "bent" in page


@pytest.mark.parametrize("backend", COMPILED)
def test_on_a_compiled_graph(
    backend: str, toy: Generator, toy_artifact: Artifact, curved_bank: DirectionBank, tmp_path: Path
) -> None:
    curved_bank.save(tmp_path / "bank.safetensors")
    bank = load_bank(tmp_path / "bank.safetensors")
    gallery = traverse(
        toy_artifact, bank, tmp_path / "out", backend=backend, writers=("strips", "atlas"), **SMALL
    )
    assert gallery.content["runtime"]["backend"] == backend
    assert np.abs(images(gallery).astype(int) - wanted(toy, curved_bank)).max() <= 1
    assert (tmp_path / "out" / INDEX_FILE).is_file()


def test_the_bank_in_the_manifest(toy: Generator, curved_bank: DirectionBank, tmp_path: Path) -> None:
    gallery = traverse(toy, curved_bank, tmp_path / "out", backend="eager", writers=("strips",), **SMALL)
    assert gallery.content["bank"]["sha256"] == curved_bank.sha256
    assert gallery.content["bank"]["ranges"] == curved_bank.ranges.tolist()
