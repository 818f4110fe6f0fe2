"""What a foreign file is packed in, and numpy's files, without its loader: no pickles, no bombs."""

import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdirs.checkpoints import FORMATS, HEAD_BYTES
from fastdirs.errors import CheckpointError

_NPY = b"\x93NUMPY"
_ZIP = b"PK\x03\x04"
# Name and length of the first file in a zip.
_NAME_LENGTH, _NAME = slice(26, 28), 30
_MAX_ARRAY_BYTES = 2**30
_BAD_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
_BAD_ZIP = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip


def container(path: Path) -> str:
    """What a file is packed in: "npy", "npz", "torch" or "pickle"; "" for folders and everything else.

    Raises:
        CheckpointError: The file cannot be read.
    """
    if path.is_dir():
        return ""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    if head.startswith(_NPY):
        return "npy"
    if head.startswith(_ZIP):
        length = int.from_bytes(head[_NAME_LENGTH], "little")
        return "npz" if head[_NAME : _NAME + length].endswith(b".npy") else "torch"
    for name, packed in (("torch_file", "torch"), ("pickle_file", "pickle")):
        if FORMATS.load(name).recognises(path, head):
            return packed
    return ""


def npy_dtype(path: Path) -> "np.dtype[Any]":
    """Type of the elements of an .npy file.

    Raises:
        CheckpointError: The file is broken.
    """
    with _opened(path) as (file, _):
        return _header(file, path)[2]


def read_npy(path: Path) -> Tensor:
    """The numbers in an .npy file, `[...]`, float64.

    Raises:
        CheckpointError: Broken, too large, or no real numbers.
    """
    with _opened(path) as (file, size):
        return numbers(_array(file, size, path), path)


def after_header(path: Path) -> bytes:
    """What follows the header of an .npy file.

    Raises:
        CheckpointError: Broken or too large.
    """
    with _opened(path) as (file, size):
        _header(file, path)
        if size > _MAX_ARRAY_BYTES:
            raise _too_large(path)
        return file.read()


def npz_names(path: Path) -> frozenset[str]:
    """Names of the arrays in an .npz file.

    Raises:
        CheckpointError: The file is broken.
    """
    with _archive(path) as archive:
        return frozenset(name.removesuffix(".npy") for name in archive.namelist())


def read_npz(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    """Some arrays of an .npz file, those that it has, of numbers or text.

    Raises:
        CheckpointError: Broken, too large, or no plain arrays.
    """
    arrays = {}
    with _archive(path) as archive:
        for name in names:
            if f"{name}.npy" in archive.namelist():
                info = archive.getinfo(f"{name}.npy")
                with archive.open(info) as file:
                    arrays[name] = _array(file, info.file_size, path)
    return arrays


def numbers(array: NDArray[Any], path: Path) -> Tensor:
    """An array of real numbers as a tensor, `[...]`, float64.

    Raises:
        CheckpointError: It holds something else.
    """
    if array.dtype.kind not in "fiu":
        raise CheckpointError(
            f"{path} holds an array of {array.dtype}, not of real numbers. Save it as float32."
        )
    return torch.from_numpy(array.astype(np.float64))


def texts(array: NDArray[Any], path: Path) -> list[str]:
    """An array of texts as a list.

    Raises:
        CheckpointError: It holds something else.
    """
    if array.dtype.kind != "U":
        raise CheckpointError(f"{path} holds an array of {array.dtype} where names should be. Make it again.")
    try:
        return [str(text) for text in array.reshape(-1).tolist()]
    except ValueError as error:
        raise _broken(path, str(error)) from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    try:
        with path.open("rb") as file:
            yield file, path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check the path.") from error


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _BAD_ZIP as error:
        raise _broken(path, str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check the path.") from error


def _header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Shape, whether in Fortran order, and dtype."""
    try:
        with warnings.catch_warnings():
            # numpy warns of headers that Python 2 wrote.
            warnings.simplefilter("ignore")
            version = np.lib.format.read_magic(file)
            header: tuple[tuple[int, ...], bool, np.dtype[Any]]
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(file)
            else:
                header = np.lib.format.read_array_header_2_0(file)
            return header
    except _BAD_HEADER as error:
        raise _broken(path, str(error)) from error


def _array(file: IO[bytes], size: int, path: Path) -> NDArray[Any]:
    """An array, as long as the file has the bytes that its header promises."""
    shape, fortran, dtype = _header(file, path)
    if dtype.hasobject:
        raise CheckpointError(f"{path} holds a pickle, which is not run. Save the array alone, as float32.")
    count = math.prod(shape) * dtype.itemsize
    if count > _MAX_ARRAY_BYTES:
        raise _too_large(path)
    if count > size or min(shape, default=0) < 0:
        raise _broken(path, f"{count} bytes are promised in a file of {size}")
    data = file.read(count)
    if len(data) != count:
        raise _broken(path, "its data ends early")
    if not count:
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _broken(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or broken ({reason[:100]}). Get it again.")


def _too_large(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} holds an array of more than 1 GiB, which no directions need. Cut it down."
    )
