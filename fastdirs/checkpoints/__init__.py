"""Safe readers: a file on disk becomes named tensors and a config. Nothing in a file is ever executed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from fastdirs.errors import CheckpointError
from fastdirs.manifest import Json, sha256_file
from fastdirs.registry import Registry

HEAD_BYTES = 512


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: The file.
        format: Name of the reader.
        tensors: Named tensors in the file's order (by name where the format keeps none), any shape `[...]`;
            empty for a format that holds a graph.
        config: Header of a file that fastdirs wrote (family, settings, licence, ...); empty for others.
        sha256: Hash of the file's bytes.
    """

    path: Path
    format: str
    tensors: Mapping[str, Tensor]
    config: Json = field(default_factory=dict)
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Format:
    """One on-disk format.

    Attributes:
        summary: One line for `fastdirs list` and error messages.
        recognises: Whether the first bytes of a file (up to 512) look like this format.
        read: (path, key) -> (tensors, config); raises CheckpointError. `key` names the part to take where a
            file holds several state dicts; None takes the generator if it is clear which one that is.
    """

    summary: str
    recognises: Callable[[bytes], bool]
    read: Callable[[Path, str | None], tuple[Mapping[str, Tensor], Json]]


FORMATS: Registry[Format] = Registry("fastdirs.checkpoints", "FORMAT", "checkpoint format")


def recognise(path: Path) -> str:
    """The format of a file, from its content.

    Raises:
        CheckpointError: Missing, empty, a web page, a Git LFS pointer, or nothing that fastdirs reads.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    if not head:
        raise CheckpointError(f"{path} is empty, as a failed download leaves it. Download it again.")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path} is a web page, not a checkpoint: the download was answered by a log-in or error page. "
            "Open the address in a browser and download the file itself."
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file. Run `git lfs pull` where it came from."
        )
    for name in FORMATS.names():
        if FORMATS.load(name).recognises(head):
            return name
    known = "; ".join(FORMATS.load(name).summary for name in FORMATS.names())
    raise CheckpointError(f"{path} is in none of the formats that fastdirs reads: {known}.")


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Read a checkpoint of any known format.

    Args:
        path: The file.
        key: Which part of the file to take, where it holds several state dicts.

    Raises:
        CheckpointError: Not readable, truncated, refused because it would run code, or ambiguous.
    """
    name = recognise(path)
    tensors, config = FORMATS.load(name).read(path, key)
    return Checkpoint(path=path, format=name, tensors=tensors, config=config, sha256=sha256_file(path))
