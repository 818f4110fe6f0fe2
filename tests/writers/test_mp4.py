"""H.264 videos, decoded again."""

from pathlib import Path

import numpy as np
import pytest

from fastdirs.images import Pixels
from fastdirs.writers import Gallery

av = pytest.importorskip("av", reason="pip install 'fastdirs[video]'")

from fastdirs.writers._frames import ping_pong, tiles  # noqa: E402
from fastdirs.writers.mp4 import WRITER, write_mp4  # noqa: E402


def frames_of(path: Path) -> list[Pixels]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def psnr(a: Pixels, b: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def test_shows_the_tiles_up_and_down(gallery: Gallery) -> None:
    paths = WRITER.build(gallery, lambda done, total: None)
    assert [path.name for path in paths] == ["direction-0000.mp4", "direction-0003.mp4"]
    for direction, path in zip(gallery.directions, paths, strict=True):
        frames, pictures = frames_of(path), tiles(gallery, direction)
        assert len(frames) == 8
        for frame, step in zip(frames, ping_pong(5), strict=True):
            assert int(np.argmax([psnr(frame, picture) for picture in pictures])) == step
            assert psnr(frame, pictures[step]) > 30


def test_is_what_browsers_play(gallery: Gallery) -> None:
    path = WRITER.build(gallery, lambda done, total: None)[0]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (256, 256)
        assert stream.average_rate == 5
        assert stream.duration * stream.time_base == pytest.approx(1.6)
        assert stream.codec_context.colorspace == av.video.reformatter.Colorspace.ITU709
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), (
        "the index comes last, so browsers wait for the whole file"
    )


def test_bytes_do_not_depend_on_the_number_of_cores(gallery: Gallery) -> None:
    data = WRITER.build(gallery, lambda done, total: None)[0].read_bytes()
    assert b" threads=1 " in data[data.index(b"x264 - core") :]


def test_odd_sides_repeat_their_last_row_and_column(tmp_path: Path) -> None:
    pictures = np.zeros((2, 33, 35, 3), np.uint8)
    pictures[:, :, 34] = 255
    write_mp4(tmp_path / "odd.mp4", pictures)
    frames = frames_of(tmp_path / "odd.mp4")
    assert [frame.shape for frame in frames] == [(34, 36, 3)] * 2
    assert frames[0][:, 35].min() > 200
    assert frames[0][:, :32].max() < 50
