"""Safe readers: a file or folder becomes named tensors and settings. Nothing in a file is ever executed."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fastdirs.errors import CheckpointError
from fastdirs.manifest import Json, sha256_file
from fastdirs.registry import Registry

HEAD_BYTES = 512
_SUFFIXES = (".pt", ".pth", ".pkl", ".bin", ".ckpt", ".safetensors", ".onnx", ".tar")
_MAX_LISTED = 10
# The format's own limit.
_MAX_SAFETENSORS_HEADER = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a reader takes from a file; `Checkpoint` says what each field means."""

    tensors: Mapping[str, Tensor]
    config: Json = field(default_factory=dict)
    settings: Json = field(default_factory=dict)
    part: str = ""
    parts: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    weights: Path | None = None
    """The file in a folder that holds the tensors; None if the path itself does."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file or folder holds.

    Attributes:
        path: The file or folder.
        format: Name of the reader.
        tensors: Named tensors in the file's order (by name where the format keeps none), any shape `[...]`,
            dtype and bits as in the file; empty for a format that holds a graph.
        config: Header of a file that fastdirs wrote (family, settings, licence, ...); empty for others.
        settings: What a foreign file says of its architecture, as it would be written in JSON: the arguments
            of NVIDIA's constructors beside "class_name" ("init_args" where they have no name), a folder's
            config.json or args.json, or the plain values beside a state dict.
        part: Dotted path of the state dict that was taken, such as "G_ema" or "models.generator_smooth";
            empty if that is all of the file.
        parts: Every state dict and network seen in the file, by dotted path.
        foreign: Globals that the file names and that checkpoints of generators do not need, such as
            "timm.models.layers.Conv2d", anywhere in it; sorted. None of them was imported.
        sha256: Hash of the file's bytes; of the weights file where it is a folder.
    """

    path: Path
    format: str
    tensors: Mapping[str, Tensor]
    config: Json = field(default_factory=dict)
    settings: Json = field(default_factory=dict)
    part: str = ""
    parts: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    sha256: str


class TensorFacts(Protocol):
    """What is known of a tensor without reading it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""
        ...

    def numel(self) -> int:
        """Number of elements."""
        ...

    def is_floating_point(self) -> bool:
        """Whether its elements are real numbers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a file holds, without its tensors' values.

    Attributes:
        parts: The tensors of every state dict and network, by dotted path and name.
        part: The one that is taken when none is named; None if that is not clear.
        settings: As in `Checkpoint`, for that part.
        foreign: As in `Checkpoint`.
    """

    parts: Mapping[str, Mapping[str, TensorFacts]]
    part: str | None = None
    settings: Json = field(default_factory=dict)
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Format:
    """One on-disk format.

    Attributes:
        summary: One line for `fastdirs list` and error messages.
        recognises: (path, head) -> whether this is the format; `head` holds the first bytes of a file, up to
            512, and nothing where the path is a folder.
        read: (path, key) -> contents; raises CheckpointError. `key` names the part to take where a
            file holds several state dicts; None takes the generator if it is clear which one that is.
        survey: path -> what is in the file, of all its parts; raises CheckpointError. None for formats that
            keep no state dicts beside one another.
    """

    summary: str
    recognises: Callable[[Path, bytes], bool]
    read: Callable[[Path, str | None], Contents]
    survey: Callable[[Path], Survey] | None = None


FORMATS: Registry[Format] = Registry("fastdirs.checkpoints", "FORMAT", "checkpoint format")


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors: eight bytes of header length, then a JSON object.

    Other readers ask this first. The length may happen to begin as their files do, but no pickle, zip or page
    goes on with four zero bytes and a brace.
    """
    return (
        len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _MAX_SAFETENSORS_HEADER
    )


def recognise(path: Path) -> str:
    """The format of a file or folder, from its content.

    Raises:
        CheckpointError: Missing, empty, a web page, a Git LFS pointer, or nothing that fastdirs reads.
    """
    is_folder = os.path.isdir(path)
    head = b"" if is_folder else _head(path)
    for name in FORMATS.names():
        if FORMATS.load(name).recognises(path, head):
            return name
    if is_folder:
        raise CheckpointError(_no_checkpoint_in(path))
    known = "; ".join(FORMATS.load(name).summary for name in FORMATS.names())
    raise CheckpointError(
        f"{path} is in none of the formats that fastdirs reads: {known}. Name a file in one of them."
    )


def _head(path: Path) -> bytes:
    """The first bytes of a file that may be a checkpoint."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    if not head:
        raise CheckpointError(f"{path} is empty, as a failed download leaves it. Download it again.")
    if head.lstrip()[:1] == b"<" and not is_safetensors(head):
        raise CheckpointError(
            f"{path} is a web page, not a checkpoint: the download was answered by a log-in or error page. "
            "Open the address in a browser and download the file itself."
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file. Run `git lfs pull` where it came from."
        )
    return head


def _no_checkpoint_in(path: Path) -> str:
    """Why a folder is none, and which files in it may be."""
    try:
        names = sorted(entry.name for entry in path.iterdir() if entry.suffix in _SUFFIXES)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}. Mend its permissions."
    listed = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
    holds = f"It holds {listed}" if names else "No file in it looks like one"
    return (
        f"{path} is a folder without config.json and pytorch_model.bin, args.json and generator.pt, "
        f"or G_ema.pth. {holds}. Name the checkpoint file in it."
    )


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Read a checkpoint of any known format.

    Args:
        path: The file, or a folder that is known as one checkpoint.
        key: Which part of the file to take, where it holds several state dicts.

    Raises:
        CheckpointError: Not readable, truncated, refused because it would run code, or ambiguous.
        UnknownNameError: No part is called `key`.
    """
    name = recognise(path)
    contents = FORMATS.load(name).read(path, key)
    return Checkpoint(
        path=path,
        format=name,
        tensors=contents.tensors,
        config=contents.config,
        settings=contents.settings,
        part=contents.part,
        parts=contents.parts,
        foreign=contents.foreign,
        sha256=sha256_file(contents.weights or path),
    )
