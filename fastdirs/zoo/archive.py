"""One file or folder out of a .tar, .tar.gz or .zip that nobody has to trust."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from fastdirs.errors import DownloadError

_CHUNK_BYTES = 2**20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)

Opener = Callable[[], IO[bytes]]


def extract(archive: Path, member: str, folder: Path, limit_mib: int, label: str) -> Path:
    """Write a member, and nothing else, into a folder.

    Args:
        archive: The file; whether it is a tar or a zip is told from its content.
        member: Path inside it: of a file, or of a folder whose files are all taken.
        folder: Where to write; it exists and is empty.
        limit_mib: How much may come out of it.
        label: What the archive is called in messages.

    Returns:
        The file or folder, below `folder`, under its own name.

    Raises:
        DownloadError: It is no archive, damaged, holds no such member or links, names places outside itself,
            or unpacks to more than the limit.
    """
    wanted = PurePosixPath(member)
    target = folder / wanted.name
    left = limit_mib * 2**20
    found = False
    try:
        with _members(archive, label) as members:
            for path, opener in members:
                if path != wanted and wanted not in path.parents:
                    continue
                found = True
                out = target / path.relative_to(wanted)
                out.parent.mkdir(parents=True, exist_ok=True)
                with opener() as source, out.open("wb") as file:
                    while chunk := source.read(_CHUNK_BYTES):
                        left -= len(chunk)
                        if left < 0:
                            raise DownloadError(
                                f"{label} unpacks to more than {limit_mib} MiB, which no weights of its size "
                                "do. Do not trust it."
                            )
                        file.write(chunk)
    except _DAMAGED as error:
        raise DownloadError(f"{label} is damaged ({error}). Try again.") from error
    if not found:
        raise DownloadError(f"{label} holds no {member}: it is not what the zoo describes.")
    return target


@contextmanager
def _members(archive: Path, label: str) -> Iterator[Iterator[tuple[PurePosixPath, Opener]]]:
    """The files in an archive: path and what opens it."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield _zip_files(zipped, label)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tarred:
            yield _tar_files(tarred, label)
    else:
        raise DownloadError(f"{label} is neither a tar nor a zip: it is damaged or another file. Try again.")


def _zip_files(zipped: zipfile.ZipFile, label: str) -> Iterator[tuple[PurePosixPath, Opener]]:
    for info in zipped.infolist():
        path = _checked(info.filename, label)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _hostile(info.filename, label, "is a link")
        if not info.is_dir():
            yield path, partial(zipped.open, info)


def _tar_files(tarred: tarfile.TarFile, label: str) -> Iterator[tuple[PurePosixPath, Opener]]:
    for info in tarred:
        path = _checked(info.name, label)
        if not (info.isfile() or info.isdir()):
            raise _hostile(info.name, label, "is a link or a device")
        if info.isfile():
            yield path, partial(_opened, tarred, info)


def _opened(tarred: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    source = tarred.extractfile(info)
    assert source is not None, "only files are opened"
    return source


def _checked(name: str, label: str) -> PurePosixPath:
    """A member's path, which leads nowhere else."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise _hostile(name, label, "leads out of it")
    return path


def _hostile(name: str, label: str, what: str) -> DownloadError:
    return DownloadError(
        f"{label} holds {name!r}, which {what}: no honest archive of weights does that. Do not trust it."
    )
