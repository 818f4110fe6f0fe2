"""Files of `torch.save`, read with `weights_only=True`: a file that wants to run code is refused."""

import pickle
import re
import struct
import warnings
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
_PREFERRED = (
    "G_ema",
    "g_ema",
    "generator_smooth",
    "netG_state_dict",
    "netG",
    "generator",
    "state_dict",
    "model",
)

# What torch's readers raise on bytes that are cut off or scrambled.
_BROKEN = (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError,
           AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile)  # fmt: skip


def _recognises(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05")


def state_dicts(path: Path) -> dict[str, dict[str, Tensor]]:
    """Every dictionary of tensors inside a file, by the dotted path that leads to it.

    Returns:
        Tensors by name, any shape `[...]`, for each dictionary; at least one.

    Raises:
        CheckpointError: Truncated, no torch file, or refused because it would run code.
    """
    try:
        with warnings.catch_warnings():
            # torch warns of pickles and archives that it was not made for, then reads or refuses them anyway.
            warnings.simplefilter("ignore", UserWarning)
            # An open file: given a path, torch chooses another reader by its suffix.
            with path.open("rb") as file:
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_refusal(str(error))}") from error
    except _BROKEN as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript program, which cannot be read without running it, so it was "
                "refused; nothing was run. Ask its author for a plain state dict or safetensors."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = re.split(r"(?<=\w)\. ", reason)[0]
        raise CheckpointError(
            f"{path} is truncated or no torch file ({reason}). Download it again."
        ) from error
    found = dict(_dictionaries(loaded, "", set()))
    if not found:
        kind = type(loaded).__name__
        raise CheckpointError(
            f"{path} holds no tensors (it is a {kind}), so it is not a generator's state dict."
        )
    return found


def _dictionaries(value: object, key: str, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    # A pickle can hold a dictionary that contains itself, so each is looked at once.
    if isinstance(value, Mapping) and id(value) not in seen:
        seen.add(id(value))
        tensors = {str(k): v for k, v in value.items() if isinstance(v, Tensor)}
        if tensors:
            yield key, tensors
        for name, inner in value.items():
            yield from _dictionaries(inner, f"{key}.{name}" if key else str(name), seen)


def _refusal(reason: str) -> str:
    """Why torch's safe reader refused a file, without its advice to switch the safety off."""
    named = re.search(r"GLOBAL ([\w.]+)", reason)
    if named:
        return (
            f"asks to import and run {named[1]} when it is read, so it was refused; nothing was run. "
            "Ask its author for a plain state dict or safetensors."
        )
    if "Unsupported operand" in reason:
        return (
            "is a Python pickle that cannot be read without running code from it, as the network pickles of "
            "the StyleGAN repositories are, so it was refused; nothing was run. "
            "Ask its author for a plain state dict or safetensors."
        )
    return "is not a readable torch file: its pickle is broken. Download it again."


def _read(path: Path, key: str | None) -> tuple[Mapping[str, Tensor], Json]:
    found = state_dicts(path)
    if key is not None:
        if key not in found:
            raise unknown_name(f"state dict in {path.name}", key, found)
        return found[key], {}
    if len(found) > 1:
        for name in _PREFERRED:
            if name in found:
                return found[name], {}
        raise CheckpointError(
            f"{path} holds several state dicts: {', '.join(repr(k) for k in found)}. "
            "Name the generator's with key=NAME."
        )
    return next(iter(found.values())), {}


FORMAT = Format(summary="torch.save file", recognises=_recognises, read=_read)
