"""The animation shared by the GIF and MP4 views."""

from collections.abc import Callable

import numpy as np
import pytest

from fastdirs.writers import Gallery
from fastdirs.writers._frames import _shrink, frame_ms, ping_pong, tiles


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2, 1]), (5, [0, 1, 2, 3, 4, 3, 2, 1])]
)
def test_ping_pong_shows_neither_end_twice(steps: int, expected: list[int]) -> None:
    assert ping_pong(steps) == expected


def test_a_loop_is_neither_a_flicker_nor_a_slide_show() -> None:
    assert frame_ms(1000) == 80
    assert frame_ms(16) == 100
    for frames in range(1, 200):
        assert frame_ms(frames) * frames >= 1600
        assert frame_ms(frames) % 10 == 0


@pytest.mark.parametrize(
    ("seeds", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (7, 3, 3), (16, 4, 4), (20, 4, 4)]
)
def test_tiles_are_the_first_seeds_row_by_row(
    seeds: int, rows: int, columns: int, make_gallery: Callable[..., Gallery]
) -> None:
    gallery = make_gallery(seeds=range(seeds), directions=(0,), epsilons=(0.0, 1.0))
    pictures = tiles(gallery, 0)
    factor = -(-256 // (rows * 16))
    assert pictures.shape == (2, rows * 16 * factor, columns * 16 * factor, 3)
    for position in range(rows * columns):
        top, left = position // columns * 16, position % columns * 16
        tile = pictures[:, ::factor, ::factor][:, top : top + 16, left : left + 16]
        shown = gallery.read_strip(position, 0) if position < min(seeds, 16) else np.zeros_like(tile)
        np.testing.assert_array_equal(tile, shown)


def test_tiles_of_a_large_generator_are_shrunk(make_gallery: Callable[..., Gallery]) -> None:
    gallery = make_gallery(seeds=range(2), directions=(0,), epsilons=(0.0,), resolution=600)
    assert tiles(gallery, 0).shape == (1, 300, 600, 3)


def test_tiles_of_grey_images_are_grey(make_gallery: Callable[..., Gallery]) -> None:
    pictures = tiles(make_gallery(grey=True), 0)
    assert pictures.shape[-1] == 3
    assert (pictures == pictures[..., :1]).all()


def test_shrinking_takes_means_of_blocks_and_rounds() -> None:
    images = np.arange(25, dtype=np.uint8).reshape(1, 5, 5, 1)
    np.testing.assert_array_equal(_shrink(images, 2)[0, :, :, 0], [[3, 5], [13, 15]])
