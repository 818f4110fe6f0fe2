"""Pictures and what was made of them, side by side, to look at before opening hundreds of files."""

from collections.abc import Sequence

import numpy as np

from fastdirs.images import Pixels, shrink

_TILE = 192
_GAP = 8
_CHECKER = 12
_LIGHT, _DARK = 250, 214


def preview_row(images: Sequence[Pixels]) -> Pixels:
    """Pictures of any sizes side by side, each made to fit into a square.

    Args:
        images: `[height, width, channels]` each, uint8, grey, RGB or RGBA; what is transparent shows a
            chequered ground.

    Returns:
        `[height, width, 3]`, uint8; the height is the same for all rows.
    """
    return np.concatenate([_tile(image) for image in images], axis=1)


def _tile(image: Pixels) -> Pixels:
    """A picture in the middle of a white square."""
    tile = np.full((_TILE + _GAP, _TILE + _GAP, 3), 255, np.uint8)
    # The ground is laid after shrinking, so that its squares are of one size.
    small = np.concatenate([shrink(np.ascontiguousarray(part), _TILE) for part in _parts(image)], axis=-1)
    height, width = small.shape[:2]
    if image.shape[-1] == 4:
        opacity = small[..., 3:] / np.float32(255)
        small = np.rint(small[..., :3] * opacity + _chequered(height, width) * (1 - opacity)).astype(np.uint8)
    top, left = (_TILE + _GAP - height) // 2, (_TILE + _GAP - width) // 2
    tile[top : top + height, left : left + width] = small
    return tile


def _parts(image: Pixels) -> list[Pixels]:
    return [image[..., :3], image[..., 3:]] if image.shape[-1] == 4 else [image]


def _chequered(height: int, width: int) -> Pixels:
    row, column = np.ogrid[:height, :width]
    odd = (row // _CHECKER + column // _CHECKER) % 2
    return np.where(odd, _DARK, _LIGHT)[..., None].astype(np.uint8)
