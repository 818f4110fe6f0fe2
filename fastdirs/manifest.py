"""The JSON beside every artefact, hashes, and writing that never leaves half a file."""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdirs
from fastdirs.errors import ArtifactError, OutputError

SCHEMA = 1
Json = dict[str, Any]
# Arithmetic, and what turns pixels into files.
_PACKAGES = (
    "numpy", "torch", "onnx", "onnxruntime", "openvino", "pillow", "scipy", "opencv-python-headless",
    "webdataset",
)  # fmt: skip


def cache_dir() -> Path:
    """Where generators and measurements are kept: `$XDG_CACHE_HOME/fastdirs` or `~/.cache/fastdirs`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdirs"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, renamed to `path` when the block ends well and removed when it does not.

    Raises:
        OutputError: The file cannot be written: no permission, a full disk, a folder that is a file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError.from_os(path, error) from error
    finally:
        # A folder that cannot be written or looked into holds no temporary file either.
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path, marker: str, kind: str, force: bool = False) -> Iterator[Path]:
    """A temporary folder, renamed to `path` when the block ends well and removed when it does not.

    Args:
        path: The folder to make.
        marker: Manifest that every folder of this kind holds.
        kind: Kind in that manifest: `force` replaces no other folder.
        force: Replace a folder that exists.

    Raises:
        OutputError: The folder exists and `force` is off, it holds something else, or it cannot be written.
    """
    try:
        replaces = check_replaceable(path, marker, kind, force)
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise OutputError.from_os(path, error) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if replaces:
            # The old folder is moved aside first, so that no moment shows a mixture of both.
            aside = temporary.with_suffix(".old")
            path.replace(aside)
            temporary.replace(path)
            shutil.rmtree(aside)
        else:
            # Fails if something came to lie here in the meantime: only an empty folder is replaced.
            temporary.replace(path)
    except OSError as error:
        raise OutputError.from_os(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, marker: str, kind: str, force: bool) -> bool:
    """Whether something that may be replaced lies where a folder is to be made.

    Args:
        path: The folder to make.
        marker: Manifest that every folder of this kind holds.
        kind: Kind in that manifest.
        force: Replace a folder that exists.

    Raises:
        OutputError: The folder exists and `force` is off, or it holds something else.
    """
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not force:
        raise OutputError(f"{path} exists already. Choose another --out, or pass --force to replace it.")
    path = path.resolve()
    if path == Path.cwd():
        raise OutputError(
            f"{path} is the folder that you are in, which cannot be replaced. Name another --out."
        )
    replaces = path.exists() and not empty
    if replaces and not is_manifest(path / marker, kind):
        raise OutputError(
            f"{path} was not made by this command (its {marker} is missing or another program's), "
            "so it is left alone. Choose another --out."
        )
    return replaces


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, or none.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, content: Json) -> None:
    """Write indented JSON, or nothing.

    Raises:
        OutputError: The file cannot be written.
    """
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path, kind: str) -> Json:
    """Read a manifest.

    Args:
        path: The JSON file.
        kind: Expected value of its "kind".

    Raises:
        ArtifactError: The file is missing, is no manifest, or describes something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is missing or unreadable, so what lies beside it is unfinished. Make it again."
        ) from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise ArtifactError(f"{path} is not the manifest of a fastdirs {kind}.")
    if content.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path} has schema {content.get('schema')}; this fastdirs reads {SCHEMA}. Make it again."
        )
    return content


def is_manifest(path: Path, kind: str) -> bool:
    """Whether a file is the manifest of a fastdirs `kind`, of whatever schema."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("kind") == kind and "environment" in content


def manifest(kind: str, content: Mapping[str, Any]) -> Json:
    """What was made: kind, content and the versions that made it; no time: equal work gives equal bytes."""
    return {"schema": SCHEMA, "kind": kind, **content, "environment": environment()}


def environment() -> Json:
    """Versions that a result may depend on."""
    versions = {"fastdirs": fastdirs.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """SHA-256 of a value's JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over named tensors, in hexadecimal: the identity of a generator whatever file it came from.

    Args:
        tensors: Tensors by name, any shape `[...]` and dtype. Names, shapes, dtypes and values matter, order
            does not.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
