"""What a traversal leaves on disk: one file per kind of output.

Two kinds of writers. A strip writer turns each strip into one file while images stream in. A view is built
afterwards from the strip files, so that its memory does not grow with the traversal and a resumed run ends
with the same bytes.
"""

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdirs.images import Pixels, decode
from fastdirs.manifest import Json
from fastdirs.registry import Registry

PLAN_FILE = "traversal.json"
INDEX_FILE = "index.html"


@dataclass(frozen=True)
class Gallery:
    """A folder that a traversal fills, and what is known about it.

    Attributes:
        folder: The folder.
        content: Its manifest: generator, bank, seeds, directions, epsilons, image_format, runtime, ...
    """

    folder: Path
    content: Json

    @property
    def seeds(self) -> list[int]:
        """Seeds, in order."""
        return list(self.content["seeds"])

    @property
    def directions(self) -> list[int]:
        """Indices of the directions in the bank, in order."""
        return list(self.content["directions"])

    @property
    def epsilons(self) -> list[float]:
        """Epsilons, ascending."""
        return list(self.content["epsilons"])

    @property
    def image_format(self) -> str:
        """Suffix of the strip pictures: "jpg", "png" or "webp"."""
        return str(self.content["image_format"])

    def label(self, direction: int) -> str:
        """The name of a direction."""
        return str(self.content["bank"]["labels"][direction])

    def strip_path(
        self, seed: int, direction: int, folder: str = "strips", suffix: str | None = None
    ) -> Path:
        """The file of one strip."""
        return (
            self.folder
            / folder
            / f"direction-{direction:04d}"
            / f"seed-{seed:06d}.{suffix or self.image_format}"
        )

    def read_strip(self, seed: int, direction: int) -> Pixels:
        """The images of a strip that was written: `[steps, height, width, channels]`, uint8."""
        row = decode(self.strip_path(seed, direction).read_bytes())
        height, width, channels = row.shape
        steps = len(self.epsilons)
        return np.ascontiguousarray(
            row.reshape(height, steps, width // steps, channels).transpose(1, 0, 2, 3)
        )


@dataclass(frozen=True, kw_only=True)
class Writer(ABC):
    """One kind of output; its files lie in the folder of its registered name, or are the index page.

    Attributes:
        summary: One line for help and lists.
    """

    summary: str


@dataclass(frozen=True, kw_only=True)
class StripWriter(Writer):
    """One file for each strip, written while images stream in.

    Attributes:
        folder: Folder below the gallery.
        suffix: Image format of the gallery -> file suffix.
        encode: (images `[steps, height, width, channels]` uint8, image format) -> bytes; equal images give
            equal bytes.
    """

    folder: str
    suffix: Callable[[str], str]
    encode: Callable[[Pixels, str], bytes]


@dataclass(frozen=True, kw_only=True)
class View(Writer):
    """Files built from the strips once they are all there.

    Attributes:
        build: (gallery, progress) -> the files written, each atomically; `progress(done, total)` is called
            along the way.
    """

    build: Callable[[Gallery, Callable[[int, int], None]], list[Path]]


WRITERS: Registry[Any] = Registry("fastdirs.writers", "WRITER", "writer")
