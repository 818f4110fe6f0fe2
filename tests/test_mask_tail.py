import numpy as np
import pytest
import torch

from fastdirs.images import to_uint8
from fastdirs.mask_rules import MASK_RULES
from fastdirs.mask_tail import HISTOGRAM_BINS, MaskTail


@pytest.mark.parametrize("rule", MASK_RULES.names())
def test_pixels_mask_and_histogram(rule: str) -> None:
    tail = MaskTail(rule, MASK_RULES.load(rule).threshold)
    assert tail.signs == (0, *MASK_RULES.load(rule).signs)
    images = torch.rand(4, tail.size, 3, 8, 6, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    pixels, mask, histogram = tail(images)
    assert np.array_equal(pixels.numpy(), to_uint8(images[:, 0]))
    # What is beyond the range cannot be seen.
    seen = images.clamp(-1, 1)
    wanted = MASK_RULES.load(rule).mask(seen[:, 0], list(seen[:, 1:].unbind(1)), tail.threshold)
    assert mask.dtype == torch.uint8
    assert torch.equal(mask.bool(), wanted)
    assert histogram.dtype == torch.int32
    for row in range(4):
        counts, _ = np.histogram(images[row, 1].clamp(-1, 1), HISTOGRAM_BINS, range=(-1, 1))
        assert histogram[row].tolist() == counts.tolist()


def test_the_threshold_is_the_one_given() -> None:
    images = torch.zeros(1, 2, 3, 2, 2)
    images[:, 1] = torch.tensor([[0.1, 0.3], [0.5, 0.7]])
    assert MaskTail("lightening", 0.4)(images)[1].tolist() == [[[0, 0], [1, 1]]]
