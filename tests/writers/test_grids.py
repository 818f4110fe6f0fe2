"""Grids: strips of all seeds stacked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastdirs.images import Pixels, decode, encode, strip
from fastdirs.writers import Gallery
from fastdirs.writers.grids import WRITER


def build(gallery: Gallery) -> list[Pixels]:
    return [decode(path.read_bytes()) for path in WRITER.build(gallery, lambda done, total: None)]


def test_first_seed_is_on_top(gallery: Gallery) -> None:
    for direction, picture in zip(gallery.directions, build(gallery), strict=True):
        assert picture.shape == (3 * 16, 5 * 16, 3)
        for position, seed in enumerate(gallery.seeds):
            row = picture[position * 16 : (position + 1) * 16]
            np.testing.assert_array_equal(row, strip(gallery.read_strip(seed, direction)))


def test_files_are_named_by_direction_and_format(make_gallery: Callable[..., Gallery]) -> None:
    gallery = make_gallery(image_format="webp")
    names = [
        path.relative_to(gallery.folder).as_posix()
        for path in WRITER.build(gallery, lambda done, total: None)
    ]
    assert names == ["grids/direction-0000.webp", "grids/direction-0003.webp"]


def test_at_most_64_seeds(make_gallery: Callable[..., Gallery]) -> None:
    gallery = make_gallery(seeds=range(66), directions=(1,), epsilons=(0.0, 1.0), resolution=8)
    (picture,) = build(gallery)
    assert picture.shape == (64 * 8, 2 * 8, 3)


def test_no_more_seeds_than_the_format_holds(tmp_path: Path) -> None:
    content = {"seeds": list(range(9)), "directions": [0], "epsilons": [0.0], "image_format": "webp"}
    gallery = Gallery(tmp_path, content)
    for seed in gallery.seeds:
        path = gallery.strip_path(seed, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.zeros((2048, 4, 3), np.uint8), "webp"))
    (picture,) = build(gallery)
    assert picture.shape == (7 * 2048, 4, 3)
