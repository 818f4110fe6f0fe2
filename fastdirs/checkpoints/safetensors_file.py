"""Safetensors: the format in which fastdirs keeps generators; other files are read as a plain state dict."""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastdirs.checkpoints import Contents, Format, is_safetensors
from fastdirs.errors import CheckpointError
from fastdirs.manifest import Json

HEADER = "fastdirs"


def _recognises(path: Path, head: bytes) -> bool:
    return is_safetensors(head)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Json]:
    """Tensors by name, any shape `[...]`, and the JSON that fastdirs put into the header.

    The JSON is empty if another program wrote the file.

    Raises:
        CheckpointError: Truncated or broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # The format keeps no order, and families are recognised by it: layer 2 comes before layer 10.
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys(), key=_counting_order)}
        header = json.loads(metadata.get(HEADER, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is a broken safetensors file ({error}). Download or make it again."
        ) from error
    # Another program may use the same key for something else.
    return tensors, header if isinstance(header, dict) else {}


def _counting_order(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _read(path: Path, key: str | None) -> Contents:
    if key is not None:
        raise CheckpointError(f"{path} holds one state dict, so key={key!r} selects nothing. Leave it out.")
    tensors, header = read_safetensors(path)
    return Contents(tensors=tensors, config=header)


FORMAT = Format(summary="safetensors", recognises=_recognises, read=_read)
