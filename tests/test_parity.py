from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fastdirs.backends import Array, Session
from fastdirs.errors import ParityError, ShapeError
from fastdirs.parity import Parity, compare, measure, require
from fastdirs.recipe import Tolerance

ANYTHING = Tolerance(mean=1e9, max=1e9, psnr=-1e9)
BLACK = np.full((2, 3, 4, 4), -1.0, dtype=np.float32)


def _with(value: float, *index: int) -> Array:
    images = BLACK.copy()
    images[index] = value
    return images


class _Table(Session):
    """Shows picture number `latents[i]` of a table."""

    precision, provider, detail, num_parallel = "f32", "table", "", 1

    def __init__(self, images: Array) -> None:
        self.images = images
        self.sizes: list[int] = []

    def run_all(self, inputs: Sequence[Array]) -> list[Array]:
        self.sizes.append(len(inputs[0]))
        return [self.images[inputs[0][:, 0, 0].astype(int)]]

    def close(self) -> None:
        pass


def _numbers(count: int) -> Array:
    return np.arange(count, dtype=np.float32).reshape(count, 1, 1)


def test_equal_images() -> None:
    assert compare(BLACK, BLACK) == Parity(mean=0.0, max=0.0, psnr=200.0)
    assert compare(BLACK, BLACK).within(Tolerance(mean=0.0, max=0.0, psnr=200.0))


def test_one_grey_level_everywhere() -> None:
    parity = compare(BLACK + np.float32(1 / 127.5), BLACK)
    assert parity.mean == pytest.approx(1.0, rel=1e-4)
    assert parity.max == pytest.approx(1.0, rel=1e-4)
    # 20 log10(255 / 1)
    assert parity.psnr == pytest.approx(48.1308, abs=1e-2)


def test_one_pixel_from_black_to_white() -> None:
    parity = compare(_with(1.0, 1, 2, 3, 0), BLACK)
    assert parity.max == 255.0
    assert parity.mean == pytest.approx(255 / BLACK.size)
    # Mean square 255^2 / 96, so 10 log10(96).
    assert parity.psnr == pytest.approx(10 * np.log10(BLACK.size))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_accepted(value: float) -> None:
    parity = compare(_with(value, 0, 0, 0, 0), BLACK)
    assert parity.psnr == 0.0
    assert not parity.within(ANYTHING)
    with pytest.raises(ParityError, match=r"differs from torch fp32 by mean (nan|inf)"):
        require(parity, ANYTHING, "graph")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_is_kept_whatever_the_order(position: int, value: float) -> None:
    reference = np.tile(BLACK[:1], (3, 1, 1, 1))
    images = reference.copy()
    images[position, 0, 0, 0] = value
    order: Any = ((3, 1), (1, 3), (1, 2, 3))
    for sizes in order:
        assert not measure(_Table(images), [_numbers(3)], reference, sizes).within(ANYTHING)


def test_measures_the_worst_of_all_batch_sizes() -> None:
    reference = np.tile(BLACK[:1], (4, 1, 1, 1))
    images = reference.copy()
    images[1] += 2 / 127.5
    session = _Table(images)
    parity = measure(session, [_numbers(4)], reference, (1, 2, 8))
    # Rows are repeated to fill the batch of 8.
    assert session.sizes == [1, 2, 8]
    assert parity.max == pytest.approx(2.0, rel=1e-4)
    # The batch of two has one wrong picture of two; the one of eight two of eight.
    assert parity.mean == pytest.approx(1.0, rel=1e-4)
    assert parity.psnr == pytest.approx(20 * np.log10(255 / np.sqrt(2)), abs=1e-2)


def test_images_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"images has shape \[1, 3, 4, 4\]"):
        compare(BLACK[:1], BLACK)


@pytest.mark.parametrize(
    "tolerance",
    [
        Tolerance(mean=0.9, max=2.0, psnr=40.0),
        Tolerance(mean=2.0, max=0.9, psnr=40.0),
        Tolerance(mean=2.0, max=2.0, psnr=50.0),
    ],
)
def test_each_limit_counts(tolerance: Tolerance) -> None:
    parity = Parity(mean=1.0, max=1.0, psnr=48.0)
    require(parity, Tolerance(mean=1.0, max=1.0, psnr=48.0), "graph")
    with pytest.raises(
        ParityError, match=r"graph differs from torch fp32 by mean 1, max 1 grey levels, PSNR 48 dB"
    ):
        require(parity, tolerance, "graph")


def test_reads_as_a_sentence_and_as_json() -> None:
    parity = Parity(mean=0.123, max=4.56, psnr=57.8)
    assert str(parity) == "mean 0.12, max 4.6 grey levels, PSNR 58 dB"
    assert Parity(**parity.to_json()) == parity
