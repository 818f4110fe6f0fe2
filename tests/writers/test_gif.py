"""Animated GIFs."""

import io

import numpy as np
from PIL import Image, ImageSequence

from fastdirs.images import Pixels
from fastdirs.writers import Gallery
from fastdirs.writers._frames import ping_pong, tiles
from fastdirs.writers.gif import WRITER, encode_gif


def frames_of(data: bytes) -> list[Pixels]:
    with Image.open(io.BytesIO(data)) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def test_shows_the_tiles_up_and_down(gallery: Gallery) -> None:
    paths = WRITER.build(gallery, lambda done, total: None)
    assert [path.name for path in paths] == ["direction-0000.gif", "direction-0003.gif"]
    for direction, path in zip(gallery.directions, paths, strict=True):
        frames, pictures = frames_of(path.read_bytes()), tiles(gallery, direction)
        assert len(frames) == 8
        for frame, step in zip(frames, ping_pong(5), strict=True):
            errors = [np.abs(frame.astype(int) - picture).mean() for picture in pictures]
            assert int(np.argmin(errors)) == step
            assert errors[step] < 3, "grey levels lost to the palette"


def test_loops_for_ever_at_a_steady_pace(gallery: Gallery) -> None:
    with Image.open(WRITER.build(gallery, lambda done, total: None)[0]) as image:
        assert image.info["loop"] == 0
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(image)] == [200] * 8


def test_few_colours_are_kept_as_they_are() -> None:
    colours = np.random.RandomState(0).randint(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    pictures = colours.repeat(8, axis=1).repeat(8, axis=2)
    frames = frames_of(encode_gif(pictures))
    np.testing.assert_array_equal(frames, pictures[ping_pong(3)])


def test_a_direction_that_changes_nothing_is_one_long_frame() -> None:
    frames = frames_of(encode_gif(np.full((5, 32, 32, 3), 77, np.uint8)))
    assert len(frames) == 1
    assert (frames[0] == 77).all()
