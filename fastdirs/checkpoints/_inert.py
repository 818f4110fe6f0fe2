"""What a pickle becomes: records that only remember what a file asked for, and what reading may cost."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fastdirs.checkpoints._names import Named, acts, shown
from fastdirs.errors import CheckpointError

# What the machine and every walk over its result may do in all; the largest genuine files need a tenth.
MAX_STEPS = 4_000_000
# The names of genuine globals are far shorter, and there are at most a few hundred of them.
_MAX_NAME = 250
_MAX_NAMES = 100_000


class Record:
    """A call that a file asked for and that was not made, with everything that was put into its result.

    Attributes:
        maker: What was to be called: a `Named`, or anything that a broken file puts there.
        args: Its arguments.
        kwargs: Its named arguments.
        state: What BUILD would have given to the result.
        items: What would have been appended or added to the result, its keys and values too.
        problem: Why one of our own functions could not make sense of it; empty if none tried.
    """

    __slots__ = ("args", "items", "kwargs", "maker", "problem", "state")

    def __init__(self, maker: object, args: Any = (), kwargs: Any = None, problem: str = "") -> None:
        self.maker = maker
        self.args = args
        self.kwargs = kwargs
        self.state: Any = None
        # Millions of records may be asked for: most have no items, and share this.
        self.items: list[Any] | tuple[()] = ()
        self.problem = problem

    @property
    def name(self) -> str:
        """Dotted name of what was to be called; empty if it is no global."""
        return self.maker.full if isinstance(self.maker, Named) else ""

    def add(self, items: list[Any]) -> None:
        """Remember what would be appended or added."""
        if isinstance(self.items, list):
            self.items.extend(items)
        else:
            self.items = list(items)

    def build(self, state: object) -> None:
        """Remember a state; an earlier one is kept too."""
        if self.state is not None:
            self.add([self.state])
        self.state = state

    @property
    def fields(self) -> dict[Any, Any]:
        """The attributes that the state would have set; empty where it is no such state."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]
        return state if isinstance(state, dict) else {}


class Fields(dict[Any, Any]):
    """A dictionary that a file calls by another name, such as OrderedDict, and attributes given to it."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        super().__init__()
        self.state: Any = None

    def build(self, state: object) -> None:
        """Remember attributes, such as the `_metadata` of a torch state dict."""
        self.state = state if self.state is None else (self.state, state)


class Key:
    """A dictionary key that is neither text nor number: only remembered, never hashed."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


def key_of(value: Any) -> Any:
    """A key as it is, if its hash is cheap and cannot be chosen to collide; otherwise a `Key`."""
    if value is None or isinstance(value, str | bytes | bool | float):
        return value
    if isinstance(value, int) and -(2**60) < value < 2**60:
        return value
    return Key(value)


class Reading:
    """One file being read: what it may still cost, and what it named.

    Args:
        path: The file, for messages.
        size: Its length in bytes.

    Attributes:
        names: Every global that was named, in order.
        nested: Reads a torch file inside the file, set by the reader of containers.
        sources: Texts of modules that were looked at already, and what was found in them.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.steps = MAX_STEPS
        # Text may be encoded to bytes once and copied into a tensor once.
        self.bytes_left = 2 * size + 2**16
        self.names: list[Named] = []
        self._acting: dict[str, bool] = {}
        self.nested: Callable[[bytes], Any] | None = None
        self.sources: dict[str, str] = {}

    def named(self, module: str, name: str, where: str = "") -> Named:
        """Take note of a global.

        Raises:
            CheckpointError: Its name is longer than any, as if many were to be made of it, or there are more
                of them than any checkpoint needs.
        """
        if len(module) + len(name) > _MAX_NAME:
            raise self.broken(f"a global whose name has {len(module) + len(name)} characters")
        if len(self.names) >= _MAX_NAMES:
            raise CheckpointError(
                f"{self.path} names more than {_MAX_NAMES} globals, so reading was given up. "
                "It is broken or made to do harm. Ask its author for a plain state dict or safetensors."
            )
        named = Named(module, name, where)
        self.names.append(named)
        return named

    def acts(self, named: Named) -> bool:
        """Whether a global could do harm; each name is judged once."""
        full = named.full
        if full not in self._acting:
            self._acting[full] = acts(full)
        return self._acting[full]

    def spend(self, steps: int = 1) -> None:
        """Account for work.

        Raises:
            CheckpointError: The file asks for more than any genuine checkpoint needs.
        """
        self.steps -= steps
        if self.steps < 0:
            raise CheckpointError(
                f"{self.path} asks for more work than any checkpoint needs, so reading was given up. "
                "It is broken or made to do harm."
            )

    def claim(self, count: int) -> None:
        """Account for memory, in bytes.

        Raises:
            CheckpointError: The file asks for more than it holds, as by naming the same bytes twice.
        """
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise CheckpointError(
                f"{self.path} names more data than it holds, so reading was given up. "
                "It is broken or made to do harm."
            )

    def unsupported(self, reason: str, advice: str) -> CheckpointError:
        """The error for a file that is whole but written in a way that is not read here."""
        return CheckpointError(f"{self.path} cannot be read: {shown(reason)}. {advice}")

    def broken(self, reason: str) -> CheckpointError:
        """The error for a file that is cut off or damaged."""
        return CheckpointError(f"{self.path} is truncated or broken ({shown(reason)}). Download it again.")


def children(value: object) -> Iterable[object]:
    """Everything that a value holds directly."""
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
        if isinstance(value, Fields):
            yield value.state
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, Record):
        yield from (value.maker, value.args, value.kwargs, value.state, value.items)
    elif isinstance(value, Key):
        yield value.value


_LEAVES = (str, bytes, bytearray, int, float, type(None))


def walk(reading: Reading, roots: Iterable[object], skip: Callable[[object], bool]) -> Iterator[object]:
    """Every value below some roots, once each, however deep, shared or circular they are.

    Args:
        reading: Pays for it.
        roots: Where to begin.
        skip: Values into which the walk does not go; they are not given either.
    """
    seen: set[int] = set()
    todo = list(roots)
    while todo:
        value = todo.pop()
        reading.spend()
        if isinstance(value, _LEAVES) or id(value) in seen or skip(value):
            continue
        seen.add(id(value))
        yield value
        todo.extend(children(value))
