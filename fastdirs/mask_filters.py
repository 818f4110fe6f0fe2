"""Which masks make a pair, and what is wrong with the others."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import MissingDependencyError, SelectionError
from fastdirs.manifest import Json
from fastdirs.registry import install_hint

try:
    from scipy import ndimage
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"Masks need {error.name}, which is not installed: {install_hint('scipy')}"
    ) from error

Masks = NDArray[np.bool_]
REASONS = ("empty", "too small", "too large", "few peaks", "unsure")
"""Why a candidate is rejected; the first one that holds is what it is rejected for."""

# Pixels touch at corners, too; images of a batch do not.
_TOUCHING = np.zeros((3, 3, 3), dtype=bool)
_TOUCHING[1] = True


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a pair has to be.

    Attributes:
        min_area: The mask must cover more than this share of the image. An empty mask never makes a pair.
        max_area: The mask must cover less than this share; 1 = no limit.
        min_peaks: Peaks that the histogram of the shifted image must have; 0 = any.
        min_component: Connected parts of a mask that are not larger than this share of its largest part are
            removed, before anything else; 0 = off.
        min_agreement: A refined mask must agree with the one that it was refined from by more than this, as
            intersection over union; 0 = off.

    Raises:
        SelectionError: A value out of range.

    Source:
        Area: Voynov & Babenko 2020 (0.05 to 0.5). Peaks (2) and components (0.2): Voynov et al. 2021, whose
        area has no lower limit. Differs: a plateau of the histogram is one peak, and one of empty bins none.
    """

    min_area: float = 0.05
    max_area: float = 0.5
    min_peaks: int = 0
    min_component: float = 0.0
    min_agreement: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_area < self.max_area <= 1:
            raise SelectionError(
                f"The area range {self.min_area:g} to {self.max_area:g} is empty or out of range. "
                "Expected two ascending numbers from 0 to 1, such as 0.05:0.5."
            )
        if not 0 <= self.min_peaks <= 6:
            raise SelectionError(f"{self.min_peaks} peaks are out of range. Expected 0 (any) to 6.")
        if not 0 <= self.min_component < 1:
            raise SelectionError(
                f"A smallest component of {self.min_component:g} is out of range. Expected 0 (off) to 0.99."
            )

        if not 0 <= self.min_agreement < 1:
            raise SelectionError(
                f"An agreement of {self.min_agreement:g} is out of range. Expected 0 (off) to below 1."
            )

    def to_json(self) -> Json:
        """The values by name."""
        return asdict(self)


def apply_filters(
    masks: Masks,
    histograms: NDArray[np.int32],
    filters: Filters,
    agreement: NDArray[np.float64] | None = None,
) -> tuple[Masks, NDArray[np.float64], list[tuple[str, ...]]]:
    """Clean masks, and say which ones make a pair.

    Args:
        masks: `[batch, height, width]`, bool.
        histograms: Values of the shifted image in each bin. `[batch, bins]`, int32.
        filters: What a pair has to be.
        agreement: Of refined masks with what they were refined from, `[batch]`, 0 to 1; None if they are not.

    Returns:
        Masks without small parts, likewise; their areas `[batch]`, 0 to 1; and for each all `REASONS` why it
        is rejected, none if it makes a pair.
    """
    if filters.min_component:
        masks = _large_components(masks, filters.min_component)
    areas = masks.mean(axis=(1, 2), dtype=np.float64)
    peaks = _count_peaks(histograms) if filters.min_peaks else np.zeros(len(masks), dtype=np.int64)
    rejected = (
        areas == 0,
        areas <= filters.min_area,
        (areas >= filters.max_area) & (filters.max_area < 1),
        peaks < filters.min_peaks,
        np.zeros(len(masks), bool) if agreement is None else agreement <= filters.min_agreement,
    )
    failing = [
        tuple(reason for reason, flags in zip(REASONS, rejected, strict=True) if flags[row])
        for row in range(len(masks))
    ]
    return masks, areas, failing


def _large_components(masks: Masks, share: float) -> Masks:
    """Masks without the parts that are not larger than a share of the largest one."""
    # One call for the whole batch: labels go up over all images.
    labels, count = ndimage.label(masks, structure=_TOUCHING)
    if not count:
        return masks
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    largest = sizes[labels].max(axis=(1, 2), keepdims=True)
    kept: Masks = masks & (sizes[labels] > share * largest)
    return kept


def _count_peaks(histograms: NDArray[np.int32]) -> NDArray[np.int64]:
    """Peaks of each histogram after smoothing over three bins: `[batch, bins]` -> `[batch]`."""
    padded = np.pad(histograms.astype(np.int64), ((0, 0), (1, 1)))
    smooth = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    counts = np.empty(len(smooth), dtype=np.int64)
    for row, values in enumerate(smooth):
        # A plateau is one value; beyond both ends lies nothing.
        levels = np.concatenate([[0], values[np.insert(np.diff(values) != 0, 0, True)], [0]])
        counts[row] = ((levels[1:-1] > levels[:-2]) & (levels[1:-1] > levels[2:])).sum()
    return counts
