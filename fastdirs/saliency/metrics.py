"""How well saliency maps agree with masks: the measures of the field, summed up image by image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import DatasetError, MissingDependencyError, SelectionError
from fastdirs.registry import install_hint
from fastdirs.saliency.folders import Mask, Saliency

try:
    from py_sod_metrics import (
        Emeasure,
        FmeasureHandler,
        FmeasureV2,
        IOUHandler,
        OverallAccuracyHandler,
        PrecisionHandler,
        RecallHandler,
        Smeasure,
        WeightedFmeasure,
    )
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"Saliency metrics need {error.name}, which is not installed. Run: {install_hint('py_sod_metrics')}"
    ) from error

Figures = dict[str, float | None]
"""Values by key; None = not defined, as where a mask holds no salient pixel."""
_SNAP = 1e-4
"""Grey levels of 255 that rounding to float32 may have moved a value."""


@dataclass(frozen=True)
class Figure:
    """One measure.

    Attributes:
        key: Its name in JSON.
        heading: What it is called.
        meaning: What it says and over what it is averaged, in plain words.
        falls: Whether lower is better.
        of_images: Whether it is also given for each image.
    """

    key: str
    heading: str
    meaning: str
    falls: bool = False
    of_images: bool = True


FIGURES = (
    Figure(
        "iou", "IoU",
        "Overlap of predicted and true mask, as a share of both together. The prediction is saliency above "
        "the threshold, not stretched. Mean over images.",
    ),
    Figure(
        "accuracy", "Accuracy",
        "Share of pixels that are predicted rightly at the threshold, not stretched. Mean over images, those "
        "with an empty mask too.",
    ),
    Figure(
        "max_f_of_images", "Max F, of images",
        "F of each image at 256 thresholds, averaged over the images, then the best threshold; not "
        "stretched. The average that BigGAN-based work publishes.",
        of_images=False,
    ),
    Figure(
        "mae", "MAE",
        "Mean absolute difference between saliency and mask, 0 to 1. Mean over images, those with an empty "
        "mask too. Lower is better.",
        falls=True,
    ),
    Figure(
        "max_f", "Max F",
        "Precision and recall are averaged over the images at 256 thresholds, and F is taken of the averages "
        "at the best threshold. The average that saliency benchmarks publish. Of one image: its best F.",
    ),
    Figure("mean_f", "Mean F", "F of each image, averaged over 256 thresholds and over the images."),
    Figure(
        "adaptive_f", "Adaptive F",
        "F of each image at twice its mean saliency (at most 1). Mean over images.",
    ),
    Figure(
        "weighted_f", "Weighted F",
        "F without a threshold: errors count less beside the object's edge and where neighbours are right. "
        "Mean over images.",
    ),
    Figure(
        "s_measure", "S-measure",
        "Likeness of structure, of the object and of the four quarters around its centre. Mean over images.",
    ),
    Figure(
        "max_e", "Max E",
        "Alignment of prediction and mask, each against its own mean, at 256 thresholds: averaged over the "
        "images, then the best threshold. Of one image: its best.",
    ),
    Figure("mean_e", "Mean E", "Alignment as in max E, averaged over 256 thresholds and over the images."),
    Figure(
        "adaptive_e", "Adaptive E",
        "Alignment as in max E, at twice the mean saliency of each image (at most 1). Mean over images.",
    ),
)  # fmt: skip
IMAGE_FIGURES = tuple(figure for figure in FIGURES if figure.of_images)
# Those that mean something where nothing is salient.
_OF_EMPTY = ("accuracy", "mae")


@dataclass(frozen=True)
class MetricSettings:
    """How the figures are computed; the defaults are those of published tables.

    Attributes:
        stretch: Scale each saliency map to the range 0 to 1 before MAE, F, S and E, as saliency benchmarks
            do. IoU, accuracy and F "of images" are always taken of the map as it is.
        threshold: Saliency above which a pixel is predicted salient, for IoU and accuracy, 0 to 1.
        beta_squared: Weight of recall against precision in F, over 0; 0.3 favours precision.
        weighted_beta_squared: The same in weighted F, where published tables use 1.
        alpha: Share of the object in the S-measure, 0 to 1; the rest is that of the quarters.

    Raises:
        SelectionError: A number out of range.
    """

    stretch: bool = True
    threshold: float = 0.5
    beta_squared: float = 0.3
    weighted_beta_squared: float = 1.0
    alpha: float = 0.5

    def __post_init__(self) -> None:
        for name in ("threshold", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise SelectionError(f"{name} is {getattr(self, name)}, expected 0 to 1.")
        for name in ("beta_squared", "weighted_beta_squared"):
            if not 0 < getattr(self, name) < np.inf:
                raise SelectionError(f"{name} is {getattr(self, name)}, expected a number over 0.")


class Scores:
    """Figures of a set of images, added one by one; what is kept does not grow with their number.

    About 25 ms an image of 481 × 321 pixels, of which weighted F takes 15.

    Source: Achanta et al. 2009 (F), Margolin et al. 2014 (weighted F), Fan et al. 2017 (S) and 2018 (E),
    Perazzi et al. 2012 (MAE), computed by pysodmetrics; IoU, accuracy and F "of images" as in Voynov et al.
    2020, arXiv 2006.04988. Differs: images whose mask is empty are left out of all but MAE and accuracy.
    """

    def __init__(self, settings: MetricSettings | None = None) -> None:
        self.settings = settings or MetricSettings()
        self.count = 0
        """Images added."""
        self.empty = 0
        """Of these, images with an empty mask."""
        self._sums = dict.fromkeys((figure.key for figure in IMAGE_FIGURES), 0.0)
        self._curves = {name: np.zeros(256) for name in ("precision", "recall", "f", "f_as_is", "e")}
        self._structure = _s_measure(self.settings.alpha)
        self._weighted = WeightedFmeasure(self.settings.weighted_beta_squared)

    def add(self, name: str, saliency: Saliency | NDArray[np.float64], mask: Mask) -> Figures:
        """Add an image.

        Args:
            name: Of the image, for messages.
            saliency: `[height, width]`, float, 0 to 1.
            mask: `[height, width]`, bool, True = salient object.

        Returns:
            The figures of this image.

        Raises:
            DatasetError: The shapes differ, are no pictures, or saliency leaves the range or is not finite.
        """
        as_is = _checked(name, saliency, mask)
        stretched = _stretched(as_is) if self.settings.stretch else as_is
        found: Figures = dict.fromkeys(self._sums)
        found["mae"] = float(np.abs(stretched - mask).mean())
        counts = _counts(as_is > self.settings.threshold, mask)
        found["accuracy"] = float(OverallAccuracyHandler(False, False)(**counts))
        self.count += 1
        if mask.any():
            found["iou"] = float(IOUHandler(False, False)(**counts))
            found |= self._of_object(as_is, stretched, mask)
        else:
            self.empty += 1
        for key, value in found.items():
            self._sums[key] += value or 0.0
        return found

    def _of_object(self, as_is: NDArray[np.float64], stretched: NDArray[np.float64], mask: Mask) -> Figures:
        """The figures that need something salient."""
        f_handler = FmeasureHandler(False, False, beta=self.settings.beta_squared)
        counts = _counts_by_threshold(stretched, mask)
        precision = PrecisionHandler(False, False)(**counts)
        recall = RecallHandler(False, False)(**counts)
        f = f_handler(**counts)
        f_as_is = f if stretched is as_is else f_handler(**_counts_by_threshold(as_is, mask))
        alignment = Emeasure()
        alignment.step(stretched, mask, normalize=False)
        e = alignment.changeable_ems[0]
        for curve, values in zip(self._curves.values(), (precision, recall, f, f_as_is, e), strict=True):
            curve += values
        adaptive = _counts(stretched >= min(2 * stretched.mean(), 1), mask)
        return {
            "max_f": float(f.max()),
            "mean_f": float(f.mean()),
            "adaptive_f": float(f_handler(**adaptive)),
            "weighted_f": float(self._weighted.cal_wfm(stretched, mask)),
            "s_measure": float(self._structure(stretched, mask)),
            "max_e": float(e.max()),
            "mean_e": float(e.mean()),
            "adaptive_e": float(alignment.adaptive_ems[0]),
        }

    def overall(self) -> dict[str, float]:
        """The figures of all images.

        Raises:
            DatasetError: No image was added, or the masks of all are empty.
        """
        curves = self.curves()
        filled = self.count - self.empty
        found = {
            figure.key: self._sums[figure.key] / (self.count if figure.key in _OF_EMPTY else filled)
            for figure in IMAGE_FIGURES
        }
        precision, recall = curves["precision"], curves["recall"]
        weight = self.settings.beta_squared
        # Recall is 1 at the lowest threshold and falls to 0 at most where precision does.
        f = (1 + weight) * precision * recall / np.maximum(weight * precision + recall, np.finfo(float).tiny)
        found |= {
            "max_f": float(f.max()),
            "max_f_of_images": float(curves["f_as_is"].max()),
            "max_e": float(curves["e"].max()),
        }
        return {figure.key: found[figure.key] for figure in FIGURES}

    def curves(self) -> dict[str, NDArray[np.float64]]:
        """Means over the images whose mask is not empty, by threshold.

        Returns:
            "precision", "recall", "f", "f_as_is" (of saliency that is not stretched) and "e", each `[256]`:
            saliency at least 255/255, 254/255, …, 0.

        Raises:
            DatasetError: No image was added, or the masks of all are empty.
        """
        filled = self.count - self.empty
        if not filled:
            which = f"the masks of all {self.count} images are empty" if self.count else "there are no images"
            raise DatasetError(
                f"Nothing can be scored: {which}. Expected are masks in which the salient object is white."
            )
        return {name: curve / filled for name, curve in self._curves.items()}


def _checked(name: str, saliency: Saliency | NDArray[np.float64], mask: Mask) -> NDArray[np.float64]:
    """Saliency as float64, on the grey levels that it was read from."""
    if mask.ndim != 2 or mask.size < 2 or mask.dtype != bool:
        raise DatasetError(
            f"The mask of {name} has shape {list(mask.shape)} and type {mask.dtype}, "
            "expected [height, width] of bool with two pixels or more."
        )
    if saliency.shape != mask.shape:
        raise DatasetError(
            f"The saliency of {name} has shape {list(saliency.shape)}, its mask {list(mask.shape)}. "
            "Scale it to the size of the mask."
        )
    values = np.asarray(saliency, np.float64)
    low, high = values.min(), values.max()
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise DatasetError(
            f"The saliency of {name} lies between {low:g} and {high:g}, expected 0 to 1 and no NaN."
        )
    # A grey level that became float32 may lie just below itself, and would miss its threshold.
    levels = np.clip(values, 0, 1) * 255
    nearest = np.rint(levels)
    return np.where(np.abs(levels - nearest) < _SNAP, nearest, levels) / 255


def _stretched(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scaled to 0 to 1; a map of one value stays."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else values


def _counts(predicted: Mask, mask: Mask) -> dict[str, int]:
    salient = np.count_nonzero(mask)
    counts: dict[str, int] = FmeasureV2.get_statistics(predicted, mask, salient, mask.size - salient)
    return counts


def _counts_by_threshold(values: NDArray[np.float64], mask: Mask) -> dict[str, NDArray[np.int64]]:
    """As `_counts`, each `[256]`, of values at least 255/255, 254/255, …, 0."""
    salient = np.count_nonzero(mask)
    counts: dict[str, NDArray[np.int64]] = FmeasureV2().dynamically_binarizing(
        values, mask, salient, mask.size - salient
    )
    return counts


def _s_measure(alpha: float) -> Callable[[NDArray[np.float64], Mask], Any]:
    measure = Smeasure(alpha)
    likeness = measure.ssim
    # An object centred on the last row or column leaves quarters without pixels, whose weight is zero; the
    # library would make all of it NaN.
    measure.ssim = lambda values, mask: likeness(values, mask) if mask.size else 0.0
    of_image: Callable[[NDArray[np.float64], Mask], Any] = measure.cal_sm
    return of_image
