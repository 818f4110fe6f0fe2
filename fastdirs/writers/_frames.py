"""The animation that the GIF and MP4 views share: epsilon ascending, then descending, the seeds as tiles."""

import math

import numpy as np

from fastdirs.images import Pixels
from fastdirs.writers import Gallery

MAX_SEEDS = 16
MIN_SIDE, MAX_SIDE = 256, 1024
"""Pixels. Smaller pictures are hard to see; few decoders play a frame of 16 tiles of a large generator."""
MIN_FRAME_MS, MIN_LOOP_MS = 80, 1600
"""Twelve frames a second, but a loop of few frames does not flicker."""


def tiles(gallery: Gallery, direction: int) -> Pixels:
    """One picture per epsilon: the first 16 seeds as tiles of a near-square grid, row by row, spares black.

    Args:
        gallery: A gallery whose strips are all there.
        direction: Index in the bank.

    Returns:
        Sides from 256 to 1024 pixels, reached by whole factors. `[steps, height, width, 3]`, uint8.
    """
    seeds = gallery.seeds[:MAX_SEEDS]
    columns = math.ceil(math.sqrt(len(seeds)))
    rows = math.ceil(len(seeds) / columns)
    size = gallery.read_strip(seeds[0], direction).shape[1]
    # Each strip is shrunk before the next one is read, so that memory holds one strip and the small tiles.
    shrink = math.ceil(columns * size / MAX_SIDE)
    side = size // shrink
    canvas = np.zeros((len(gallery.epsilons), rows * side, columns * side, 3), np.uint8)
    for position, seed in enumerate(seeds):
        top, left = position // columns * side, position % columns * side
        canvas[:, top : top + side, left : left + side] = _shrink(gallery.read_strip(seed, direction), shrink)
    enlarge = math.ceil(MIN_SIDE / (rows * side))
    return canvas.repeat(enlarge, axis=1).repeat(enlarge, axis=2)


def ping_pong(steps: int) -> list[int]:
    """Which picture each frame of the loop shows: 0 to `steps - 1` and back, neither end twice."""
    return [*range(steps), *range(steps - 2, 0, -1)]


def frame_ms(frames: int) -> int:
    """How long each frame of a loop is shown; a multiple of 10 ms, because GIF counts in hundredths."""
    return max(MIN_FRAME_MS, math.ceil(MIN_LOOP_MS / frames / 10) * 10)


def _shrink(images: Pixels, factor: int) -> Pixels:
    """Means of `factor` x `factor` blocks: `[steps, height, width, channels]`, uint8, sides divided."""
    if factor == 1:
        return images
    steps, height, width, channels = images.shape
    height, width = height // factor, width // factor
    whole = images[:, : height * factor, : width * factor]
    blocks = whole.reshape(steps, height, factor, width, factor, channels)
    means: Pixels = (blocks.mean(axis=(2, 4), dtype=np.float32) + 0.5).astype(np.uint8)
    return means
