"""Saliency of one runtime against torch's: errors, and whether the masks are the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdirs.backends import Array, Session

THRESHOLD = 0.5
"""Saliency from which a pixel belongs to the mask."""
_TIE = 1e-5
"""Error that is rounding alone: it may carry a pixel over the threshold, which makes no other mask of it."""


@dataclass(frozen=True, kw_only=True)
class SaliencyTolerance:
    """The error against torch fp32 that is accepted.

    Attributes:
        largest: Of the saliency of any pixel.
        mean: Of the saliency over all pixels.
        iou: Smallest mean IoU of the masks with torch's.
    """

    largest: float
    mean: float
    iou: float


# fp32 runtimes differ by rounding alone. bf16 keeps 8 bits: along the edge of an object, where saliency falls
# from 1 to 0 within a pixel or two, single values move far, and the mask by a few pixels.
ACCEPT = {
    "f32": SaliencyTolerance(largest=1e-3, mean=1e-4, iou=0.999),
    "bf16": SaliencyTolerance(largest=1.0, mean=0.01, iou=0.98),
}


@dataclass(frozen=True, kw_only=True)
class SaliencyParity:
    """Difference of saliency from torch's.

    Attributes:
        largest: Largest absolute error of any pixel.
        mean: Mean absolute error.
        iou: Mean over pictures of the IoU of the masks with torch's; two empty masks agree (1).
        threshold: Saliency from which a pixel belonged to these masks.
    """

    largest: float
    mean: float
    iou: float
    threshold: float = THRESHOLD

    def __str__(self) -> str:
        where = "" if self.threshold == THRESHOLD else f" at a saliency of {self.threshold:.2g}"
        return (
            f"saliency error largest {self.largest:.2g}, mean {self.mean:.2g}; "
            f"IoU of masks {self.iou:.5f}{where}"
        )

    def within(self, tolerance: SaliencyTolerance) -> bool:
        """Whether the error is accepted. What is not finite never is."""
        return (
            self.largest <= tolerance.largest
            and self.mean <= tolerance.mean
            and self.iou >= tolerance.iou
        )  # fmt: skip


def mask_threshold(saliency: Array) -> float | None:
    """The saliency at which masks tell something: 0.5, or the middle of it where that cuts out nothing.

    A network that finds nothing in any picture, or all of each, has masks that agree with those of a graph
    that is wrong.

    Args:
        saliency: Torch's. `[pictures, size, size]`, float32 in 0..1.

    Returns:
        The threshold; None where saliency is the same everywhere but for rounding.
    """
    salient = saliency >= THRESHOLD
    if (salient.any(axis=(1, 2)) & ~salient.all(axis=(1, 2))).any():
        return THRESHOLD
    low, high = float(saliency.min()), float(saliency.max())
    # Not `high - low <= _TIE`: a NaN is no difference either.
    if not high - low > 2 * _TIE:
        return None
    median = float(np.median(saliency))
    return median if low + _TIE < median < high - _TIE else (low + high) / 2


def compare_saliency(found: Array, wanted: Array, threshold: float = THRESHOLD) -> SaliencyParity:
    """Difference of saliency from its reference.

    Args:
        found: `[pictures, size, size]`, float32 in 0..1.
        wanted: The same from torch. `[pictures, size, size]`, float32.
        threshold: Saliency from which a pixel belongs to the masks.
    """
    if found.shape != wanted.shape:
        # Of another shape it is another graph, and no difference of numbers.
        return SaliencyParity(largest=np.inf, mean=np.inf, iou=0.0, threshold=threshold)
    errors = np.abs(found.astype(np.float64) - wanted)
    mine, theirs = found >= threshold, wanted >= threshold
    mine = np.where(errors <= _TIE, theirs, mine)
    common, either = (each.sum(axis=(1, 2)) for each in (mine & theirs, mine | theirs))
    ious = np.where(either > 0, common / np.maximum(either, 1), 1.0)
    return SaliencyParity(
        largest=float(errors.max()), mean=float(errors.mean()), iou=float(ious.mean()), threshold=threshold
    )


def measure_saliency(
    session: Session, images: Array, saliency: Array, batch_sizes: Sequence[int]
) -> SaliencyParity:
    """The worst error of a session over several batch sizes, each of which sees every picture.

    Masks are compared at the threshold that `mask_threshold` finds.

    Args:
        session: An opened graph or module.
        images: `[pictures, channels, size, size]`, float32 in [-1, 1].
        saliency: Torch's. `[pictures, size, size]`, float32 in 0..1.
        batch_sizes: Sizes to run at; pictures are repeated to fill the last batch.
    """
    found, threshold = [], mask_threshold(saliency) or THRESHOLD
    for size in batch_sizes:
        for start in range(0, len(images), size):
            rows = np.arange(start, start + size) % len(images)
            answer = session.run([np.ascontiguousarray(images[rows])])
            found.append((size, compare_saliency(answer, saliency[rows], threshold)))
    means = {
        size: np.mean([(parity.mean, parity.iou) for each, parity in found if each == size], axis=0)
        for size in batch_sizes
    }
    # Unlike max(), numpy keeps a NaN.
    return SaliencyParity(
        largest=float(np.max([parity.largest for _, parity in found])),
        mean=float(np.max([mean for mean, _ in means.values()])),
        iou=float(np.min([iou for _, iou in means.values()])),
        threshold=threshold,
    )
