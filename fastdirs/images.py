"""The only place that converts range, dtype and layout of images; strips, grids and encoders."""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from fastdirs.errors import DatasetError, SelectionError, ShapeError, check_shape
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
        image: `[height, width, channels]`, uint8, one channel (grey), three (RGB), or four (RGB and opacity,
            255 = opaque) in formats that have it.
        image_format: "jpg", "png" or "webp".

    Raises:
        UnknownNameError: Another format.
        SelectionError: Opacity in a format that holds none.
        ShapeError: Another number of channels.
    """
    if image_format not in ENCODERS:
        raise unknown_name("image format", image_format, ENCODERS)
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        check_shape(image, "height width channels", "image")
        raise ShapeError(f"image has {image.shape[-1]} channels. Expected 1 (grey), 3 (RGB) or 4 (RGBA).")
    if image.shape[-1] == 4 and image_format == "jpg":
        raise SelectionError("jpg holds no opacity. Use png or webp for pictures of four channels.")
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


def resize(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """A picture at another size: bilinear, averaged over all that a pixel covers where it becomes smaller.

    Args:
        image: Pixels `[height, width, channels]`, uint8, 1 or 3 channels; or numbers `[height, width]`,
            float32.
        height: Of the result, in pixels.
        width: Of the result, in pixels.

    Returns:
        `[height, width, channels]`, uint8, or `[height, width]`, float32, within the range of the values
        given.
    """
    if image.shape[:2] == (height, width):
        return image
    flat = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    # Pillow's bilinear filter grows with the reduction, and it works beside other threads.
    resized = np.array(Image.fromarray(flat).resize((width, height), Image.Resampling.BILINEAR))
    return resized[..., None] if resized.ndim < image.ndim else resized


# Luma of ITU-R BT.601, as Pillow makes grey pictures.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def to_grey(image: NDArray[Any]) -> NDArray[np.float32]:
    """The luma of a picture.

    Args:
        image: `[height, width, 3]`, uint8 or float.

    Returns:
        `[height, width, 1]`, float32, not rounded, in the range of the values given.
    """
    grey: NDArray[np.float32] = (image.astype(np.float32) @ _LUMA)[..., None]
    return grey


Levels = NDArray[np.uint8] | NDArray[np.uint16]
"""Values of a picture as its file holds them: of 255, or of 65,535."""
# What Pillow raises for files that are torn, or no pictures at all.
_UNREADABLE = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, MemoryError,
    struct.error, zlib.error,
)  # fmt: skip
_QUIET = Lock()
# Tags of EXIF and TIFF, and the orientations that swap height and width.
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112
_TURNED = (5, 6, 7, 8)
_WITH_ORIENTATION = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}


def read_levels(path: Path) -> Levels:
    """Whatever picture a person has, as it is meant to be looked at: turned as its EXIF data says.

    Args:
        path: Grey, 1-bit, palette, RGB, CMYK or YCbCr, with or without transparency; grey with 16 bits, or as
            float with values in [0, 1]. Of an animation, the first picture. RGB with 16 bits comes as 8 bits.

    Returns:
        `[height, width, channels]`, uint8 or uint16, full range. Two channels are grey and alpha, four are
        RGB and alpha; alpha is at its maximum where nothing is transparent.

    Raises:
        DatasetError: The file cannot be read as a picture, or has too many pixels.
    """
    try:
        with _opened(path) as opened:
            # Mode 1 lies packed, which is neither turned nor converted to every other mode.
            plain = opened.convert("L") if opened.mode == "1" else opened
            image = ImageOps.exif_transpose(plain)
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                grey = _deep_levels(np.asarray(image))
                return np.stack([grey, np.full_like(grey, 65_535)], axis=-1)
            is_grey = image.mode in ("L", "LA", "La")
            if not image.has_transparency_data:
                image = image.convert("L" if is_grey else "RGB")
            return np.asarray(image.convert("LA" if is_grey else "RGBA"))
    except _UNREADABLE as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise DatasetError(
            f"{path} cannot be read as a picture{reason}. Remove it, or save it again as PNG or JPEG."
        ) from error


def _opened(path: Path) -> Image.Image:
    """A picture, not decoded yet; Pillow's warning of large ones is not for those who use them.

    Raises:
        DatasetError: It has so many pixels that Pillow takes it for an attack.
    """
    try:
        # What warnings are shown is the same in all threads.
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except Image.DecompressionBombError as error:
        count, limit = (f"{int(number):,}" for number in re.findall(r"\d+", str(error))[:2])
        raise DatasetError(
            f"{path} has {count} pixels, more than the {limit} that are read. Scale it down."
        ) from error


def _deep_levels(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Values with more than 8 bits, as levels of 65,535."""
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("it holds floats outside 0 to 1")
        return np.rint(values * 65_535.0).astype(np.uint16)
    if values.min() < 0 or values.max() > 65_535:
        raise ValueError("it holds integers of more than 16 bits")
    return values.astype(np.uint16)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width that `read_levels` gives, from the head of the file where it suffices.

    Raises:
        DatasetError: The file cannot be read as a picture, or has too many pixels.
    """
    try:
        with _opened(path) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):
                # Some versions of Pillow turn this size, others do not.
                width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
            # Pillow decodes a whole PNG to look for EXIF data at its end, where no program writes it.
            if image.format == "PNG" and not _WITH_ORIENTATION & image.info.keys():
                return height, width
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            return (width, height) if turned else (height, width)
    except _UNREADABLE as error:
        raise DatasetError(
            f"{path} cannot be read as a picture. Remove it, or save it again as PNG or JPEG."
        ) from error


def shrink(image: Pixels, side: int) -> Pixels:
    """A picture that is no longer than `side` pixels either way, of the same proportions; small ones stay.

    Args:
        image: `[height, width, channels]`, uint8, one channel (grey) or three (RGB).
        side: Pixels.

    Returns:
        `[height, width, channels]`, uint8.
    """
    height, width, channels = image.shape
    factor = side / max(height, width)
    if factor >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    pixels: Pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    return pixels[..., None] if channels == 1 else pixels


def caption(text: str, width: int, height: int, ground: int = 255, ink: int = 0) -> Pixels:
    """A line of text, cut off where it is too long.

    Args:
        text: Characters that the font lacks become "?".
        width: Pixels.
        height: Pixels; the letters fill two thirds.
        ground: Grey level behind the text, 0 to 255.
        ink: Grey level of the text, 0 to 255.

    Returns:
        `[height, width, 3]`, uint8.
    """
    picture = Image.new("RGB", (width, height), (ground,) * 3)
    known = text.encode("latin-1", errors="replace").decode("latin-1")
    font = ImageFont.load_default(size=height * 2 / 3)
    ImageDraw.Draw(picture).text((height / 4, height / 2), known, (ink,) * 3, font, anchor="lm")
    return np.asarray(picture)
