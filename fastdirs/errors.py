"""Every exception that fastdirs raises on purpose, and the one shape check used at its boundaries."""

import errno
from pathlib import Path
from typing import Protocol


class FastdirsError(Exception):
    """Base of all errors below: what is wrong with the value, what was expected, what to do."""


class UnknownNameError(FastdirsError):
    """A name that no registry, zoo or option list holds."""


class MissingDependencyError(FastdirsError):
    """An optional package is not installed; the message holds the pip command."""


class ContractError(FastdirsError):
    """A plug-in file or a user's own generator lacks what its contract asks for."""


class ShapeError(FastdirsError):
    """An array whose axes are not what the function documents."""


class SelectionError(FastdirsError):
    """A seed, direction, layer, epsilon or batch size that does not exist or is out of range."""


class CheckpointError(FastdirsError):
    """A file that holds no generator that can be read safely."""


class BankError(FastdirsError):
    """A direction bank that is broken, or that belongs to another generator."""


class RecipeError(FastdirsError):
    """A recipe with an unknown key, a missing value or a value of the wrong type."""


class ArtifactError(FastdirsError):
    """An exported folder that is incomplete, or changed since its manifest was written."""


class ParityError(FastdirsError):
    """A compiled graph whose images differ from torch by more than the recipe accepts."""


class TrainingError(FastdirsError):
    """A training that went wrong; the last good checkpoint is kept."""


class BackendError(FastdirsError):
    """A runtime that cannot do what was asked of it on this machine."""


class PrecisionError(BackendError):
    """A graph of which a runtime would compute nothing in the precision that was asked for."""


class MaskError(FastdirsError):
    """A direction that removes no background, so that no pair of image and mask comes of it.

    Attributes:
        first_seed: The first of the candidates that were tried; None if none is known.
    """

    first_seed: int | None = None


class DatasetError(FastdirsError):
    """A dataset of images and masks that is incomplete, changed, or does not pair."""


class DownloadError(FastdirsError):
    """A zoo entry that could not be fetched, or whose content is not what the zoo says."""


class OutputError(FastdirsError):
    """A file or folder that cannot be written, or that must not be overwritten."""

    @classmethod
    def from_os(cls, path: Path, error: OSError) -> "OutputError":
        """The clear form of an operating-system error met while writing `path`."""
        if error.errno == errno.ENOSPC:
            return cls(
                f"The disk is full: {path} could not be written. Free some space or choose another --out."
            )
        reason = error.strerror or str(error)
        return cls(f"{path} could not be written: {reason}. Choose another --out or mend its permissions.")


class HasShape(Protocol):
    """Anything with a shape: a torch tensor or a numpy array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        ...


def check_shape(array: HasShape, axes: str, name: str, **sizes: int) -> None:
    """Compare an array's axes with the documented ones.

    Args:
        array: The tensor or array to check, any dtype, `[...]`.
        axes: Axis names separated by spaces, such as `"batch layers dim"`; a number stands for itself.
        name: The argument's name, for the message.
        sizes: Expected sizes of named axes; axes without one may have any size.

    Raises:
        ShapeError: The number of axes or one of their sizes differs.
    """
    names = axes.split()
    expected = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in names]
    fits = len(array.shape) == len(names) and all(
        want is None or want == got for want, got in zip(expected, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(
            n if e is None or n.isdigit() else f"{n}={e}" for n, e in zip(names, expected, strict=True)
        )
        raise ShapeError(f"{name} has shape {list(array.shape)}, expected [{wanted}].")
