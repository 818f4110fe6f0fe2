"""Network pickles of the TensorFlow StyleGAN repositories: variables by name, for a family to rename.

Source: the layout that NVlabs/stylegan2 writes, (G, D, Gs) of `dnnlib.tflib.network.Network`; read from its
code. No original file was at hand: `settings["unchecked"]` says so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdirs.checkpoints import Contents, Format, Survey, is_safetensors
from fastdirs.checkpoints._containers import TENSORFLOW, opened, read_raw
from fastdirs.checkpoints._inert import Reading, Record
from fastdirs.checkpoints._networks import plain, tensor_of
from fastdirs.checkpoints._source_text import acting_call
from fastdirs.checkpoints._tensors import StoredTensor
from fastdirs.checkpoints._verdict import foreign, refuse_hostile, refuse_unknown
from fastdirs.errors import CheckpointError
from fastdirs.manifest import Json
from fastdirs.registry import unknown_name

_NETWORK = "dnnlib.tflib.network.Network"
_PARTS = ("G", "D", "Gs")
_PREFIXES = {"mapping": "G_mapping/", "synthesis": "G_synthesis/"}
_MAX_COMPONENTS = 64
_UNCHECKED = "The reader of TensorFlow network pickles has not been checked against an original file."


def _recognises(path: Path, head: bytes) -> bool:
    return head[:1] in (b"\x80", b"(", b"c") and TENSORFLOW in head and not is_safetensors(head)


def _survey(path: Path) -> Survey:
    with opened(path) as (file, reading):
        found = _networks(read_raw(file, reading), reading)
        refuse_hostile(found, reading)
        return Survey(
            parts={part: dict(_variables(network, reading)) for part, network in found.items()},
            part="Gs",
            settings=_settings(found["Gs"], reading),
            foreign=_foreign(reading),
        )


def _read(path: Path, key: str | None) -> Contents:
    with opened(path) as (file, reading):
        found = _networks(read_raw(file, reading), reading)
        refuse_hostile(found, reading)
        part = "Gs" if key is None else key
        if part not in found:
            raise unknown_name(f"network in {path.name}", part, found)
        network = found[part]
        refuse_unknown(network, part, reading, known=frozenset({_NETWORK}))
        tensors = {name: tensor.read(reading) for name, tensor in _variables(network, reading)}
        return Contents(
            tensors=tensors,
            settings=_settings(network, reading),
            part=part,
            parts=tuple(found),
            foreign=_foreign(reading),
        )


def _foreign(reading: Reading) -> tuple[str, ...]:
    return tuple(name for name in foreign(reading) if name != _NETWORK)


def _networks(root: Any, reading: Reading) -> dict[str, Record]:
    """The networks in a file; a file of one network holds the averaged generator."""
    networks = list(root) if isinstance(root, tuple | list) and len(root) == len(_PARTS) else [root]
    found = dict(zip(_PARTS if len(networks) == len(_PARTS) else _PARTS[-1:], networks, strict=True))
    kept = {part: network for part, network in found.items() if _is_network(network)}
    if "Gs" not in kept:
        raise CheckpointError(
            f"{reading.path} is a pickle of the TensorFlow StyleGAN code, but not of its networks. "
            "Name a network pickle."
        )
    for network in kept.values():
        for _, component in _components(network, reading):
            source = component.fields.get("build_module_src")
            acting = acting_call(source, reading.sources) if isinstance(source, str) else ""
            if acting:
                # As if the pickle itself had named it: the original runs this text.
                module, _, name = acting.rpartition(".")
                component.add([reading.named(module, name, where="in the source text embedded in it")])
    return kept


def _is_network(value: object) -> bool:
    return isinstance(value, Record) and value.name == _NETWORK


def _components(network: Record, reading: Reading) -> list[tuple[str, Record]]:
    """A network and those inside it, with the prefix of their variables' names.

    Raises:
        CheckpointError: More of them than any network has.
    """
    found: list[tuple[str, Record]] = []
    todo = [("", network)]
    while todo:
        prefix, component = todo.pop()
        found.append((prefix, component))
        if len(found) > _MAX_COMPONENTS:
            raise CheckpointError(
                f"{reading.path} holds more networks than any. It is broken or made to do harm."
            )
        inner = component.fields.get("components")
        for name, value in inner.items() if isinstance(inner, dict) else ():
            if isinstance(name, str) and isinstance(value, Record) and _is_network(value):
                todo.append((prefix + _PREFIXES.get(name, f"{name[:100]}/"), value))
    return found


def _variables(network: Record, reading: Reading) -> Iterator[tuple[str, StoredTensor]]:
    for prefix, component in _components(network, reading):
        variables = component.fields.get("variables")
        for pair in variables if isinstance(variables, list | tuple) else ():
            reading.spend()
            tensor = tensor_of(pair[1]) if isinstance(pair, list | tuple) and len(pair) == 2 else None
            if tensor is not None and isinstance(pair[0], str):
                yield prefix + pair[0], tensor


def _settings(network: Record, reading: Reading) -> Json:
    fields = network.fields
    settings: Json = {
        **plain(fields.get("static_kwargs")),
        "class_name": fields.get("build_func_name"),
        "version": fields.get("version"),
    }
    for prefix, component in _components(network, reading):
        if prefix:
            settings[prefix.rstrip("/")] = component.fields.get("static_kwargs")
    return {**plain(settings), "unchecked": _UNCHECKED}


FORMAT = Format(summary="TensorFlow network pickle", recognises=_recognises, read=_read, survey=_survey)
