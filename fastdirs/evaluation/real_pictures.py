"""Real pictures to set beside generated ones: from an npz file or a folder, in the generator's size."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fastdirs.errors import SelectionError, ShapeError
from fastdirs.images import GREY_LEVELS, read_picture

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_KEY = "x"
_PADDED = 8
"""Pictures that lack at most an eighth of the wanted size get a border of zeros instead of being enlarged."""


def load_real(path: str | Path, count: int, channels: int, resolution: int, seed: int = 0) -> Tensor:
    """Some of the pictures, chosen at random, as a generator would have made them.

    Each is cropped to its middle square and averaged or enlarged to the resolution; one that is at most an
    eighth too small is put in the middle of zeros instead, as MNIST's 28 pixels are in 32.

    Args:
        path: An npz file with `x`, `[n, height, width]` or `[n, height, width, channels]`, uint8; or a folder
            of pictures, whose folders are looked through too.
        count: How many; where there are fewer, some come more than once.
        channels: 1 (grey) or 3 (RGB).
        resolution: Height and width, in pixels.
        seed: Of the choice.

    Returns:
        `[count, channels, resolution, resolution]`, float32 in [-1, 1].

    Raises:
        SelectionError: Nothing there, not readable, or no pictures in it.
        ShapeError: Pictures with other channels, or of another type.
    """
    path = Path(path)
    if not path.exists():
        raise SelectionError(f"{path} does not exist. Expected an npz file or a folder of pictures.")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
        chosen = _choose(len(files), count, seed, path)
        pictures = [_fitted(read_picture(files[index], channels), resolution) for index in chosen]
    else:
        array = _array(path, channels)
        pictures = [_fitted(array[index], resolution) for index in _choose(len(array), count, seed, path)]
    return torch.stack(pictures)


def _choose(there: int, count: int, seed: int, path: Path) -> NDArray[np.int64]:
    """Each picture once before any comes again."""
    if not there:
        raise SelectionError(f"{path} holds no pictures ({', '.join(_SUFFIXES)}). Name another.")
    random = np.random.Generator(np.random.Philox(key=[seed, there]))
    rounds = -(-count // there)
    return np.concatenate([random.permutation(there) for _ in range(rounds)])[:count]


def _array(path: Path, channels: int) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = archive.get(_KEY)
    except (OSError, ValueError, EOFError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise SelectionError(
            f"{path} cannot be read as an npz file of plain arrays. Save it with numpy.savez."
        ) from error
    expected = f"Expected uint8 [n, height, width{', 3' if channels == 3 else ''}]."
    if found is None:
        raise SelectionError(f"{path} holds no array {_KEY!r}. {expected}")
    pictures: NDArray[np.uint8] = found[..., None] if found.ndim == 3 else found
    if pictures.ndim != 4 or pictures.shape[3] != channels or pictures.dtype != np.uint8:
        raise ShapeError(f"{_KEY} in {path} is {found.dtype} {list(found.shape)}. {expected}")
    if 0 in pictures.shape:
        raise SelectionError(f"{path} holds no pictures: {_KEY} has shape {list(found.shape)}. {expected}")
    return pictures


def _fitted(picture: NDArray[np.uint8], resolution: int) -> Tensor:
    """`[height, width, channels]`, uint8 -> `[channels, resolution, resolution]`, float32 in [-1, 1]."""
    height, width, _ = picture.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.tensor(picture[top : top + side, left : left + side]).permute(2, 0, 1).float()
    missing = resolution - side
    if 0 <= missing <= resolution // _PADDED:
        before, after = missing // 2, missing - missing // 2
        square = F.pad(square, (before, after, before, after))
    else:
        size = (resolution, resolution)
        square = F.interpolate(square[None], size, mode="bilinear", antialias=True)[0].clamp(0, 255)
    return square / GREY_LEVELS - 1
