"""What is special to LeNet."""

import pytest
import torch

from fastdirs.errors import SelectionError
from fastdirs.reconstructors import build_reconstructor


def test_sizes_are_the_published_ones() -> None:
    shapes = {n: tuple(p.shape) for n, p in build_reconstructor("lenet", 64, 1, 32).named_parameters()}
    weights = [shape for shape in shapes.values() if len(shape) > 1]
    assert weights == [
        (6, 2, 5, 5), (16, 6, 5, 5), (120, 16, 5, 5), (84, 120), (64, 84), (84, 120), (1, 84),
    ]  # fmt: skip


def test_a_picture_of_32_pixels_is_the_smallest() -> None:
    with pytest.raises(SelectionError, match="lenet takes images of 32 pixels or more; these have 31"):
        build_reconstructor("lenet", 4, 1, 31)
    body = build_reconstructor("lenet", 4, 1, 32).body.eval()
    assert body(torch.zeros(1, 2, 32, 32)).shape == (1, 120, 1, 1)
    with pytest.raises(RuntimeError, match="Kernel size"):
        body(torch.zeros(1, 2, 31, 31))
