"""Grids: for each direction one picture, the strips of all seeds stacked."""

from collections.abc import Callable
from pathlib import Path

from fastdirs.images import encode, grid, strip
from fastdirs.manifest import write_bytes
from fastdirs.writers import Gallery, View

MAX_SEEDS = 64
MAX_HEIGHT = {"jpg": 32767, "png": 32767, "webp": 16383}
"""Pixels. WebP holds no taller picture; many viewers refuse the others beyond this, and memory is bounded."""


def build(gallery: Gallery, progress: Callable[[int, int], None]) -> list[Path]:
    """Write the grid of every direction, first seed on top: 64 seeds, fewer where the format holds no more.

    Args:
        gallery: A gallery whose strips are all there.
        progress: Called with (done, total) after each direction.

    Returns:
        The pictures, one per direction.

    Raises:
        OutputError: A picture cannot be written.
    """
    paths: list[Path] = []
    for direction in gallery.directions:
        height = gallery.read_strip(gallery.seeds[0], direction).shape[1]
        seeds = gallery.seeds[: min(MAX_SEEDS, MAX_HEIGHT[gallery.image_format] // height)]
        picture = grid([strip(gallery.read_strip(seed, direction)) for seed in seeds])
        paths.append(gallery.folder / "grids" / f"direction-{direction:04d}.{gallery.image_format}")
        write_bytes(paths[-1], encode(picture, gallery.image_format))
        progress(len(paths), len(gallery.directions))
    return paths


WRITER = View(summary="one picture per direction, the strips of all seeds stacked", build=build)
