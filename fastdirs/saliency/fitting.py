"""Pictures of any size become the square that a segmenter reads, and its saliency gets their size again."""

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import SelectionError, check_shape
from fastdirs.images import GREY_LEVELS, Pixels, resize, to_grey


def fit(image: Pixels, img_channels: int, img_resolution: int) -> NDArray[np.float32]:
    """A picture as a segmenter reads it: squeezed to its square, whatever shape it had.

    Args:
        image: `[height, width, channels]`, uint8, 1 or 3 channels; grey ones also `[height, width]`.
        img_channels: What the segmenter reads, 1 or 3: grey becomes RGB, and RGB its luma.
        img_resolution: Height and width of the square, in pixels.

    Returns:
        `[channels, img_resolution, img_resolution]`, float32 in [-1, 1].

    Raises:
        ShapeError: Other axes or channels.
        SelectionError: Not uint8, or no pixels.
    """
    if image.ndim == 2:
        image = image[..., None]
    axes = "height width channels"
    check_shape(image, axes, "image", **({} if image.shape[-1] == 1 else {"channels": 3}))
    if image.dtype != np.uint8:
        raise SelectionError(f"The picture is of {image.dtype}. Expected uint8, 0 to 255.")
    if not image.size:
        raise SelectionError(f"The picture has {image.shape[0]} x {image.shape[1]} pixels, so it has none.")
    values = resize(image, img_resolution, img_resolution).astype(np.float32)
    if img_channels == 1 and values.shape[-1] == 3:
        values = to_grey(values)
    values = np.repeat(values, img_channels // values.shape[-1], axis=-1).transpose(2, 0, 1)
    return np.ascontiguousarray(values / np.float32(GREY_LEVELS) - np.float32(1))


def unfit(saliency: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Saliency of the square at the size of its picture.

    Args:
        saliency: `[size, size]`, float32 in 0..1.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.

    Returns:
        `[height, width]`, float32 in 0..1, an array of its own.
    """
    full: NDArray[np.float32] = resize(np.ascontiguousarray(saliency, np.float32), height, width)
    return np.clip(full, 0, 1)
