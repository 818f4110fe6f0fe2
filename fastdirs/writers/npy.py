"""Strips as raw arrays, `[steps, height, width, channels]`, uint8, for numpy."""

import io

import numpy as np

from fastdirs.images import Pixels
from fastdirs.writers import StripWriter


def _encode(images: Pixels, image_format: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    return buffer.getvalue()


WRITER = StripWriter(
    summary="one .npy per seed and direction, raw pixels",
    folder="npy",
    suffix=lambda image_format: "npy",
    encode=_encode,
)
