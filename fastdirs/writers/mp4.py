"""H.264 videos that browsers play: for each direction a loop through its epsilons, up to 16 seeds."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from fastdirs.images import Pixels
from fastdirs.manifest import atomic_file
from fastdirs.writers import Gallery, View
from fastdirs.writers._frames import frame_ms, ping_pong, tiles

ENCODER = {
    "crf": "18",
    # With more threads the bytes would depend on the number of cores.
    "threads": "1",
    # Said in the stream, because players guess between two sets of colours by the size of the picture.
    "x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709",
}


def write_mp4(path: Path, pictures: Pixels) -> None:
    """Write one loop, ascending then descending; equal pixels give equal bytes.

    Args:
        path: The file.
        pictures: One per epsilon, ascending; an odd side is made even by repeating its last row or column.
            `[steps, height, width, 3]`, uint8.

    Raises:
        OutputError: The file cannot be written.
    """
    height, width = pictures.shape[1:3]
    pictures = np.pad(pictures, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    order = ping_pong(len(pictures))
    rate = Fraction(1000, frame_ms(len(order)))
    with atomic_file(path) as temporary:
        try:
            # faststart moves the index to the front, so that a browser plays before all has arrived.
            with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
                stream = container.add_stream("libx264", rate=rate, options=ENCODER)
                stream.height, stream.width = pictures.shape[1:3]
                stream.pix_fmt = "yuv420p"
                for position, step in enumerate(order):
                    frame = av.VideoFrame.from_ndarray(pictures[step], format="rgb24")
                    frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
                    frame.pts, frame.time_base = position, 1 / rate
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
        except av.error.FFmpegError as error:
            # A full disk comes as an error of FFmpeg's own, which `atomic_file` would not know.
            raise OSError(error.errno, error.strerror) from error


def build(gallery: Gallery, progress: Callable[[int, int], None]) -> list[Path]:
    """Write the video of every direction.

    Args:
        gallery: A gallery whose strips are all there.
        progress: Called with (done, total) after each direction.

    Returns:
        The videos, one per direction.

    Raises:
        OutputError: A file cannot be written.
    """
    paths: list[Path] = []
    for direction in gallery.directions:
        paths.append(gallery.folder / "mp4" / f"direction-{direction:04d}.mp4")
        write_mp4(paths[-1], tiles(gallery, direction))
        progress(len(paths), len(gallery.directions))
    return paths


WRITER = View(summary="one H.264 video per direction, up to 16 seeds (needs fastdirs[video])", build=build)
