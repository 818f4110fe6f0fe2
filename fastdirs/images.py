"""The only place that converts range, dtype and layout of images; strips, grids and encoders."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastdirs.errors import SelectionError, ShapeError, check_shape
from fastdirs.registry import unknown_name

Pixels = NDArray[np.uint8]
GREY_LEVELS = 127.5
"""Grey levels (of 255) in one unit of the float range [-1, 1]."""

# Settings whose bytes depend on the pixels alone, so that a resumed run ends with the same files.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": ("JPEG", {"quality": 92, "subsampling": 0}),
    "png": ("PNG", {"compress_level": 4}),
    "webp": ("WEBP", {"quality": 90, "method": 2}),
}
# Pixels; beyond it the format, or Pillow's encoder for it, holds no picture.
MAX_SIDE = {"jpg": 65_500, "png": 1_000_000, "webp": 16_383}
MIME_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


def to_uint8(images: NDArray[np.float32] | Tensor) -> Pixels:
    """Float images to pixels.

    Args:
        images: `[batch, channels, height, width]`, float, values outside [-1, 1] are clipped.

    Returns:
        `[batch, height, width, channels]`, uint8, 0 to 255, -1 → 0, 0 → 128 (half rounds up), 1 → 255.

    Raises:
        ShapeError: Not four axes.
    """
    check_shape(images, "batch channels height width", "images")
    values = images.detach().float().cpu().numpy() if isinstance(images, Tensor) else images
    # In numpy, which takes one thread: torch would split this over the cores that the runtime keeps busy, and
    # wait for them. Adding a half more than the middle and truncating rounds to the nearest grey level.
    scaled = np.multiply(values, GREY_LEVELS, dtype=np.float32)
    scaled += GREY_LEVELS + 0.5
    np.clip(scaled, 0, 255, out=scaled)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


def strip(images: Pixels) -> Pixels:
    """One row of pictures.

    Args:
        images: `[steps, height, width, channels]`, uint8.

    Returns:
        `[height, steps * width, channels]`, uint8.
    """
    steps, height, width, channels = images.shape
    return images.transpose(1, 0, 2, 3).reshape(height, steps * width, channels)


def grid(rows: Sequence[Pixels]) -> Pixels:
    """Strips stacked, first on top.

    Args:
        rows: Each `[height, width, channels]`, uint8, all of one shape.

    Returns:
        `[len(rows) * height, width, channels]`, uint8.
    """
    return np.concatenate(rows, axis=0)


def encode(image: Pixels, image_format: str) -> bytes:
    """The bytes of an image file; equal pixels give equal bytes.

    Args:
        image: `[height, width, channels]`, uint8, one channel (grey) or three (RGB).
        image_format: "jpg", "png" or "webp".

    Raises:
        UnknownNameError: Another format.
    """
    if image_format not in ENCODERS:
        raise unknown_name("image format", image_format, ENCODERS)
    kind, options = ENCODERS[image_format]
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes) -> Pixels:
    """The pixels of an image file: `[height, width, channels]`, uint8."""
    pixels: Pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels[..., None] if pixels.ndim == 2 else pixels


# Pictures of other modes hold more than 8 bits, which nothing here would show.
_CHANNELS = {
    **dict.fromkeys(("1", "L", "LA"), 1),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"), 3),
}


def read_picture(path: Path, channels: int) -> Pixels:
    """The pixels of a picture that others made, palettes resolved, transparency dropped.

    Args:
        path: The file.
        channels: 1 for a grey picture, 3 for colour.

    Returns:
        `[height, width, channels]`, uint8.

    Raises:
        SelectionError: The file cannot be read as a picture.
        ShapeError: A picture with other channels.
    """
    try:
        with Image.open(path) as image:
            found = _CHANNELS.get(image.mode)
            if found != channels:
                raise ShapeError(
                    f"{path} is a picture of mode {image.mode}, but {'grey' if channels == 1 else 'RGB'} "
                    "pictures of 8 bits are expected. Convert it."
                )
            pixels: Pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SelectionError(f"{path} cannot be read as a picture. Remove or replace it.") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels
