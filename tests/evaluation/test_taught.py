"""What a reconstructor's file says of the pairs that it was trained on."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastdirs.directions import DirectionBank
from fastdirs.errors import CheckpointError
from fastdirs.evaluation import EvaluationSettings, evaluate
from fastdirs.generators import Generator
from fastdirs.reconstructors import load_reconstructor, save_reconstructor

SMALL = EvaluationSettings(seeds=2, batches=4)


@pytest.mark.parametrize("lengths", [[1.0] * 4, "1", [0.0] * 5, [1.0, 1.0, 1.0, 1.0, None]])
def test_damaged_lengths(
    lengths: object, toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    network, _ = load_reconstructor(toy_reconstructor)
    save_reconstructor(network, tmp_path / "damaged.safetensors", {"lengths": lengths})
    with pytest.raises(CheckpointError, match="lengths"):
        evaluate(toy, toy_bank, tmp_path, SMALL, reconstructor=tmp_path / "damaged.safetensors")


def test_pairs_of_training_are_those_that_were_trained_on(
    toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    network, _ = load_reconstructor(toy_reconstructor)
    path, found = tmp_path / "other.safetensors", []
    for training in ({}, {"training": {"seed": 3, "batch": 16, "steps": 3}}):
        save_reconstructor(network, path, training)
        found.append(evaluate(toy, toy_bank, tmp_path, SMALL, reconstructor=path).content["rca_training"])
    # Nobody said which they were; no more than there were.
    assert found[0] is None
    assert found[1]["pairs"] == 48


def test_lengths_that_an_imported_bank_records(
    toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    network, _ = load_reconstructor(toy_reconstructor)
    save_reconstructor(network, tmp_path / "original.safetensors", {})
    rca = []
    for lengths in ([1.0] * 5, [0.02] * 5):
        bank = replace(toy_bank, settings={"lengths": lengths})
        content = evaluate(
            toy, bank, tmp_path, SMALL, reconstructor=tmp_path / "original.safetensors"
        ).content
        rca.append(content["rca"]["accuracy"])
    # Shifted by next to nothing, nothing can be told apart.
    assert rca[0] > rca[1] + 0.2
