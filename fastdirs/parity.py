"""The error of a runtime against torch fp32 on the same latents, in grey levels."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fastdirs.backends import Array, Session
from fastdirs.errors import ParityError, check_shape
from fastdirs.images import GREY_LEVELS, to_uint8
from fastdirs.manifest import Json
from fastdirs.recipe import Tolerance


@dataclass(frozen=True)
class Parity:
    """Difference of two sets of images.

    Attributes:
        mean: Mean absolute error, in grey levels (of 255).
        max: Largest absolute error, in grey levels.
        psnr: Peak signal-to-noise ratio, in dB; 200 where the images are equal, 0 where they are not finite.
    """

    mean: float
    max: float
    psnr: float

    def __str__(self) -> str:
        return f"mean {self.mean:.2g}, max {self.max:.2g} grey levels, PSNR {self.psnr:.0f} dB"

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the error is accepted. Errors that are not finite never are."""
        return self.mean <= tolerance.mean and self.max <= tolerance.max and self.psnr >= tolerance.psnr

    def to_json(self) -> Json:
        """The figures by name."""
        return asdict(self)


def compare(images: Array, reference: Array) -> Parity:
    """Difference of images from their reference.

    Args:
        images: `[batch, channels, height, width]`, float32 in [-1, 1]; or pixels
            `[batch, height, width, channels]`, uint8, which are compared with the pixels of the reference.
        reference: The same from torch fp32. `[batch, channels, height, width]`, float32.

    Raises:
        ShapeError: The two differ in shape.
    """
    if images.dtype == np.uint8:
        images, reference = (
            pixels.transpose(0, 3, 1, 2) / np.float32(GREY_LEVELS) for pixels in (images, to_uint8(reference))
        )
    batch, channels, height, width = reference.shape
    sizes = {"batch": batch, "channels": channels, "height": height, "width": width}
    check_shape(images, "batch channels height width", "images", **sizes)
    error = np.abs(images.astype(np.float64) - reference) * GREY_LEVELS
    rmse = math.sqrt(float(np.mean(error**2)))
    psnr = min(20 * math.log10(255 / max(rmse, 1e-9)), 200.0) if math.isfinite(rmse) else 0.0
    return Parity(mean=float(error.mean()), max=float(error.max()), psnr=psnr)


def measure(
    session: Session, inputs: Sequence[Array], reference: Array, batch_sizes: Sequence[int]
) -> Parity:
    """The worst error of a session over several batch sizes.

    Args:
        session: An opened synthesis.
        inputs: Latents `[images, layers, dim]`, and weights of the classes `[images, c_dim]` if it reads
            them, float32.
        reference: Torch's images of them. `[images, channels, height, width]`, float32.
        batch_sizes: Sizes to run at; rows are repeated to fill a batch.
    """
    worst = Parity(0.0, 0.0, 200.0)
    for size in batch_sizes:
        rows = np.arange(size) % len(reference)
        found = compare(session.run([np.ascontiguousarray(each[rows]) for each in inputs]), reference[rows])
        # max() and min() pass over NaN in one order and not in the other; a NaN must stay.
        if math.isnan(found.mean):
            return found
        worst = Parity(max(worst.mean, found.mean), max(worst.max, found.max), min(worst.psnr, found.psnr))
    return worst


def require(parity: Parity, tolerance: Tolerance, what: str) -> None:
    """Raise unless an error is accepted.

    Raises:
        ParityError: Beyond the tolerance; the message holds both.
    """
    if not parity.within(tolerance):
        raise ParityError(
            f"{what} differs from torch fp32 by {parity}; accepted are mean {tolerance.mean:g}, "
            f"max {tolerance.max:g}, PSNR {tolerance.psnr:g} dB. "
            "Try another lowering or precision, or accept more in the recipe."
        )
