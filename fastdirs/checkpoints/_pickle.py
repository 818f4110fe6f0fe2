"""A pickle machine without hands: it follows the opcodes of a file and only writes down what they ask for.

`pickletools` decodes the opcodes; it never executes anything. No name in a file is looked up or imported, and
the only functions that are called are our own, from `_calls`.
"""

import pickletools
import warnings
from collections.abc import Callable
from typing import IO, Any

from fastdirs.checkpoints._calls import call
from fastdirs.checkpoints._inert import Fields, Reading, Record, key_of
from fastdirs.checkpoints._names import Named

_MAX_BITS = 4096
_NEWEST_PROTOCOL = 5
_SET, _FROZENSET = Named("builtins", "set"), Named("builtins", "frozenset")


class MalformedError(ValueError):
    """Opcodes that fit no pickle; never leaves this file."""


def read_pickle(
    reading: Reading, stream: IO[bytes], persistent: Callable[[object], object] | None = None
) -> Any:
    """Follow one pickle to its end.

    Args:
        reading: Pays for it and takes note of every global.
        stream: Where the pickle begins; afterwards just behind it. A read must not make room for more bytes
            than there are, as `io.BytesIO` and `mmap` do not.
        persistent: Turns a persistent id into a value; None where the file has no data outside the pickle.

    Returns:
        Text, numbers, lists, tuples and dictionaries; tensors as `StoredTensor`; the rest as `Record`.

    Raises:
        CheckpointError: Truncated, broken, or more work than any checkpoint needs.
    """
    machine = _Machine(reading, persistent)
    try:
        with warnings.catch_warnings():
            # Python warns of doubtful escapes in the text opcodes of protocol 0.
            warnings.simplefilter("ignore", DeprecationWarning)
            return machine.run(stream)
    except IndexError as error:
        raise reading.broken("its pickle takes more from the stack than was put there") from error
    except KeyError as error:
        raise reading.broken("its pickle refers to something that it never remembered") from error
    except (ValueError, OverflowError) as error:
        # What pickletools says of opcodes that it cannot decode; a UnicodeError is a ValueError too.
        raise reading.broken(f"its pickle: {str(error)[:150]}") from error


class _Machine:
    def __init__(self, reading: Reading, persistent: Callable[[object], object] | None) -> None:
        self.reading = reading
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Any:
        spend = self.reading.spend
        for opcode, argument, _ in pickletools.genops(stream):
            spend()
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                raise MalformedError(f"it uses {opcode.name}, which checkpoints do not")
            handler(self, argument)
        return self.stack.pop()

    def items(self) -> list[Any]:
        """What lies on the stack since the last mark, which is taken away with it."""
        items, self.stack = self.stack, self.below.pop()
        return items


def _push(machine: _Machine, value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise MalformedError(f"a whole number of {value.bit_length()} bits")
    if isinstance(value, str) and not value.isascii():
        # Half characters are no text, and would upset whoever prints or hashes a name.
        value.encode()
    machine.stack.append(value)


def _empty_set(machine: _Machine, _: object) -> None:
    machine.stack.append(Record(_SET))


def _frozenset(machine: _Machine, _: object) -> None:
    items = machine.items()
    machine.stack.append(Record(_FROZENSET, (items,)))


def _mark(machine: _Machine, _: object) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine, _: object) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.items()


def _pop_mark(machine: _Machine, _: object) -> None:
    machine.items()


def _dup(machine: _Machine, _: object) -> None:
    machine.stack.append(machine.stack[-1])


def _list(machine: _Machine, _: object) -> None:
    items = machine.items()
    machine.stack.append(items)


def _tuple(machine: _Machine, _: object) -> None:
    items = tuple(machine.items())
    machine.stack.append(items)


def _tuple_of(count: int) -> Callable[[_Machine, object], None]:
    def make(machine: _Machine, _: object) -> None:
        stack = machine.stack
        if len(stack) < count:
            raise IndexError
        stack[-count:] = [tuple(stack[-count:])]

    return make


def _dict(machine: _Machine, _: object) -> None:
    items = machine.items()
    made: dict[Any, Any] = {}
    machine.stack.append(made)
    _set(made, items)


def _append(machine: _Machine, _: object) -> None:
    item = machine.stack.pop()
    _extend(machine.stack[-1], [item])


def _appends(machine: _Machine, _: object) -> None:
    items = machine.items()
    _extend(machine.stack[-1], items)


def _extend(target: object, items: list[Any]) -> None:
    if isinstance(target, Record):
        target.add(items)
    elif isinstance(target, list):
        target.extend(items)
    else:
        raise MalformedError("it appends to something that is no list")


def _setitem(machine: _Machine, _: object) -> None:
    value = machine.stack.pop()
    key = machine.stack.pop()
    _set(machine.stack[-1], [key, value])


def _setitems(machine: _Machine, _: object) -> None:
    items = machine.items()
    _set(machine.stack[-1], items)


def _set(target: object, items: list[Any]) -> None:
    if len(items) % 2:
        raise MalformedError("a key without a value")
    if isinstance(target, Record):
        target.add(items)
    elif isinstance(target, dict):
        target.update((key_of(items[index]), items[index + 1]) for index in range(0, len(items), 2))
    else:
        raise MalformedError("it sets keys of something that is no dictionary")


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _memoize(machine: _Machine, _: object) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: _Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _global(machine: _Machine, argument: str) -> None:
    # pickletools puts a blank between the two, and neither can hold one in a genuine file.
    module, _, name = argument.partition(" ")
    machine.stack.append(machine.reading.named(module, name))


def _stack_global(machine: _Machine, _: object) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise MalformedError("a global whose name is no text")
    machine.stack.append(machine.reading.named(module, name))


def _reduce(machine: _Machine, _: object) -> None:
    args, maker = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(call(machine.reading, maker, args))


def _newobj_ex(machine: _Machine, _: object) -> None:
    kwargs, args, maker = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.stack.append(call(machine.reading, maker, args, kwargs))


def _inst(machine: _Machine, argument: str) -> None:
    args = tuple(machine.items())
    module, _, name = argument.partition(" ")
    machine.stack.append(call(machine.reading, machine.reading.named(module, name), args))


def _obj(machine: _Machine, _: object) -> None:
    maker, *args = machine.items() or [None]
    machine.stack.append(call(machine.reading, maker, tuple(args)))


def _build(machine: _Machine, _: object) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if not isinstance(target, Record | Fields):
        raise MalformedError("it gives attributes to something that has none")
    target.build(state)


def _persid(machine: _Machine, argument: object) -> None:
    if machine.persistent is None:
        raise MalformedError("it refers to data outside itself")
    machine.stack.append(machine.persistent(argument))


def _binpersid(machine: _Machine, _: object) -> None:
    _persid(machine, machine.stack.pop())


def _proto(machine: _Machine, version: int) -> None:
    if version > _NEWEST_PROTOCOL:
        raise MalformedError(f"protocol {version}")


def _nothing(machine: _Machine, _: object) -> None:
    """FRAME only helps those who read in blocks; STOP ends the opcodes by itself."""


def _constant(value: object) -> Callable[[_Machine, object], None]:
    return lambda machine, _: machine.stack.append(value)


_PUSHED = (
    "INT LONG BININT BININT1 BININT2 LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 FLOAT BINFLOAT"
)
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_PUSHED.split(), _push),
    **{name: _constant(value) for name, value in (("NONE", None), ("NEWTRUE", True), ("NEWFALSE", False))},
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    **{f"TUPLE{count}": _tuple_of(count) for count in (1, 2, 3)},
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _appends),
    **dict.fromkeys(("FRAME", "STOP"), _nothing),
    "EMPTY_SET": _empty_set, "FROZENSET": _frozenset, "MARK": _mark, "POP": _pop, "POP_MARK": _pop_mark,
    "DUP": _dup, "LIST": _list, "TUPLE": _tuple, "DICT": _dict, "APPEND": _append, "SETITEM": _setitem,
    "SETITEMS": _setitems, "MEMOIZE": _memoize, "GLOBAL": _global, "STACK_GLOBAL": _stack_global,
    "NEWOBJ_EX": _newobj_ex, "INST": _inst, "OBJ": _obj, "BUILD": _build, "PERSID": _persid,
    "BINPERSID": _binpersid, "PROTO": _proto,
}  # fmt: skip
