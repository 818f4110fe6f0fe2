"""DVN on pictures in which one thing varies: a bright left half, or a bright right one."""

import pytest
import torch
from torch import Tensor

from fastdirs.errors import ShapeError
from fastdirs.evaluation import dvn


def pictures(first: int, count: int, varies: bool = True) -> tuple[Tensor, Tensor]:
    """Noise, and in the half that the sign names more light; the light is nowhere unless it varies."""
    noise = torch.Generator().manual_seed(first + 1)
    images = torch.randn(count, 1, 32, 32, generator=noise) * 0.3
    signs = torch.arange(first, first + count) % 2
    if varies:
        images[signs == 0, :, :, :16] += 0.7
        images[signs == 1, :, :, 16:] += 0.7
    return images, signs


def test_what_varies_among_real_pictures_too_is_natural() -> None:
    real = pictures(5000, dvn.NUM_TRAINING)[0]
    assert dvn.naturalness(pictures, real) > 0.95


def test_what_does_not_vary_among_them_is_not() -> None:
    real = pictures(5000, dvn.NUM_TRAINING, varies=False)[0]
    assert dvn.naturalness(pictures, real) < 0.9


def test_a_direction_that_does_nothing_is_chance() -> None:
    real = pictures(5000, dvn.NUM_TRAINING)[0]
    found = dvn.naturalness(lambda first, count: pictures(first, count, varies=False), real)
    assert found == pytest.approx(0.5, abs=0.12)


def test_it_asks_for_other_seeds_to_judge_by_than_to_learn_from() -> None:
    asked = []

    def fakes(first: int, count: int) -> tuple[Tensor, Tensor]:
        asked.append(range(first, first + count))
        return pictures(first, count)

    dvn.naturalness(fakes, pictures(5000, dvn.NUM_TRAINING)[0])
    assert asked == [range(1600), range(1600, 1920)]


def test_the_same_again_and_the_callers_random_numbers_are_left_alone() -> None:
    real = pictures(5000, dvn.NUM_TRAINING, varies=False)[0]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = dvn.naturalness(pictures, real)
    assert torch.equal(torch.rand(4), expected)
    assert dvn.naturalness(pictures, real) == first


@pytest.mark.parametrize(
    ("resolution", "side"), [(16, 32), (28, 32), (32, 32), (48, 48), (64, 64), (1024, 64)]
)
def test_sizes_that_the_classifiers_see(resolution: int, side: int) -> None:
    small = dvn.resize(torch.full((2, 3, resolution, resolution), 0.25))
    assert small.shape == (2, 3, side, side)
    assert torch.allclose(small, torch.full_like(small, 0.25), atol=1e-6)


def test_too_few_real_pictures() -> None:
    with pytest.raises(ShapeError, match="pictures=1600"):
        dvn.naturalness(pictures, torch.zeros(10, 1, 32, 32))
