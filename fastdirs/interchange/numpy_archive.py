"""All of a bank as plain arrays for numpy, with nothing to be unpickled; read back, it is the same bank."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from fastdirs.directions import DirectionBank
from fastdirs.errors import BankError
from fastdirs.interchange import BankFormat, Imported
from fastdirs.interchange._files import container, npz_names, numbers, read_npz, texts
from fastdirs.interchange._run_folder import check_space
from fastdirs.manifest import write_bytes
from fastdirs.shift_space import ShiftSpace

_NUMBERS = ("directions", "knots", "scores", "ranges", "layers")
_TEXTS = ("labels", "tags", "judges", "space", "method")


def _recognises(path: Path) -> bool:
    return container(path) == "npz" and {"directions", "labels", "layers"} <= npz_names(path)


def _read(path: Path, space: ShiftSpace, options: Mapping[str, str]) -> Imported:
    arrays = read_npz(path, *_NUMBERS, *_TEXTS)
    found = {name: numbers(arrays[name], path) for name in _NUMBERS if name in arrays}
    said = {name: texts(arrays[name], path) for name in _TEXTS if name in arrays}
    if said.get("space"):
        check_space(path, "z" if said["space"][0] == "z" else "w", space.generator)
    return Imported(
        vectors=found["directions"],
        knots=found.get("knots"),
        scores=found.get("scores"),
        labels=said["labels"],
        layers=_layers(found["layers"], path),
        ranges=found.get("ranges"),
        tags=[_words(text, path) for text in said.get("tags", [])],
        judges=said.get("judges", ()),
        settings={"method": said["method"][0]} if said.get("method") else {},
    )


def _layers(array: Tensor, path: Path) -> list[int]:
    """Latent layers from an array of any shape."""
    layers: list[float] = array.flatten().tolist()
    for layer in layers:
        if not layer.is_integer():
            raise BankError(f"{path} names a layer {layer:g}. Expected whole numbers. Export it again.")
    return [int(layer) for layer in layers]


def _words(text: str, path: Path) -> tuple[str, ...]:
    """The tags of one direction from a JSON list of texts."""
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BankError(
            f"{path} has the tags {text[:40]!r}, which are no JSON list of texts. Export it again."
        )
    return tuple(words)


def _write(bank: DirectionBank, path: Path) -> None:
    """Every array is of numbers or text.

    `directions` `[K, layers, dim]`, or paths `[K, knots, layers, dim]` with `knots` `[knots]`; `scales` and
    `scores` `[K]`, `ranges` `[K, 2]`, `labels`, `judges` and `tags` (a JSON list each) `[K]`, `layers`; one
    text each of `method`, `space` and `generator` (JSON).
    """
    arrays = {
        "directions": bank.directions.numpy(),
        "scales": bank.scales.numpy(),
        "scores": bank.scores.numpy(),
        "ranges": bank.ranges.numpy(),
        "labels": np.array(bank.labels, dtype=np.str_),
        "tags": np.array([json.dumps(words) for words in bank.tags], dtype=np.str_),
        "judges": np.array(bank.judges, dtype=np.str_),
        "layers": np.array(bank.layers, dtype=np.int64),
        "method": np.array(bank.method),
        "space": np.array(str(bank.generator["space"])),
        "generator": np.array(json.dumps(bank.generator)),
    }
    if bank.knots is not None:
        arrays["knots"] = bank.knots.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


BANK_FORMAT = BankFormat(
    summary="any bank as plain arrays with names, tags and ranges (.npz)",
    suffix=".npz",
    recognises=_recognises,
    read=_read,
    write=_write,
)
