import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdirs import errors
from fastdirs.errors import FastdirsError, OutputError, ShapeError, check_shape


def test_every_error_is_a_fastdirs_error() -> None:
    found = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(found) > 10
    assert all(issubclass(error, FastdirsError) for error in found)


@pytest.mark.parametrize(
    ("shape", "axes", "sizes"),
    [
        ((2, 3), "batch dim", {}),
        ((2, 3), "batch dim", {"dim": 3}),
        ((5, 3, 4, 4), "batch 3 height width", {"height": 4}),
        ((), "", {}),
    ],
)
def test_check_shape_lets_fitting_arrays_pass(
    shape: tuple[int, ...], axes: str, sizes: dict[str, int]
) -> None:
    check_shape(torch.zeros(shape), axes, "x", **sizes)
    check_shape(np.zeros(shape), axes, "x", **sizes)


@pytest.mark.parametrize(
    ("shape", "axes", "sizes"),
    [
        ((2,), "batch dim", {}),
        ((2, 3, 1), "batch dim", {}),
        ((2, 3), "batch dim", {"dim": 4}),
        ((2, 1), "batch 3", {}),
        ((2,), "", {}),
    ],
)
def test_check_shape_refuses_others(shape: tuple[int, ...], axes: str, sizes: dict[str, int]) -> None:
    with pytest.raises(ShapeError):
        check_shape(torch.zeros(shape), axes, "x", **sizes)


def test_check_shape_names_the_argument_what_it_got_and_what_it_wants() -> None:
    message = r"^latents has shape \[2, 7\], expected \[batch, layers=1, 3, dim\]\.$"
    with pytest.raises(ShapeError, match=message):
        check_shape(torch.zeros(2, 7), "batch layers 3 dim", "latents", layers=1)


def test_os_errors_say_what_to_do() -> None:
    full = OutputError.from_os(Path("a/b"), OSError(errno.ENOSPC, "No space left on device"))
    assert "disk is full" in str(full)
    assert "a/b" in str(full)
    denied = OutputError.from_os(Path("a/b"), PermissionError(errno.EACCES, "Permission denied"))
    assert "a/b could not be written: Permission denied" in str(denied)
    assert "bare" in str(OutputError.from_os(Path("a/b"), OSError("bare")))
