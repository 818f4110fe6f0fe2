"""Strips as pictures: one row for each seed and direction."""

from fastdirs.images import Pixels, encode, strip
from fastdirs.writers import StripWriter


def _encode(images: Pixels, image_format: str) -> bytes:
    return encode(strip(images), image_format)


WRITER = StripWriter(
    summary="one picture per seed and direction",
    folder="strips",
    suffix=lambda image_format: image_format,
    encode=_encode,
)
