"""Plain pickles: network snapshots of the StyleGAN repositories, whole modules, dictionaries of arrays."""

import re
from pathlib import Path

from fastdirs.checkpoints import Contents, Format, Survey, is_safetensors
from fastdirs.checkpoints._calls import PERSISTENT
from fastdirs.checkpoints._containers import MAGIC, TENSORFLOW, opened, read_raw
from fastdirs.checkpoints._inert import Record
from fastdirs.checkpoints._names import shown
from fastdirs.checkpoints._parts import survey, take
from fastdirs.errors import CheckpointError

# Protocols 0 and 1 have no mark of their own: a dictionary, or the class of one.
_OLD = re.compile(rb"\(dp\d|\(dq|\(d\.|\}q|\}\(|\}\.|\(lp\d|\]q|c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n")
_MAX_NAMED = 20


def _recognises(path: Path, head: bytes) -> bool:
    if is_safetensors(head) or TENSORFLOW in head:
        return False
    if head[:1] == b"\x80":
        return head[1:2] in tuple(b"%c" % version for version in range(2, 6)) and MAGIC not in head[:32]
    return _OLD.match(head) is not None


def _survey(path: Path) -> Survey:
    with opened(path) as (file, reading):
        return survey(read_raw(file, reading), reading)


def _read(path: Path, key: str | None) -> Contents:
    with opened(path) as (file, reading):
        root = read_raw(file, reading)
        contents = take(root, reading, key)
    if key is None and contents.part == "G" and _is_snapshot(root):
        raise CheckpointError(
            f"{path} is a snapshot without its averaged generator G_ema: it has only "
            f"{', '.join(shown(part) for part in contents.parts[:_MAX_NAMED])}. "
            "Take a snapshot that has it, or the raw generator with key=G."
        )
    return contents


def _is_snapshot(root: object) -> bool:
    """Whether this is what the StyleGAN repositories write while training."""
    generator = root.get("G") if isinstance(root, dict) else None
    return isinstance(generator, Record) and generator.name == PERSISTENT


FORMAT = Format(summary="network pickle", recognises=_recognises, read=_read, survey=_survey)
