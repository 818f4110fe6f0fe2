"""Rows of pictures of different sizes and modes."""

import numpy as np

from fastdirs.saliency.preview import preview_row


def test_rows_of_any_pictures_are_equally_high() -> None:
    first = preview_row([np.zeros((5, 900, 3), np.uint8), np.zeros((40, 20, 1), np.uint8)])
    second = preview_row([np.zeros((700, 30, 4), np.uint8), np.full((1, 1, 3), 9, np.uint8)])
    assert first.shape == second.shape == (200, 400, 3)
    assert first.dtype == np.uint8


def test_what_is_transparent_shows_the_ground() -> None:
    cutout = np.zeros((64, 64, 4), np.uint8)
    cutout[:, 32:] = (200, 10, 20, 255)
    tile = preview_row([cutout])[68:-68, 68:-68]
    assert (tile[:, 32:] == (200, 10, 20)).all()
    assert set(np.unique(tile[:, :32])) == {214, 250}


def test_grey_stays_grey() -> None:
    tile = preview_row([np.full((8, 8, 1), 77, np.uint8)])
    assert set(np.unique(tile)) == {77, 255}
