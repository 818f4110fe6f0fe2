"""Reconstructors that the authors' code of Voynov & Babenko saved answer as they answered there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastdirs.reconstructors import is_reconstructor, load_reconstructor
from tests.originals.conftest import FIXTURES

RUNS = FIXTURES / "gld_runs"
FILES = sorted(RUNS.glob("*/models/shift_predictor_*.pt"))
every_file = pytest.mark.parametrize(
    "path",
    FILES or [pytest.param(None, marks=pytest.mark.skip(reason=f"needs the originals' runs in {RUNS}"))],
    ids=lambda path: path.parents[1].name if path else "absent",
)


def _arrays(path: Path, name: str) -> dict[str, torch.Tensor]:
    run = path.parents[1].name
    with np.load(RUNS / f"{name}.npz", allow_pickle=False) as arrays:
        found = {key: arrays[key] for key in arrays.files if key.startswith(f"{run}/")}
    return {key.partition("/")[2]: torch.from_numpy(array) for key, array in found.items()}


@every_file
def test_logits_and_epsilons_are_the_original_ones(path: Path) -> None:
    inputs, expected = _arrays(path, "inputs"), _arrays(path, "expected")
    assert is_reconstructor(path)
    reconstructor, recorded = load_reconstructor(path)
    logits, epsilon, _ = reconstructor(inputs["x1"], inputs["x2"])
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(epsilon, expected["shift"], rtol=0, atol=1e-5)
    assert expected["logits"].std() > 0.01
    # The original drops the axis of a batch of one.
    alone = reconstructor(inputs["x1"][:1], inputs["x2"][:1])[1]
    assert alone.shape == (1,)
    torch.testing.assert_close(alone[0], expected["shift_batch1"], rtol=0, atol=1e-5)
    assert reconstructor.img_resolution == inputs["x1"].shape[-1]
    assert recorded["shifts"] == {"name": "uniform", "scale": 6.0, "minimum": 0.5}


@every_file
def test_the_checkpoint_of_a_run_holds_the_same(path: Path) -> None:
    checkpoint = path.parents[1] / "checkpoint.pt"
    if not checkpoint.is_file():
        pytest.skip("this run left no checkpoint.pt")
    inputs = _arrays(path, "inputs")
    assert is_reconstructor(checkpoint)
    found = load_reconstructor(checkpoint)[0](inputs["x1"], inputs["x2"])
    for mine, wanted in zip(found, load_reconstructor(path)[0](inputs["x1"], inputs["x2"]), strict=True):
        assert torch.equal(mine, wanted)


def test_no_other_file_of_a_run_is_taken_for_one() -> None:
    deformators = sorted(RUNS.glob("*/models/deformator_*.pt"))
    if not deformators:
        pytest.skip(f"needs the originals' runs in {RUNS}")
    assert not any(map(is_reconstructor, deformators))
