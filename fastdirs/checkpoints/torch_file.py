"""Files of `torch.save`, read with `weights_only=True`: a file that wants to run code is refused."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastdirs.checkpoints import Format
from fastdirs.errors import CheckpointError
from fastdirs.manifest import Json
from fastdirs.registry import unknown_name

# What training scripts call the generator that is meant to be used, best first.
_PREFERRED = ("G_ema", "g_ema", "generator_smooth", "netG_state_dict", "netG", "generator", "state_dict", "model")


def _recognises(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05")


def _state_dicts(value: object, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary of tensors inside a loaded file, with the dotted path that leads to it."""
    if isinstance(value, Mapping):
        tensors = {str(k): v for k, v in value.items() if isinstance(v, Tensor)}
        if tensors:
            yield key, tensors
        for name, inner in value.items():
            yield from _state_dicts(inner, f"{key}.{name}" if key else str(name))


def _read(path: Path, key: str | None) -> tuple[Mapping[str, Tensor], Json]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "WeightsUnpickler" in str(error):
            named = str(error).partition("GLOBAL ")[2].partition(" ")[0]
            raise CheckpointError(
                f"{path} asks to import and run {named or 'code'} when it is read, so it was refused; nothing was run. "
                "Ask its author for a plain state dict or safetensors."
            ) from error
        raise CheckpointError(f"{path} is not a readable torch file ({_first_line(error)}). Download it again.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError,
            AssertionError, zipfile.BadZipFile) as error:  # fmt: skip
        raise CheckpointError(f"{path} is truncated or no torch file ({_first_line(error)}). Download it again.") from error
    found = dict(_state_dicts(loaded))
    if key is not None:
        if key not in found:
            raise unknown_name(f"state dict in {path.name}", key, found)
        return found[key], {}
    if not found:
        kind = type(loaded).__name__
        raise CheckpointError(f"{path} holds no tensors (it is a {kind}), so it is not a generator's state dict.")
    if len(found) > 1:
        for name in _PREFERRED:
            if name in found:
                return found[name], {}
        raise CheckpointError(
            f"{path} holds several state dicts: {', '.join(repr(k) for k in found)}. Name the generator's with key=NAME."
        )
    return next(iter(found.values())), {}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


FORMAT = Format(summary="torch.save file", recognises=_recognises, read=_read)
