"""Pictures as a segmenter reads them, and saliency at their size again."""

import numpy as np
import pytest

from fastdirs.errors import SelectionError, ShapeError
from fastdirs.saliency.fitting import fit, unfit


def _picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (20, 33), (32, 32), (500, 400)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("img_channels", [1, 3])
def test_any_size_and_channels(size: tuple[int, int], channels: int, img_channels: int) -> None:
    fitted = fit(_picture(*size, channels), img_channels, 32)
    assert (fitted.shape, fitted.dtype) == ((img_channels, 32, 32), np.float32)
    assert fitted.flags["C_CONTIGUOUS"]
    assert -1 <= fitted.min() <= fitted.max() <= 1


def test_of_the_right_size_every_level_is_exact() -> None:
    picture = _picture(32, 32)
    wanted = picture.transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(fit(picture, 3, 32), wanted, atol=1e-6)
    assert fit(np.array([[[0], [255]]], np.uint8).repeat(2, axis=0), 1, 2).ravel().tolist() == [-1, 1] * 2


def test_grey_becomes_rgb_and_rgb_its_luma() -> None:
    grey = _picture(16, 16, 1)
    np.testing.assert_array_equal(fit(grey, 3, 16), fit(grey.repeat(3, axis=2), 3, 16))
    np.testing.assert_allclose(fit(grey, 1, 16), fit(grey.repeat(3, axis=2), 1, 16), atol=1e-6)
    np.testing.assert_array_equal(fit(grey[..., 0], 1, 16), fit(grey, 1, 16))
    green = np.zeros((4, 4, 3), np.uint8)
    green[..., 1] = 255
    np.testing.assert_allclose(fit(green, 1, 4), 2 * 0.587 - 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4, 2), (4, 4, 4), (4,), (2, 4, 4, 3)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"image has shape .* expected \[height, width, channels=3\]"):
        fit(np.zeros(shape, np.uint8), 3, 8)


def test_floats_and_nothing() -> None:
    with pytest.raises(SelectionError, match=r"of float32\. Expected uint8"):
        fit(np.zeros((4, 4, 3), np.float32), 3, 8)
    with pytest.raises(SelectionError, match="0 x 4 pixels"):
        fit(np.zeros((0, 4, 3), np.uint8), 3, 8)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 50), (640, 480)])
def test_saliency_at_the_size_of_the_picture(size: tuple[int, int]) -> None:
    square = np.zeros((8, 8), np.float32)
    square[:, 4:] = 1
    full = unfit(square, *size)
    assert (full.shape, full.dtype) == (size, np.float32)
    assert 0 <= full.min() <= full.max() <= 1
    assert full is not square
    if size[1] > 1:
        assert (full[:, 0] < 0.2).all()
        assert (full[:, -1] > 0.8).all()
    np.testing.assert_allclose(full.mean(), 0.5, atol=0.01)
