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
    """

    largest: float
    mean: float
    iou: float

    def __str__(self) -> str:
        return f"saliency error largest {self.largest:.2g}, mean {self.mean:.2g}; IoU of masks {self.iou:.5f}"

    def within(self, tolerance: SaliencyTolerance) -> bool:
        """Whether the error is accepted. What is not finite never is."""
        return (
            self.largest <= tolerance.largest
            and self.mean <= tolerance.mean
            and self.iou >= tolerance.iou
        )  # fmt: skip


def compare_saliency(found: Array, wanted: Array) -> SaliencyParity:
    """Difference of saliency from its reference.

    Args:
        found: `[pictures, size, size]`, float32 in 0..1.
        wanted: The same from torch.
    """
    if found.shape != wanted.shape:
        # Of another shape it is another graph, and no difference of numbers.
        return SaliencyParity(largest=np.inf, mean=np.inf, iou=0.0)
    errors = np.abs(found.astype(np.float64) - wanted)
    mine, theirs = found >= THRESHOLD, wanted >= THRESHOLD
    mine = np.where(errors <= _TIE, theirs, mine)
    common, either = (each.sum(axis=(1, 2)) for each in (mine & theirs, mine | theirs))
    ious = np.where(either > 0, common / np.maximum(either, 1), 1.0)
    return SaliencyParity(largest=float(errors.max()), mean=float(errors.mean()), iou=float(ious.mean()))


def measure_saliency(
    session: Session, images: Array, saliency: Array, batch_sizes: Sequence[int]
) -> SaliencyParity:
    """The worst error of a session over several batch sizes, each of which sees every picture.

    Args:
        session: An opened graph or module.
        images: `[pictures, channels, size, size]`, float32 in [-1, 1].
        saliency: Torch's. `[pictures, size, size]`, float32 in 0..1.
        batch_sizes: Sizes to run at; pictures are repeated to fill the last batch.
    """
    found = []
    for size in batch_sizes:
        for start in range(0, len(images), size):
            rows = np.arange(start, start + size) % len(images)
            answer = session.run([np.ascontiguousarray(images[rows])])
            found.append((size, compare_saliency(answer, saliency[rows])))
    means = {
        size: np.mean([(parity.mean, parity.iou) for each, parity in found if each == size], axis=0)
        for size in batch_sizes
    }
    # Unlike max(), numpy keeps a NaN.
    return SaliencyParity(
        largest=float(np.max([parity.largest for _, parity in found])),
        mean=float(np.max([mean for mean, _ in means.values()])),
        iou=float(np.min([iou for _, iou in means.values()])),
    )
