from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fastdirs.mask_rules import MASK_RULES

RULE = MASK_RULES.load("difference")


@pytest.mark.parametrize("threshold", [0.6, 0.45])
def test_masks_of_the_original_code(threshold: float, original: Callable[[str], Any]) -> None:
    given, wanted = original("inputs.npz"), original("expected.npz")
    ends = {1: "g_z_plus_shift", -1: "g_z_minus_shift"}
    shifted = [torch.from_numpy(given[ends[sign]]) for sign in RULE.signs]
    mask = RULE.mask(torch.from_numpy(given["g_z"]), shifted, threshold)
    assert np.array_equal(mask.numpy(), wanted[f"mask_diff_thr{threshold}"].astype(bool))


def test_each_image_has_its_own_range() -> None:
    change = torch.tensor([[0.0, 0.2, 1.0], [0.0, 0.02, 0.1]])[:, None, None].expand(-1, 3, 1, 3)
    mask = RULE.mask(torch.zeros(2, 3, 1, 3), [change, torch.zeros(2, 3, 1, 3)], 0.5)
    assert mask.tolist() == [[[True, True, False]]] * 2
