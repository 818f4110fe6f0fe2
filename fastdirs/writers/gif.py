"""Animated GIFs: for each direction a loop through its epsilons, up to 16 seeds side by side."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fastdirs.images import Pixels
from fastdirs.manifest import write_bytes
from fastdirs.writers import Gallery, View
from fastdirs.writers._frames import frame_ms, ping_pong, tiles


def encode_gif(pictures: Pixels) -> bytes:
    """An endless loop, ascending then descending; equal pixels give equal bytes.

    Args:
        pictures: One per epsilon, ascending. `[steps, height, width, 3]`, uint8.
    """
    # One palette for all frames: with a palette each, colours that do not move would flicker.
    mosaic = np.concatenate(list(pictures[:, ::2, ::2]))
    palette = Image.fromarray(mosaic).quantize(256, method=Image.Quantize.MEDIANCUT)
    # No dithering: its grain swims from frame to frame and makes files larger.
    quantised = [Image.fromarray(p).quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    first, *rest = (quantised[step] for step in ping_pong(len(quantised)))
    buffer = io.BytesIO()
    duration = frame_ms(1 + len(rest))
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=duration, loop=0, optimize=False)
    return buffer.getvalue()


def build(gallery: Gallery, progress: Callable[[int, int], None]) -> list[Path]:
    """Write the animation of every direction.

    Args:
        gallery: A gallery whose strips are all there.
        progress: Called with (done, total) after each direction.

    Returns:
        The GIFs, one per direction.

    Raises:
        OutputError: A file cannot be written.
    """
    paths: list[Path] = []
    for direction in gallery.directions:
        paths.append(gallery.folder / "gif" / f"direction-{direction:04d}.gif")
        write_bytes(paths[-1], encode_gif(tiles(gallery, direction)))
        progress(len(paths), len(gallery.directions))
    return paths


WRITER = View(summary="one animated GIF per direction, up to 16 seeds", build=build)
