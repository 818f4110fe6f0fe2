"""The few calls of genuine checkpoints that are understood: our own pure functions in their place.

Every function takes what the file gives and returns a plain value, or raises `Misfit` where that makes no
sense. Whatever is not listed here becomes a `Record`.
"""

from collections.abc import Callable
from typing import Any

import torch

from fastdirs.checkpoints._inert import Fields, Reading, Record, key_of
from fastdirs.checkpoints._names import Named, acts
from fastdirs.checkpoints._source_text import acting_call
from fastdirs.checkpoints._tensors import (
    DTYPES,
    STORAGES,
    Array,
    Misfit,
    Storage,
    StoredTensor,
    array,
    number,
)

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_NEW_ARRAY = "numpy.core.multiarray._reconstruct"
_FROM_BUFFER = "numpy.core.numeric._frombuffer"
_DILL_ARRAY = "dill._dill._create_array"
_REBUILDERS = tuple(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))

_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")

# Named without being called, or called only to be remembered, in genuine checkpoints of networks.
INERT = frozenset({
    "argparse.Namespace", "builtins.set", "builtins.frozenset", "builtins.slice", "builtins.range",
    "builtins.complex", "builtins.object", "builtins.list", "builtins.tuple", "builtins.int",
    "builtins.float", "builtins.bool", "builtins.str", "functools.partial", "numpy.dtype", "numpy.ndarray",
    "torch.device", "torch.dtype", "torch.Tensor", "torch.storage.TypedStorage",
    *(f"torch.{name}" for name in DTYPES),
    *(f"{module}.{name}" for module in _STORAGE_MODULES for name in STORAGES),
})  # fmt: skip
# Calls whose result is a tensor or an array, known here or not: one that is not understood must not be lost.
_MAKES_TENSORS = (
    "torch._utils._rebuild_", "torch._tensor._rebuild_", "torch.nn.parameter.", "torch.nn.Parameter",
    _NEW_ARRAY, _FROM_BUFFER, _DILL_ARRAY,
)  # fmt: skip


def call(reading: Reading, maker: object, args: object, kwargs: object = None) -> object:
    """What stands for `maker(*args, **kwargs)`: the value, where that call is known, else a `Record`.

    Args:
        reading: The file; its budget pays for what is made.
        maker: What is to be called.
        args: A tuple; anything else from a broken file is remembered as it is.
        kwargs: A dictionary or None.
    """
    function = _CALLS.get(maker.full) if isinstance(maker, Named) else None
    if function is None:
        return Record(maker, args, kwargs)
    if not isinstance(args, tuple) or kwargs:
        return Record(maker, args, kwargs, _OTHER_ARGUMENTS)
    try:
        return function(reading, maker, *args)
    except Misfit as error:
        return Record(maker, args, kwargs, str(error))
    except TypeError:
        # Only the number of arguments can be wrong: each function takes anything else.
        return Record(maker, args, kwargs, _OTHER_ARGUMENTS)


def is_inert(name: str) -> bool:
    """Whether calls of a global in a genuine network may stay undone, because no tensor comes of them."""
    return name in INERT or (name.startswith("torch.nn.") and not acts(name))


def is_known(name: str) -> bool:
    """Whether a global belongs to genuine checkpoints and is understood here."""
    return name in _CALLS or is_inert(name)


def is_lost_tensor(value: object) -> bool:
    """Whether a value should have become a tensor or an array of numbers and did not."""
    if not isinstance(value, Record) or (isinstance(value, Array) and value.tensor is not None):
        return False
    stored_wrongly = value.maker is None and bool(value.problem)
    return stored_wrongly or value.name.startswith(_MAKES_TENSORS)


Call = Callable[..., Any]
_OTHER_ARGUMENTS = "has other arguments than it takes"


def _ordered_dict(reading: Reading, maker: Named, pairs: object = ()) -> Fields:
    if not isinstance(pairs, list | tuple):
        raise Misfit("is a dictionary made of something else")
    reading.spend(2 * len(pairs))
    made = Fields()
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Misfit("is a dictionary made of something else")
        made[key_of(pair[0])] = pair[1]
    return made


def _default_dict(reading: Reading, maker: Named, factory: object = None) -> Fields:
    made = Fields()
    # Never asked to make anything, but seen by whoever judges the file.
    made.state = factory
    return made


def _persistent(reading: Reading, maker: Named, meta: object) -> Record:
    # The original runs `module_src`; here it is only looked at, and the state becomes that of a record.
    if not isinstance(meta, dict):
        raise Misfit("is a network without a description")
    record = Record(maker, (meta,))
    source = meta.get("module_src")
    if isinstance(source, str):
        found = acting_call(source, reading.sources)
        if found:
            # As if the pickle itself had named it.
            module, _, name = found.rpartition(".")
            record.add([reading.named(module, name, where="in the source text embedded in it")])
    record.state = meta.get("state")
    return record


def _reconstructor(reading: Reading, maker: Named, cls: object, base: object, state: object) -> object:
    # How protocols 0 and 1 make an object without calling its class.
    kind = base.full if isinstance(base, Named) else ""
    if kind == "builtins.object" and state is None:
        return call(reading, cls, ())
    if kind == "builtins.dict" and isinstance(state, dict):
        made = call(reading, cls, ())
        if isinstance(made, Fields):
            reading.spend(len(state))
            made.update(state)
            return made
    raise Misfit("is an object made from something else")


def _attribute(reading: Reading, maker: Named, owner: object, name: object) -> Named | Record:
    # How torch's own functions are pickled, torch.tanh as getattr(torch._C._VariableFunctionsClass, "tanh"),
    # and methods of classes and objects everywhere. Whether it would act is judged by the name that it gives.
    if not isinstance(name, str):
        raise Misfit("is an attribute without a name")
    if isinstance(owner, Named):
        return reading.named(owner.full, name)
    record = Record(maker, (owner, name), None, "is an attribute of something that was not made")
    record.add([reading.named(owner.name if isinstance(owner, Record) else "", name)])
    return record


def _encode(reading: Reading, maker: Named, text: object, encoding: object = "utf-8") -> bytes:
    # How protocols 0 to 2 write bytes.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise Misfit("is text in an encoding that pickles do not use")
    reading.claim(len(text))
    try:
        return text.encode(str(encoding))
    except UnicodeEncodeError as error:
        raise Misfit("is text that cannot be encoded") from error


def _bytes(reading: Reading, maker: Named, data: object = b"", *encoding: object) -> bytes | bytearray:
    # Empty bytes in protocol 2; bytearray(bytes) everywhere.
    if isinstance(data, str):
        data = _encode(reading, maker, data, *encoding)
    if not isinstance(data, bytes):
        raise Misfit("is a string of bytes made from something else")
    if maker.name != "bytearray":
        return data
    reading.claim(len(data))
    return bytearray(data)


def _nested(reading: Reading, maker: Named, data: object) -> object:
    # A torch file of one storage inside a pickle.
    if not isinstance(data, bytes) or reading.nested is None:
        raise Misfit("is a storage made from something else, or inside another one")
    inner = reading.nested(data)
    if isinstance(inner, Storage):
        return inner
    # What the bytes name instead stays visible to whoever judges the file.
    return Record(maker, (inner,), None, "is a storage whose bytes hold something else")


def _tensor(reading: Reading, maker: Named, storage: object, *rest: object) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise Misfit("is a tensor without a storage")
    if len(rest) < 3 or len(rest) > 6:
        raise Misfit("is a tensor that is not fully described")
    _refuse_bits(rest[5:])
    return StoredTensor(storage, rest[0], rest[1], rest[2])


def _tensor_v3(reading: Reading, maker: Named, storage: object, *rest: object) -> StoredTensor:
    # Element types that have no storage of their own: (offset, shape, stride, requires_grad, hooks, dtype).
    if not isinstance(storage, Storage) or len(rest) not in (6, 7):
        raise Misfit("is a tensor without a storage")
    dtype = DTYPES.get(rest[5].name) if isinstance(rest[5], Named) and rest[5].module == "torch" else None
    if dtype is None:
        raise Misfit("is a tensor of unknown elements")
    _refuse_bits(rest[6:])
    return StoredTensor(storage, rest[0], rest[1], rest[2], dtype)


def _refuse_bits(metadata: tuple[object, ...]) -> None:
    # Then the storage holds the negatives or conjugates of the values.
    if any(metadata):
        raise Misfit("is a negated or conjugated view, which is not undone here")


def _parameter(reading: Reading, maker: Named, data: object, *rest: object) -> object:
    # A parameter is its tensor; whether it wants gradients does not matter here.
    if not isinstance(data, StoredTensor) or len(rest) > 3:
        raise Misfit("is a parameter that is no tensor")
    return data


def _from_type(
    reading: Reading, maker: Named, function: object, kind: object, args: object, state: object
) -> object:
    # Only the plain functions, or one such call could hold another, ever deeper.
    name = function.full if isinstance(function, Named) else ""
    made = call(reading, function, args) if name in _REBUILDERS else None
    if isinstance(made, StoredTensor):
        return made
    raise Misfit("is a kind of tensor that is not known")


def _size(reading: Reading, maker: Named, sizes: object = ()) -> object:
    if isinstance(sizes, tuple):
        return sizes
    raise Misfit("is a shape that is no list of numbers")


def _new_array(reading: Reading, maker: Named, *args: object) -> Array:
    return Array(reading, maker, args)


def _from_buffer(
    reading: Reading,
    maker: Named,
    data: object,
    kind: object,
    shape: object,
    order: object,
    axes: object = None,
) -> Array:
    # How protocol 5 makes an array; numpy 2.4 keeps its axes in any order, as those of a row-major one.
    made = Array(reading, maker, (data, kind, shape, order, axes))
    tensor = array(reading, data, kind, shape, order == "F")
    made.tensor = tensor if order != "K" or axes is None else tensor.transposed(axes)
    return made


def _dill_array(
    reading: Reading, maker: Named, function: object, args: object, state: object, extra: object = None
) -> Array:
    name = function.full if isinstance(function, Named) else ""
    made = call(reading, function, args) if name == _NEW_ARRAY else None
    if not isinstance(made, Array) or extra:
        raise Misfit("is an array made from something else")
    made.build(state)
    return made


def _scalar(reading: Reading, maker: Named, kind: object, data: object) -> object:
    return number(kind, data)


_CALLS: dict[str, Call] = {
    "collections.OrderedDict": _ordered_dict,
    "dnnlib.util.EasyDict": _ordered_dict,
    "builtins.dict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "builtins.getattr": _attribute,
    "copyreg._reconstructor": _reconstructor,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "torch.storage._load_from_bytes": _nested,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _size,
    _NEW_ARRAY: _new_array,
    _FROM_BUFFER: _from_buffer,
    "numpy.core.multiarray.scalar": _scalar,
    _DILL_ARRAY: _dill_array,
    PERSISTENT: _persistent,
}


def storage_type(value: object) -> torch.dtype | None:
    """The element type that a named storage class stands for; None if it is none."""
    if isinstance(value, Named) and value.module in _STORAGE_MODULES:
        return STORAGES.get(value.name)
    return None
