"""Scoring a stream of saliency maps against masks, with the best and worst cases kept to be looked at."""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import DatasetError, SelectionError
from fastdirs.images import Pixels, shrink
from fastdirs.manifest import Json
from fastdirs.registry import unknown_name
from fastdirs.saliency.fitting import unfit
from fastdirs.saliency.folders import (
    MASK_THRESHOLD,
    Mask,
    PairPaths,
    Saliency,
    check_partners,
    pair_folders,
    pictures_by_stem,
    read_mask,
    read_photo,
    read_saliency,
)
from fastdirs.saliency.metrics import FIGURES, IMAGE_FIGURES, Figure, Figures, MetricSettings, Scores
from fastdirs.saliency.runtime import SaliencyRuntime

TILE = 240
"""Pixels: longer side of the pictures that are kept."""
RANK_BY, SHOWN = "iou", 8
Progress = Callable[[int, int], None]


class Prediction(NamedTuple):
    """A saliency map.

    Attributes:
        name: Of the image: the name of its mask without ending.
        image: `[height, width, 3]` or `[height, width, 1]`, uint8, to be shown; None where there is none.
        saliency: `[height, width]`, float, 0 to 1.
    """

    name: str
    image: Pixels | None
    saliency: Saliency | NDArray[np.float64]


class Case(NamedTuple):
    """A saliency map and what it should be.

    Attributes:
        name: Of the image.
        image: `[height, width, 3]` or `[height, width, 1]`, uint8, to be shown; None where there is none.
        saliency: `[height, width]`, float, 0 to 1.
        mask: `[height, width]`, bool, True = salient object.
    """

    name: str
    image: Pixels | None
    saliency: Saliency | NDArray[np.float64]
    mask: Mask


@dataclass(frozen=True)
class Shown:
    """A case to be looked at, at most `TILE` pixels either way.

    Attributes:
        name: Of the image.
        figures: Of the image.
        image: `[height, width, 3]`, uint8; None where there is none.
        mask: `[height, width, 1]`, uint8, 255 = salient object.
        saliency: `[height, width, 1]`, uint8, 255 = salient.
        predicted: `[height, width, 1]`, uint8, 255 = saliency above the threshold.
    """

    name: str
    figures: Figures
    image: Pixels | None
    mask: Pixels
    saliency: Pixels
    predicted: Pixels


@dataclass(frozen=True)
class SaliencyResults:
    """What an evaluation found.

    Attributes:
        settings: How it was computed.
        overall: Figures over all images, by key.
        images: For each image, in order: name, height, width, area (share of the mask) and its figures.
        empty: Names of images whose mask is empty; only MAE and accuracy count them.
        curves: By threshold, as `Scores.curves` gives them.
        rank_by: The figure that tells best from worst.
        best: Best first; each case is here or in `worst`.
        worst: Worst first.
    """

    settings: MetricSettings
    overall: dict[str, float]
    images: list[Json]
    empty: list[str]
    curves: dict[str, NDArray[np.float64]]
    rank_by: str
    best: list[Shown]
    worst: list[Shown]


class Row(NamedTuple):
    """A line of the table: a figure's heading, its value as text, what it says."""

    name: str
    value: str
    meaning: str


def table(results: SaliencyResults) -> list[Row]:
    """The figures over all images, as a command prints them."""
    return [Row(f.heading, f"{results.overall[f.key]:.3f}", f.meaning) for f in FIGURES]


def evaluate(
    cases: Iterable[Case],
    settings: MetricSettings | None = None,
    *,
    shown: int = SHOWN,
    rank_by: str = RANK_BY,
    total: int = 0,
    progress: Progress = lambda done, total: None,
) -> SaliencyResults:
    """Score saliency maps; one case at a time is in memory, and the few that are shown.

    Args:
        cases: Of any sizes.
        settings: How the figures are computed.
        shown: How many of the best, and of the worst cases are kept to be looked at, 0 or more.
        rank_by: Key of the figure that tells best from worst, such as "iou", "mae" or "s_measure".
        total: How many cases there are, for `progress`; 0 = not known.
        progress: Called with (done, total) after each case.

    Raises:
        DatasetError: There are no cases, all masks are empty, a name comes twice, or sizes differ in a case.
        SelectionError: `shown` is below 0.
        UnknownNameError: No image has such a figure.
    """
    scores = Scores(settings)
    gallery = _Gallery(shown, _ranking_figure(rank_by), scores.settings.threshold)
    images: dict[str, Json] = {}
    empty = []
    for case in cases:
        if case.name in images:
            raise DatasetError(f"{case.name} comes twice. Give every image a name of its own.")
        _check_image(case)
        figures = scores.add(case.name, case.saliency, case.mask)
        height, width = case.mask.shape
        area = float(case.mask.mean())
        images[case.name] = {
            "name": case.name, "height": height, "width": width, "area": area, **figures,
        }  # fmt: skip
        if not area:
            empty.append(case.name)
        gallery.offer(case, figures)
        progress(len(images), total)
    best, worst = gallery.best_and_worst()
    return SaliencyResults(
        scores.settings, scores.overall(), list(images.values()), empty, scores.curves(), rank_by, best, worst
    )


def evaluate_folder(
    predictions: Iterable[Prediction],
    masks: Path,
    settings: MetricSettings | None = None,
    *,
    mask_threshold: float = MASK_THRESHOLD,
    ignore_unpaired: bool = False,
    recursive: bool = False,
    shown: int = SHOWN,
    rank_by: str = RANK_BY,
    progress: Progress = lambda done, total: None,
) -> SaliencyResults:
    """Score saliency maps, of a model or read from files, against a folder of masks of the same names.

    Args:
        predictions: As a model or `read_predictions` gives them. Whoever runs a model over a folder of images
            calls `pair_folders` first, so that what does not pair is known before it runs.
        masks: Folder of masks.
        settings: How the figures are computed.
        mask_threshold: Share of white from which a pixel of a mask is salient, over 0 to 1.
        ignore_unpaired: Leave out predictions without mask and masks without prediction.
        recursive: Look for masks in subfolders as well; they count as part of a name.
        shown: As in `evaluate`.
        rank_by: As in `evaluate`.
        progress: Called with (done, masks in all) after each case.

    Raises:
        DatasetError: As `evaluate`; or a mask cannot be read; or something has no partner and is not ignored.
        SelectionError: A number is out of range.
        UnknownNameError: No image has such a figure.
    """
    if not 0 < mask_threshold <= 1:
        raise SelectionError(f"The threshold of masks is {mask_threshold}, expected over 0 to 1.")
    paths = pictures_by_stem(masks, recursive)
    seen: set[str] = set()

    def cases() -> Iterator[Case]:
        for name, image, saliency in predictions:
            if name in paths:
                seen.add(name)
                yield Case(name, image, saliency, read_mask(paths[name], mask_threshold))
            elif not ignore_unpaired:
                raise DatasetError(
                    f"{name} has no mask of the same name in {masks}. Add it, or ignore what is unpaired."
                )
        if not ignore_unpaired:
            check_partners([name for name in paths if name not in seen], masks, "prediction", None)

    return evaluate(
        cases(), settings, shown=shown, rank_by=rank_by, total=len(paths), progress=progress
    )  # fmt: skip


def read_predictions(
    predictions: Path,
    masks: Path,
    images: Path | None = None,
    *,
    ignore_unpaired: bool = False,
    recursive: bool = False,
) -> Iterator[Prediction]:
    """Saliency maps from files, read one by one; whether they pair with the masks is checked at once.

    Args:
        predictions: Folder of saliency maps.
        masks: Folder of masks of the same names and sizes.
        images: Folder of the photographs, to be shown; those that are missing are not shown.
        ignore_unpaired: Leave out what has no partner.
        recursive: Look into subfolders as well; they count as part of a name.

    Raises:
        DatasetError: As `pair_folders`; while reading, a file cannot be read.
    """
    pairs = pair_folders(predictions, masks, ignore_unpaired=ignore_unpaired, recursive=recursive)
    photos: Mapping[str, Path] = pictures_by_stem(images, recursive) if images else {}
    return (
        Prediction(name, read_photo(photos[name]) if name in photos else None, read_saliency(path))
        for name, path, _ in pairs
    )


def predict_pairs(runtime: SaliencyRuntime, pairs: Sequence[PairPaths]) -> Iterator[Prediction]:
    """What a model says of each picture; one picture at a time is in memory, whatever their sizes.

    Args:
        runtime: An opened saliency model.
        pairs: What `pair_folders` found.

    Yields:
        A prediction for each pair, in order.

    Raises:
        DatasetError: A picture cannot be read.
        BackendError: The runtime was closed.
    """
    size = runtime.batch_size
    batches = (
        np.stack([runtime.fit(read_photo(pair.picture)) for pair in pairs[first : first + size]])
        for first in range(0, len(pairs), size)
    )
    remaining = iter(pairs)
    for squares in runtime.stream(batches):
        for square, pair in zip(squares, remaining, strict=False):
            # Read again: a batch of photographs, kept until now, could take gigabytes.
            photo = read_photo(pair.picture)
            yield Prediction(pair.stem, photo, unfit(square, *photo.shape[:2]))


@dataclass
class _Gallery:
    """The best and the worst cases so far; pictures are made only of what comes in."""

    size: int
    figure: Figure
    threshold: float
    best: list[tuple[float, str, Shown]] = field(default_factory=list)
    worst: list[tuple[float, str, Shown]] = field(default_factory=list)
    ranked: int = 0

    def __post_init__(self) -> None:
        if self.size < 0:
            raise SelectionError(f"{self.size} cases cannot be shown, expected 0 or more.")

    def offer(self, case: Case, figures: Figures) -> None:
        value = figures[self.figure.key]
        if value is None or not self.size:
            return
        self.ranked += 1
        # The lower, the better.
        rank = value if self.figure.falls else -value
        made: Shown | None = None
        for kept, place in ((self.best, rank), (self.worst, -rank)):
            if len(kept) < self.size or (place, case.name) < kept[-1][:2]:
                made = made or _shown(case, figures, self.threshold)
                insort(kept, (place, case.name, made), key=lambda entry: entry[:2])
                del kept[self.size :]

    def best_and_worst(self) -> tuple[list[Shown], list[Shown]]:
        best, worst = [shown for *_, shown in self.best], [shown for *_, shown in self.worst]
        if self.ranked >= 2 * self.size:
            return best, worst
        # So few that both lists hold some: the worse half counts as worst.
        names = {shown.name for shown in best}
        everything = best + [shown for shown in reversed(worst) if shown.name not in names]
        half = (len(everything) + 1) // 2
        return everything[:half], everything[half:][::-1]


def _shown(case: Case, figures: Figures, threshold: float) -> Shown:
    image = case.image
    if image is not None and image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    levels = np.rint(np.clip(case.saliency, 0, 1) * 255).astype(np.uint8)
    return Shown(
        case.name,
        figures,
        None if image is None else shrink(image, TILE),
        shrink(_white(case.mask), TILE),
        shrink(levels[..., None], TILE),
        shrink(_white(case.saliency > threshold), TILE),
    )


def _white(mask: Mask) -> Pixels:
    return mask[..., None].view(np.uint8) * np.uint8(255)


def _check_image(case: Case) -> None:
    image, mask = case.image, case.mask
    if image is None:
        return
    is_picture = image.ndim == 3 and image.shape[2] in (1, 3) and image.dtype == np.uint8
    if not is_picture or image.shape[:2] != mask.shape:
        raise DatasetError(
            f"The image of {case.name} has shape {list(image.shape)} and type {image.dtype}, its mask "
            f"{list(mask.shape)}: expected is [height, width, 1 or 3] of uint8, of the size of the mask."
        )


def _ranking_figure(key: str) -> Figure:
    by_key = {figure.key: figure for figure in IMAGE_FIGURES}
    if key not in by_key:
        raise unknown_name("figure of an image", key, list(by_key))
    return by_key[key]
