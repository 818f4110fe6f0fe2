"""Masks led to the edges of the picture: graph cuts between colours, from what the shift made likely."""

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import MissingDependencyError
from fastdirs.images import Pixels

try:
    import cv2
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        "Refined masks need OpenCV, which is not installed: pip install 'fastdirs[masks]'"
    ) from error

Masks = NDArray[np.bool_]

_SURE, _ITERATIONS = 0.9, 2
_PRIOR_SHARE = 0.5


def likely(saliency: NDArray[np.uint8], prior: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the shift says of a pixel, and what it says of that place on average, half each.

    Args:
        saliency: `[batch, height, width]`, uint8, 255 = surely the object.
        prior: Mean over many images, 0 to 1. `[height, width]`, float32.

    Returns:
        `[batch, height, width]`, float32, 0 to 1.
    """
    return (1 - _PRIOR_SHARE) * saliency.astype(np.float32) / 255 + _PRIOR_SHARE * prior


def refine(pixels: Pixels, saliency: NDArray[np.float32]) -> tuple[Masks, NDArray[np.float64]]:
    """Masks whose contours follow the picture; equal pictures give equal masks.

    Args:
        pixels: `[batch, height, width, channels]`, uint8.
        saliency: How likely each pixel belongs to the object, 0 to 1. `[batch, height, width]`, float32.

    Returns:
        Masks `[batch, height, width]`, bool; and how far each agrees with the saliency cut at 0.5, as
        intersection over union, `[batch]`, 0 to 1.

    Source:
        Rother et al. 2004 (GrabCut), as OpenCV has it: 2 iterations from what is likely, with what is
        likelier than 0.9 kept on its side.
    """
    masks = np.empty(saliency.shape, dtype=bool)
    for row, (image, likelihood) in enumerate(zip(pixels, saliency, strict=True)):
        masks[row] = _cut(image, likelihood)
    coarse = saliency > 0.5
    union = (masks | coarse).sum(axis=(1, 2))
    agreement: NDArray[np.float64] = (masks & coarse).sum(axis=(1, 2)) / np.maximum(union, 1)
    return masks, agreement


def refined(
    pixels: Pixels, saliency: NDArray[np.uint8], prior: NDArray[np.float32]
) -> tuple[Masks, NDArray[np.float64]]:
    """Masks refined from what is likely: `refine` of `likely`, with their arguments.

    Args:
        pixels: `[batch, height, width, channels]`, uint8.
        saliency: `[batch, height, width]`, uint8.
        prior: `[height, width]`, float32.

    Returns:
        As `refine`.
    """
    return refine(pixels, likely(saliency, prior))


def _cut(image: Pixels, likelihood: NDArray[np.float32]) -> Masks:
    labels = np.where(likelihood > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[likelihood < 1 - _SURE] = cv2.GC_BGD
    labels[likelihood > _SURE] = cv2.GC_FGD
    coarse: Masks = likelihood > 0.5
    if coarse.all() or not coarse.any():
        # No colours to tell apart.
        return coarse
    colours = np.ascontiguousarray(image if image.shape[-1] == 3 else image.repeat(3, axis=-1))
    # It draws where its clusters begin, from a generator of the thread: each picture starts that anew.
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(colours, labels, (0, 0, 1, 1), *models, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    found: Masks = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found
