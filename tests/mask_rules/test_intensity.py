from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fastdirs.mask_rules import MASK_RULES

RULE = MASK_RULES.load("intensity")


@pytest.mark.parametrize("threshold", [0.95, 0.6])
def test_masks_of_the_original_code(threshold: float, original: Callable[[str], Any]) -> None:
    given, wanted = original("inputs.npz"), original("expected.npz")
    ends = {1: "g_z_plus_shift", -1: "g_z_minus_shift"}
    shifted = [torch.from_numpy(given[ends[sign]]) for sign in RULE.signs]
    mask = RULE.mask(torch.from_numpy(given["g_z"]), shifted, threshold)
    assert np.array_equal(mask.numpy(), wanted[f"mask_intensity_thr{threshold}"].astype(bool))


def test_what_is_not_white() -> None:
    shifted = torch.tensor([0.89, 0.91, 1.0]).expand(1, 3, 1, 3)
    assert RULE.mask(torch.zeros(1, 3, 1, 3), [shifted], 0.95).tolist() == [[[True, False, False]]]
