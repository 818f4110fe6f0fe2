"""Folders of photographs, masks and saliency maps: whatever files a person has, read and paired by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import DatasetError
from fastdirs.images import Levels, Pixels, picture_size, read_levels

Mask = NDArray[np.bool_]
Saliency = NDArray[np.float32]

SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
MASK_THRESHOLD = 0.1
"""Share of white from which a pixel of a mask is salient: edges that were smoothed belong to the object."""
_COLOUR_TOLERANCE = 8 / 255
_NAMED = 3


class PairPaths(NamedTuple):
    """A picture and its mask.

    Attributes:
        stem: Name of both files without its ending; below subfolders, with them.
        picture: File of the photograph or saliency map.
        mask: File of the mask.
    """

    stem: str
    picture: Path
    mask: Path


def read_photo(path: Path) -> Pixels:
    """A photograph as RGB, however its file holds it.

    Grey becomes RGB, 16 bits are scaled by their full range, EXIF orientation is applied. What is transparent
    is laid on white: the colour below it is arbitrary, most often black.

    Returns:
        `[height, width, 3]`, uint8.

    Raises:
        DatasetError: The file cannot be read as a picture.
    """
    levels = read_levels(path)
    full = _full(levels)
    colour, alpha = levels[..., :-1], levels[..., -1:]
    if alpha.min() == full:
        return _rgb(colour)
    opacity = alpha / np.float32(full)
    mixed = colour * (opacity * np.float32(255 / full)) + (1 - opacity) * np.float32(255)
    return _rgb(np.rint(mixed).astype(np.uint8))


def read_with_opacity(path: Path) -> Pixels:
    """A photograph as `read_photo` gives it, but colours that are transparent as they are, with opacity.

    Returns:
        `[height, width, 3]`, uint8, or where something is transparent `[height, width, 4]`, 255 = opaque.

    Raises:
        DatasetError: The file cannot be read as a picture.
    """
    levels = read_levels(path)
    if levels[..., -1].min() == _full(levels):
        return _rgb(levels[..., :-1])
    return np.concatenate([_rgb(levels[..., :-1]), _bytes(levels[..., -1:])], axis=-1)


def read_mask(path: Path, threshold: float = MASK_THRESHOLD) -> Mask:
    """A mask: white is the salient object, black is not; what is transparent is not.

    Args:
        path: 1 bit, grey with 8 or 16 bits, or colour of equal channels.
        threshold: Share of full white from which a pixel is salient, over 0 to 1.

    Returns:
        `[height, width]`, bool, True = salient object. May hold no salient pixel.

    Raises:
        DatasetError: The file cannot be read as a picture, is coloured, or holds for black and white 0 and 1,
            or 0 and 255 in 16 bits.
    """
    levels = read_levels(path)
    full, highest = _full(levels), levels[..., :-1].max()
    # In a picture of 16 bits, white of 8 bits is as good as black.
    if highest == 1 or (full > 255 and 0 < highest <= 255):
        raise DatasetError(
            f"{path} holds 0 and {highest} where black and white are 0 and {full}, so all of it would be "
            f"background. Multiply it by {full // int(highest)}."
        )
    mask: Mask = _grey(path, levels) >= threshold
    return mask


def read_saliency(path: Path) -> Saliency:
    """A saliency map: white is salient; what is transparent is not.

    Args:
        path: Grey with 8 or 16 bits, float from 0 to 1, or colour of equal channels.

    Returns:
        `[height, width]`, float32, 0 to 1.

    Raises:
        DatasetError: The file cannot be read as a picture, or is coloured.
    """
    return _grey(path, read_levels(path)).astype(np.float32)


def iterate_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The pictures of a folder, known by the endings of their names, sorted; hidden files are left out.

    Args:
        folder: The folder.
        recursive: Look into subfolders as well.

    Raises:
        DatasetError: The folder does not exist, cannot be listed, or holds no picture.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {what}. Name a folder of pictures.")
    try:
        found = [path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.is_file()]
    except OSError as error:
        raise DatasetError(f"{folder} cannot be listed: {error.strerror}. Mend its permissions.") from error
    hidden = [any(part.startswith(".") for part in path.relative_to(folder).parts) for path in found]
    pictures = [
        path for path, skip in zip(found, hidden, strict=True) if not skip and path.suffix.lower() in SUFFIXES
    ]
    if not pictures:
        below = " or below it" if recursive else ", subfolders left out"
        raise DatasetError(
            f"{folder} holds no picture ({len(found)} other files{below}). "
            f"Expected are files that end in {', '.join(SUFFIXES)}."
        )
    return sorted(pictures)


def pictures_by_stem(folder: Path, recursive: bool = False) -> dict[str, Path]:
    """The pictures of a folder by their names without ending, sorted.

    Raises:
        DatasetError: As `iterate_images`; or two pictures differ only in their ending.
    """
    found: dict[str, Path] = {}
    for path in iterate_images(folder, recursive):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise DatasetError(
                f"{folder} holds both {found[stem].name} and {path.name}, so {stem} could be either. "
                "Remove one."
            )
        found[stem] = path
    return dict(sorted(found.items()))


def pair_folders(
    pictures: Path,
    masks: Path,
    *,
    ignore_unpaired: bool = False,
    recursive: bool = False,
    same_size: bool = True,
) -> list[PairPaths]:
    """Pictures and masks of equal names, sorted by name; endings may differ.

    Args:
        pictures: Folder of photographs or saliency maps, of any sizes.
        masks: Folder of masks.
        ignore_unpaired: Leave out what has no partner.
        recursive: Look into subfolders as well; they count as part of a name.
        same_size: Compare the size of each picture with its mask's.

    Raises:
        DatasetError: A folder is missing or empty, or holds a name twice; nothing pairs; something has no
            partner and that is not ignored; a picture and its mask differ in size.
    """
    left, right = pictures_by_stem(pictures, recursive), pictures_by_stem(masks, recursive)
    both = [stem for stem in left if stem in right]
    if not both:
        raise DatasetError(
            f"No picture in {pictures} has the name of a mask in {masks}: {_some(list(left))} against "
            f"{_some(list(right))}. Give a picture and its mask the same name; only the endings may differ."
        )
    if not ignore_unpaired:
        check_partners([s for s in left if s not in right], pictures, "mask", masks)
        check_partners([s for s in right if s not in left], masks, "picture", pictures)
    pairs = [PairPaths(stem, left[stem], right[stem]) for stem in both]
    if same_size:
        _check_sizes(pairs)
    return pairs


def check_partners(alone: Sequence[str], folder: Path, partner: str, other: Path | None) -> None:
    """Refuse what has no partner.

    Args:
        alone: Names of the files in `folder` that have none.
        folder: Where they lie.
        partner: What they lack.
        other: Folder in which it is expected, if in one.

    Raises:
        DatasetError: There are such files.
    """
    if alone:
        lack, where = "has" if len(alone) == 1 else "have", f" in {other}" if other else ""
        raise DatasetError(
            f"{len(alone)} in {folder} {lack} no {partner} of the same name{where}: {_some(alone)}. "
            "Add what is missing, or ignore what is unpaired."
        )


def _check_sizes(pairs: Sequence[PairPaths]) -> None:
    differing = []
    for stem, picture, mask in pairs:
        (height, width), (mask_height, mask_width) = picture_size(picture), picture_size(mask)
        if (height, width) != (mask_height, mask_width):
            differing.append(f"{stem} ({width} × {height}, mask {mask_width} × {mask_height})")
    if differing:
        raise DatasetError(
            f"{len(differing)} of {len(pairs)} pictures differ in size from their masks: {_some(differing)}. "
            "Scale them to the size of the masks."
        )


def _some(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _bytes(levels: Levels) -> Pixels:
    """The same levels in 8 bits."""
    full = _full(levels)
    return np.asarray(levels if full == 255 else np.rint(levels * np.float32(255 / full)), np.uint8)


def _rgb(colour: Levels) -> Pixels:
    """`[height, width, 3]`, uint8, of grey or RGB."""
    pixels = _bytes(colour)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _full(levels: Levels) -> int:
    return int(np.iinfo(levels.dtype).max)


def _grey(path: Path, levels: Levels) -> NDArray[np.float64]:
    """`[height, width]`, 0 to 1, transparency taken for black."""
    full = _full(levels)
    colour, alpha = levels[..., :-1], levels[..., -1]
    # Where nothing shows, the colour is of no account.
    shown = colour[alpha > 0]
    if shown.size and np.ptp(shown, axis=-1).max() > _COLOUR_TOLERANCE * full:
        raise DatasetError(
            f"{path} is coloured, but a grey picture is expected, white where something is salient. "
            "If its colours stand for classes, make the salient ones white and the others black."
        )
    # The middle of three channels that differ by a rounding at most.
    grey: NDArray[np.float64] = colour[..., colour.shape[-1] // 2] / float(full)
    return grey if alpha.min() == full else grey * (alpha / float(full))
