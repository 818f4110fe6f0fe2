"""Files of `torch.save`, in the zip container and in the older one: state dicts or whole modules."""

from pathlib import Path

from fastdirs.checkpoints import Contents, Format, Survey, is_safetensors
from fastdirs.checkpoints._containers import MAGIC, opened, read_torch
from fastdirs.checkpoints._parts import survey, take

# A zip with files in it, and one without.
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# The magic number is the first object of the first pickle.
_MAGIC_WITHIN = 32


def _recognises(path: Path, head: bytes) -> bool:
    return (head.startswith(_ZIP) or MAGIC in head[:_MAGIC_WITHIN]) and not is_safetensors(head)


def _survey(path: Path) -> Survey:
    with opened(path) as (file, reading):
        return survey(read_torch(file, reading), reading)


def _read(path: Path, key: str | None) -> Contents:
    with opened(path) as (file, reading):
        return take(read_torch(file, reading), reading, key)


FORMAT = Format(summary="torch.save file", recognises=_recognises, read=_read, survey=_survey)
