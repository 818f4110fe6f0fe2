"""Torch files and pickles of other programs, followed by fastdirs' own machine: nothing in them is run."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdirs.checkpoints._containers import opened, read_raw, read_torch
from fastdirs.checkpoints._inert import Reading
from fastdirs.checkpoints._networks import plain, tensor_of, tensors
from fastdirs.checkpoints._pickle import read_pickle
from fastdirs.checkpoints._tensors import Array
from fastdirs.checkpoints._verdict import refuse_hostile
from fastdirs.errors import CheckpointError
from fastdirs.interchange._files import after_header, container
from fastdirs.manifest import Json


@dataclass(frozen=True)
class InertFile:
    """A file while it is open.

    Attributes:
        root: Its content: text, numbers, lists, dictionaries; records of what else it would have made.
        reading: What reading may still cost.
    """

    root: Any
    reading: Reading

    @property
    def fields(self) -> dict[Any, Any]:
        """The content if it is a dictionary, else an empty one."""
        return self.root if isinstance(self.root, dict) else {}

    def tensor(self, value: object) -> Tensor | None:
        """A tensor or array of numbers, `[...]`, dtype as in the file; None if the value is neither."""
        stored = tensor_of(value)
        return None if stored is None else stored.read(self.reading)

    def state(self, value: object) -> dict[str, Tensor]:
        """The tensors by name in a dictionary; empty for anything else."""
        if not isinstance(value, dict):
            return {}
        return {name: stored.read(self.reading) for name, stored in tensors(value, self.reading).items()}

    def settings(self, *names: str) -> Json:
        """Entries of the content that can be written as JSON."""
        return plain({name: self.fields[name] for name in names if name in self.fields})


@contextmanager
def inert_file(path: Path) -> Iterator[InertFile]:
    """A torch file, a pickle, or an .npy file that is one, for the time of the block.

    Raises:
        CheckpointError: Truncated or broken, or it would run code if it were unpickled.
    """
    packed = container(path)
    if packed not in ("npy", "pickle", "torch"):
        raise CheckpointError(f"{path} is empty, or neither a torch file nor a pickle. Get it again.")
    with opened(path) as (file, reading):
        if packed == "npy":
            root = _only_object(read_pickle(reading, io.BytesIO(after_header(path))))
        else:
            root = read_raw(file, reading) if packed == "pickle" else read_torch(file, reading)
        refuse_hostile(root, reading)
        yield InertFile(root, reading)


def _only_object(value: object) -> object:
    """What an array of one object holds."""
    held = value.state[-1] if isinstance(value, Array) and isinstance(value.state, tuple) else None
    return held[0] if isinstance(held, list) and len(held) == 1 else value
