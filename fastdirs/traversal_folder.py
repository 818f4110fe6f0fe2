"""The folder that a traversal fills: whose it is, one run at a time, what an earlier run left."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fastdirs.errors import OutputError
from fastdirs.manifest import Json, is_manifest, read_json
from fastdirs.writers import INDEX_FILE, PLAN_FILE, WRITERS

KIND = "traversal"
_LOCK = ".lock"
# What `manifest.atomic_file` names its temporary files.
_LEFTOVER = re.compile(r"\..*\.\d+\.tmp")


@contextmanager
def sole_run(out: Path) -> Iterator[None]:
    """Hold the folder: a second run would take the first one's files for its own.

    Raises:
        OutputError: Another run holds it, or it cannot be made.
    """
    lock = FileLock(out / _LOCK, timeout=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"{out} is being filled by another run. Wait for it, or choose another --out."
        ) from error
    except OSError as error:
        raise OutputError.from_os(out, error) from error
    try:
        yield
    finally:
        # Before it is released: later, it might be another run's already.
        with suppress(OSError):
            (out / _LOCK).unlink(missing_ok=True)
        lock.release()


def holds_nothing(out: Path) -> bool:
    """Whether a folder is empty, but for what a run leaves that was killed before its first file."""
    return out.is_dir() and all(
        path.name == _LOCK or (path.is_file() and _LEFTOVER.fullmatch(path.name)) for path in out.iterdir()
    )


def as_json(value: Json) -> Json:
    """A value as it comes back from a JSON file (tuples become lists)."""
    again: Json = json.loads(json.dumps(value))
    return again


def earlier_run(out: Path, asked: Json, force: bool) -> Json | None:
    """The manifest of an unfinished or finished run of the same traversal; None where to begin anew.

    Args:
        out: The folder.
        asked: What the run is asked for.
        force: Begin anew whatever an earlier run was asked for.

    Raises:
        OutputError: The folder holds something else, or a traversal with other settings.
    """
    if not out.exists() or holds_nothing(out):
        return None
    if not is_manifest(out / PLAN_FILE, KIND):
        raise OutputError(
            f"{out} exists and holds no traversal, so it is left alone (even with --force). "
            "Choose another --out."
        )
    if force:
        return None
    # Version 0.1.0 knew no classes.
    content = {"class": None, **read_json(out / PLAN_FILE, KIND)}
    for name, value in asked.items():
        if name not in content or _pixels(name, content[name]) != _pixels(name, value):
            raise other_settings(out, name)
    if not {"runtime", "batch_size"} <= set(content):
        raise OutputError(f"{out / PLAN_FILE} is damaged. Pass --force to begin again.")
    return content


def _pixels(name: str, value: Any) -> Any:
    """The part of a setting that pixels depend on: names and outputs may change."""
    if name == "bank":
        return value["sha256"]
    if name == "generator":
        return value["weights_sha256"], value["config_sha256"]
    return None if name == "writers" else value


def other_settings(out: Path, name: str) -> OutputError:
    """The error of a folder whose traversal was asked for something else."""
    return OutputError(
        f"{out} holds a traversal with other {name}. Choose another --out, or pass --force to replace it."
    )


def remove_traversal(out: Path) -> None:
    """Remove an earlier traversal, and nothing else that lies in its folder.

    Raises:
        OutputError: Something cannot be removed.
    """
    try:
        # The manifest goes last: until then the folder can still be recognised.
        for name in (*WRITERS.names(), INDEX_FILE, PLAN_FILE):
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError.from_os(out, error) from error


def remove_leftovers(out: Path) -> None:
    """Remove temporary files of a run that was killed."""
    remove_leftovers_in(out)
    for name in WRITERS.names():
        remove_leftovers_in(*(path for path in (out / name, *(out / name).rglob("*")) if path.is_dir()))


def remove_leftovers_in(*folders: Path) -> None:
    """Remove temporary files of a run that was killed, from these folders and none below them."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if _LEFTOVER.fullmatch(path.name) and path.is_file():
                path.unlink()
