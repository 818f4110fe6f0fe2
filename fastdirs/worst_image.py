"""The image that an export changed most, as a picture: torch's, the graph's, and the difference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastdirs.backends import Array, Session
from fastdirs.images import GREY_LEVELS, Pixels, encode, strip, to_uint8
from fastdirs.manifest import write_bytes


def worst_image(session: Session, inputs: Sequence[Array], reference: Array, batch_size: int) -> Pixels:
    """Render the reference latents in one batch, and show the image whose error is largest.

    Args:
        session: An opened synthesis.
        inputs: Latents `[images, layers, dim]`, and weights of the classes `[images, c_dim]` if it reads
            them, float32.
        reference: Torch's images of them. `[images, channels, height, width]`, float32.
        batch_size: Images in the batch, as many as there are at most.

    Returns:
        Side by side: torch's image, the graph's, and their difference, stretched so that its largest value is
        white; values that are no number are white too. `[height, 3 * width, channels]`, uint8.
    """
    count = min(batch_size, len(reference))
    images = session.run([np.ascontiguousarray(each[:count]) for each in inputs]).astype(np.float32)
    finite = np.isfinite(images)
    error = np.where(finite, np.abs(np.where(finite, images, 0.0) - reference[:count]), np.inf)
    worst = int(error.mean(axis=(1, 2, 3)).argmax())
    largest = error[worst][finite[worst]].max(initial=0.0)
    difference = np.where(finite[worst], error[worst] / max(largest, 1 / GREY_LEVELS) * 2 - 1, 1.0)
    shown = np.where(finite[worst], images[worst], 1.0)
    return strip(to_uint8(np.stack([reference[worst], shown, difference]).astype(np.float32)))


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
