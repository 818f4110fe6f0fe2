"""Folders that are one checkpoint: weights in one file, the architecture in another beside it."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fastdirs.checkpoints import FORMATS, Contents, Format, Survey, recognise
from fastdirs.checkpoints._containers import opened, read_torch
from fastdirs.checkpoints._networks import plain
from fastdirs.checkpoints._verdict import foreign, refuse_hostile
from fastdirs.errors import CheckpointError
from fastdirs.manifest import Json

# The weights, and the JSON beside them without which the folder is none of these: Hugging Face's BigGAN-deep
# and GANLatentDiscovery's SN-GAN. BigGAN-PyTorch's folder is known by its weights alone.
_LAYOUTS = {"pytorch_model.bin": "config.json", "generator.pt": "args.json", "G_ema.pth": ""}
_BIGGAN_JSON = "generator_config.json"
_BIGGAN_STATE = "state_dict.pth"
_MAX_JSON_BYTES = 2**20


def _weights(path: Path) -> str:
    """Name of the weights file that makes a folder a checkpoint; empty if none does."""
    for weights, beside in _LAYOUTS.items():
        # Not Path.is_file: that raises where a folder may not be looked into.
        if os.path.isfile(path / weights) and (not beside or os.path.isfile(path / beside)):
            return weights
    return ""


def _recognises(path: Path, head: bytes) -> bool:
    return not head and path.is_dir() and bool(_weights(path))


def _read(path: Path, key: str | None) -> Contents:
    weights = path / _weights(path)
    name = recognise(weights)
    settings, unknown = _beside(path, _LAYOUTS[weights.name])
    contents = FORMATS.load(name).read(weights, key)
    return replace(
        contents,
        settings={**contents.settings, **settings},
        foreign=tuple(sorted({*contents.foreign, *unknown})),
        weights=weights,
    )


def _survey(path: Path) -> Survey:
    weights = path / _weights(path)
    survey = FORMATS.load(recognise(weights)).survey
    settings, unknown = _beside(path, _LAYOUTS[weights.name])
    found = Survey(parts={}) if survey is None else survey(weights)
    return replace(
        found, settings={**found.settings, **settings}, foreign=tuple(sorted({*found.foreign, *unknown}))
    )


def _beside(path: Path, name: str) -> tuple[Json, tuple[str, ...]]:
    """What the files beside the weights say, and which unknown globals they name."""
    if name:
        return _json(path / name), ()
    found: Json = {}
    unknown: tuple[str, ...] = ()
    if (path / _BIGGAN_STATE).is_file():
        found, unknown = _training_state(path / _BIGGAN_STATE)
    if (path / _BIGGAN_JSON).is_file():
        found = {**found, **_json(path / _BIGGAN_JSON)}
    return found, unknown


def _json(path: Path) -> Json:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is too long for a few settings. Download it again.")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Mend its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({str(error)[:100]}). Download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is JSON, but no settings by name. Download it again.")
    return plain(content)


def _training_state(path: Path) -> tuple[Json, tuple[str, ...]]:
    """The configuration in what BigGAN-PyTorch writes beside the weights while it trains."""
    recognise(path)
    with opened(path) as (file, reading):
        root = read_torch(file, reading)
        refuse_hostile(root, reading)
        config = root.get("config") if isinstance(root, Mapping) else None
        return plain(config), foreign(reading)


FORMAT = Format(
    summary="folder with weights and settings", recognises=_recognises, read=_read, survey=_survey
)
