"""Direction files of other programs: one file per format, each read into a bank, some also written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from fastdirs.directions import DirectionBank
from fastdirs.manifest import Json
from fastdirs.registry import Registry
from fastdirs.shift_space import ShiftSpace


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a foreign file holds.

    Attributes:
        vectors: In the space `[num_directions, size]`, for each layer `[num_directions, num_layers, dim]`, or
            paths at knots `[num_directions, knots, size]`, float.
        knots: Epsilons of paths. `[knots]`, float; None if straight.
        scores: `[num_directions]`, float; None if the file has none.
        labels: Names that the file gives; None if it gives none.
        settings: What else the file says: layers, truncation, the model it was made for, ...
    """

    vectors: Tensor
    knots: Tensor | None = None
    scores: Tensor | None = None
    labels: Sequence[str] | None = None
    settings: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BankFormat:
    """One format of other programs.

    Attributes:
        summary: One line: program, file, content.
        suffix: What its files are called, such as ".npy".
        recognises: Whether a file or folder is of this format, from its content. Runs nothing in it.
        read: (path, space, options) -> Imported. Raises BankError.
        write: (bank, path) -> None; None where the format is only read. Raises BankError where the format
            cannot hold the bank.
        options: Options of `read`, with a line of help each.
    """

    summary: str
    suffix: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, ShiftSpace, Mapping[str, str]], Imported]
    write: Callable[[DirectionBank, Path], None] | None = None
    options: Mapping[str, str] = field(default_factory=dict)


BANK_FORMATS: Registry[BankFormat] = Registry("fastdirs.interchange", "BANK_FORMAT", "bank format")
