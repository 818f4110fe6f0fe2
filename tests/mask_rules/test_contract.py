"""What every mask rule promises, and what the published ones give on images of the original code."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdirs.mask_rules import MASK_RULES, brightness, grey

ROOT = Path(__file__).parents[2]
FIXTURE = Path(os.environ.get("FASTDIRS_FIXTURES", ROOT.parent / "shared" / "fixtures")) / "gld_masks"
every_rule = pytest.mark.parametrize("name", MASK_RULES.names())


def images(seed: int, batch: int = 3, channels: int = 3) -> Tensor:
    random = torch.rand(batch, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    # Much of it is white: one rule asks for that.
    return (random * 12 - 4).clamp(-1, 1)


@every_rule
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_of_each_image_alone(name: str, channels: int) -> None:
    rule = MASK_RULES.load(name)
    unshifted, *shifted = (images(seed, channels=channels) for seed in range(1 + len(rule.signs)))
    mask = rule.mask(unshifted, shifted, rule.threshold)
    assert mask.dtype == torch.bool
    assert mask.shape == (3, 8, 8)
    assert 0 < mask.float().mean() < 1
    alone = rule.mask(unshifted[1:2], [each[1:2] for each in shifted], rule.threshold)
    assert torch.equal(alone[0], mask[1])


@every_rule
def test_a_shift_that_changes_nothing_is_no_error(name: str) -> None:
    rule = MASK_RULES.load(name)
    flat = torch.zeros(2, 3, 4, 4)
    mask = rule.mask(flat, [flat] * len(rule.signs), rule.threshold)
    # Intensity asks for white, and grey is not white.
    assert mask.all() if name == "intensity" else not mask.any()


@every_rule
def test_the_summary_names_its_source(name: str) -> None:
    rule = MASK_RULES.load(name)
    assert "Voynov" in rule.summary
    assert rule.signs[0] == 1


def test_lightening_is_what_becomes_lighter() -> None:
    rule = MASK_RULES.load("lightening")
    before, after = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = grey(before) < grey(after)
    assert torch.equal(rule.mask(before, [after], 0.0), wanted)
    assert torch.equal(rule.mask(after, [before], 0.0), ~wanted)
    assert rule.mask(before, [after], 0.3).sum() < wanted.sum()


def test_mean_is_what_is_lighter_than_the_image() -> None:
    shifted = images(1)
    values = grey(shifted)
    wanted = values > values.mean(dim=(1, 2), keepdim=True)
    assert torch.equal(MASK_RULES.load("mean").mask(images(0), [shifted], 0.0), wanted)


def test_grey_and_brightness() -> None:
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None]
    assert grey(red).item() == pytest.approx(0.2989 - 0.5870 - 0.1140)
    assert brightness(red).item() == pytest.approx(1 / 3)
    assert torch.equal(grey(red[:, :1]), red[:, 0])


def original(name: str) -> dict[str, NDArray[np.generic]]:
    if not FIXTURE.is_dir():
        pytest.skip(f"needs the original code's masks in {FIXTURE}")
    with np.load(FIXTURE / name, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("name", "named", "threshold"),
    [("intensity", "intensity", 0.95), ("intensity", "intensity", 0.6), ("difference", "diff", 0.6),
     ("difference", "diff", 0.45)],
)  # fmt: skip
def test_masks_of_the_original_code(name: str, named: str, threshold: float) -> None:
    given, wanted = original("inputs.npz"), original("expected.npz")
    rule = MASK_RULES.load(name)
    shifted = [
        torch.from_numpy(given["g_z_plus_shift" if sign > 0 else "g_z_minus_shift"]) for sign in rule.signs
    ]
    mask = rule.mask(torch.from_numpy(given["g_z"]), shifted, threshold)
    assert np.array_equal(mask.numpy(), wanted[f"mask_{named}_thr{threshold}"].astype(bool))
