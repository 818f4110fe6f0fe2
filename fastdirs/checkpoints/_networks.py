"""Networks inside an inert file: where they are, what tensors they hold, what they say of themselves."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastdirs.checkpoints._calls import PERSISTENT
from fastdirs.checkpoints._inert import Reading, Record
from fastdirs.checkpoints._names import Named
from fastdirs.checkpoints._tensors import Array, StoredTensor
from fastdirs.errors import CheckpointError
from fastdirs.manifest import Json

_MAX_DEPTH = 32
# Modules may be shared, so that a small file spells out very many names.
_STEPS_PER_MODULE = 20
_MAX_PATH = 512
_MAX_PARTS = 1000
_MAX_PLAIN = 5000

# What training keeps beside the generator; nothing in it is looked at.
_ASIDE = re.compile(
    r"(?i)(net_?)?d(iscriminator)?(_?ema|_?smooth(ed)?|_?avg|_?averaged?)?(_state(_dict)?)?|.*optim.*|.*sched.*"
)

# Attributes of every torch module, and of NVIDIA's persistent ones; the rest says how it was built.
_PARAMETERS, _BUFFERS, _MODULES = "_parameters", "_buffers", "_modules"


def is_aside(path: str) -> bool:
    """Whether a dotted path leads to a discriminator, an optimiser or their like."""
    return any(_ASIDE.fullmatch(name) for name in path.split("."))


def is_module(value: object) -> bool:
    """Whether a record is a pickled torch module."""
    return isinstance(value, Record) and isinstance(value.fields.get(_MODULES), dict)


def tensor_of(value: object) -> StoredTensor | None:
    """A tensor or array of numbers as a stored tensor; None if the value is neither."""
    if isinstance(value, StoredTensor):
        return value
    return value.tensor if isinstance(value, Array) else None


def networks(root: object, reading: Reading) -> dict[str, object]:
    """Every module and every dictionary of tensors in a file, by dotted path, the outer before the inner.

    Discriminators and optimisers are named too where they are one, but not entered. A network that is stored
    under several names is found under each.
    """
    found: dict[str, object] = {}
    holds_tensors: dict[int, bool] = {}
    entered: set[int] = set()
    todo: list[tuple[str, object]] = [("", root)]
    while todo:
        path, value = todo.pop()
        reading.spend()
        if len(found) >= _MAX_PARTS or len(path) > _MAX_PATH:
            continue
        if is_module(value):
            found[path] = value
        elif isinstance(value, dict):
            if id(value) not in holds_tensors:
                reading.spend(len(value))
                holds_tensors[id(value)] = any(tensor_of(inner) is not None for _, inner in _named(value))
            if holds_tensors[id(value)]:
                found[path] = value
            # Each dictionary is entered once, whatever it is called: it may hold itself.
            if id(value) not in entered and not is_aside(path):
                entered.add(id(value))
                inner = [(f"{path}.{key}".lstrip("."), inner) for key, inner in _named(value)]
                todo.extend(reversed([pair for pair in inner if isinstance(pair[1], dict | Record)]))
    return found


def aside(root: object, reading: Reading) -> list[object]:
    """The values that `networks` does not enter: discriminators and optimisers, at the top or one below."""
    found: list[object] = []
    tops = {id(top): top for top in (root, *(root.values() if isinstance(root, dict) else ()))}
    for top in tops.values():
        if isinstance(top, dict):
            reading.spend(len(top))
            found += [value for key, value in _named(top) if _ASIDE.fullmatch(key)]
    return found


def tensors(network: object, reading: Reading) -> dict[str, StoredTensor]:
    """The state dict of a network, in torch's order: parameters, buffers, then the modules inside.

    Raises:
        CheckpointError: Deeper or larger than any network.
    """
    if isinstance(network, dict):
        reading.spend(len(network))
        pairs = ((key, tensor_of(value)) for key, value in network.items() if isinstance(key, str))
        return {key: tensor for key, tensor in pairs if tensor is not None}
    return dict(_of_module(network, reading))


def _of_module(network: object, reading: Reading) -> Iterator[tuple[str, StoredTensor]]:
    todo: list[tuple[str, object, int]] = [("", network, 0)]
    while todo:
        prefix, module, depth = todo.pop()
        reading.spend(_STEPS_PER_MODULE)
        if depth > _MAX_DEPTH or len(prefix) > _MAX_PATH:
            raise CheckpointError(
                f"{reading.path} holds a network deeper than any. It is broken or made to do harm."
            )
        if not isinstance(module, Record):
            continue
        fields = module.fields
        hidden = _members(fields.get("_non_persistent_buffers_set"), reading)
        for group in (_PARAMETERS, _BUFFERS):
            for name, value in _named(_paid(fields.get(group), reading)):
                tensor = tensor_of(value)
                if tensor is not None and not (group == _BUFFERS and name in hidden):
                    yield prefix + name, tensor
        inner = [
            (f"{prefix}{name}.", value, depth + 1)
            for name, value in _named(_paid(fields.get(_MODULES), reading))
        ]
        todo.extend(reversed(inner))


def _paid(group: object, reading: Reading) -> dict[object, object]:
    """A dictionary that is about to be gone through; an empty one for anything else."""
    if not isinstance(group, dict):
        return {}
    reading.spend(len(group))
    return group


def _named(group: dict[object, object]) -> list[tuple[str, object]]:
    """The entries of a dictionary that have names of sensible length."""
    return [
        (name, value) for name, value in group.items() if isinstance(name, str) and len(name) <= _MAX_PATH
    ]


def _members(value: object, reading: Reading) -> set[str]:
    """The texts in a recorded set."""
    if not isinstance(value, Record) or value.name not in ("builtins.set", "builtins.frozenset"):
        return set()
    given = value.args[0] if isinstance(value.args, tuple) and value.args else ()
    listed = given if isinstance(given, list | tuple) else ()
    reading.spend(len(listed) + len(value.items))
    return {name for name in (*listed, *value.items) if isinstance(name, str)}


def settings(network: object, root: object, found: Mapping[str, object]) -> Json:
    """What a file says of a network's architecture: its constructor's arguments, or what lies beside it.

    Args:
        network: The one that was taken.
        root: All of the file.
        found: All networks in it.
    """
    if isinstance(network, Record):
        return _of_record(network)
    holding_networks = {path.partition(".")[0] for path in found}
    beside = root.items() if isinstance(root, dict) else ()
    content = {
        key: value
        for key, value in beside
        if isinstance(key, str)
        and key not in holding_networks
        and tensor_of(value) is None
        and not is_aside(key)
    }
    return plain(content)


def _of_record(network: Record) -> Json:
    if network.name != PERSISTENT:
        return {"class_name": network.maker.dotted} if isinstance(network.maker, Named) else {}
    meta = network.args[0] if isinstance(network.args, tuple) and network.args else None
    if not isinstance(meta, dict):
        # Called otherwise than NVIDIA's code does, and then given the state of a module.
        return {}
    content: dict[object, object] = {"class_name": meta.get("class_name")}
    arguments = network.fields.get("_init_kwargs")
    if isinstance(arguments, dict):
        content.update(arguments)
    given = network.fields.get("_init_args")
    if given:
        content["init_args"] = given
    # An argument that vanished would leave the family with its default, and so with another network.
    return plain(content, instead=_NOT_READABLE)


_NOTHING = object()
_NOT_READABLE = "(not readable)"


def plain(value: object, instead: object = _NOTHING) -> Json:
    """What of a dictionary can be written as JSON, as for `settings`; empty for anything else.

    Args:
        value: The dictionary.
        instead: What stands for each value that cannot be written; such values are left out by default.
    """
    made = _Plain(instead)(value)
    return made if isinstance(made, dict) else {}


class _Plain:
    """What of a value can be written as JSON; `instead` stands for the rest and for what is too much."""

    def __init__(self, instead: object) -> None:
        self.left = _MAX_PLAIN
        self.instead = instead

    def __call__(self, value: object, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0 or depth > _MAX_DEPTH:
            return self.instead
        if isinstance(value, Record) and value.name == "argparse.Namespace":
            value = value.fields
        if value is None or isinstance(value, bool) or (isinstance(value, int) and value.bit_length() < 64):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else self.instead
        if isinstance(value, str):
            return value if len(value) <= _MAX_PLAIN and _is_text(value) else self.instead
        if isinstance(value, Named):
            return value.dotted
        if isinstance(value, dict) and len(value) <= _MAX_PLAIN:
            pairs = ((key, self(inner, depth + 1)) for key, inner in value.items() if isinstance(key, str))
            return {key: inner for key, inner in pairs if inner is not _NOTHING}
        if isinstance(value, list | tuple) and len(value) <= self.left:
            inner = [self(item, depth + 1) for item in value]
            return inner if not any(item is _NOTHING for item in inner) else _NOTHING
        return self.instead


def _is_text(value: str) -> bool:
    """Whether there are no half characters in it, as JSON may spell them."""
    return not any("\ud800" <= character <= "\udfff" for character in value)
