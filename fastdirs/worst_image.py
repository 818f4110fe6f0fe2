"""The image that an export changed most, as a picture: torch's, the graph's, and the difference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastdirs.backends import Array, Session
from fastdirs.images import GREY_LEVELS, Pixels, encode, strip, to_uint8
from fastdirs.manifest import write_bytes


def worst_image(
    session: Session, inputs: Sequence[Array], reference: Array, batch_sizes: Sequence[int]
) -> Pixels:
    """Render the reference latents in batches of several sizes, and show the image whose error is largest.

    Args:
        session: An opened synthesis.
        inputs: Latents `[images, layers, dim]`, and weights of the classes `[images, c_dim]` if it reads
            them, float32.
        reference: Torch's images of them. `[images, channels, height, width]`, float32.
        batch_sizes: Sizes to run at; rows are repeated to fill a batch.

    Returns:
        Side by side: torch's image, the graph's, and their difference, stretched so that its largest value is
        white; values that are no number are white too. `[height, 3 * width, channels]`, uint8.
    """
    found: tuple[float, int, Array] | None = None
    for size in batch_sizes:
        rows = np.arange(size) % len(reference)
        images = session.run([np.ascontiguousarray(each[rows]) for each in inputs]).astype(np.float32)
        errors = np.nan_to_num(np.abs(images - reference[rows]), nan=np.inf).mean(axis=(1, 2, 3))
        worst = int(errors.argmax())
        if found is None or errors[worst] > found[0]:
            found = (float(errors[worst]), int(rows[worst]), images[worst])
    assert found is not None
    _, row, image = found
    return side_by_side(image, reference[row])


def side_by_side(image: Array, wanted: Array) -> Pixels:
    """Torch's image, the graph's, and the difference.

    Args:
        image: The graph's. `[channels, height, width]`, float32.
        wanted: Torch's. `[channels, height, width]`, float32.

    Returns:
        `[height, 3 * width, channels]`, uint8; the largest difference is white, as is what is no number.
    """
    finite = np.isfinite(image)
    error = np.abs(np.where(finite, image, wanted) - wanted)
    difference = np.where(finite, error / max(float(error.max()), 1 / GREY_LEVELS) * 2 - 1, 1.0)
    panels = np.stack([wanted, np.where(finite, image, 1.0), difference])
    return strip(to_uint8(panels.astype(np.float32)))


def save_worst_image(picture: Pixels, path: Path) -> str:
    """Write the picture, and return the sentence that tells of it.

    Args:
        picture: `[height, 3 * width, channels]`, uint8.
        path: PNG file.

    Raises:
        OutputError: It cannot be written.
    """
    write_bytes(path, encode(picture, "png"))
    return f"{path} shows the worst image: torch, the graph, and the difference (stretched)."
