"""Whether a file that was read inertly is to be trusted with what it holds.

Reading is safe without any of this: nothing that a file names is looked up. The verdict is for the user, who
should hear that a file was tampered with, and for tensors that must be exactly what the file says.
"""

from fastdirs.checkpoints._calls import is_inert, is_known, is_lost_tensor
from fastdirs.checkpoints._inert import Key, Reading, Record, walk
from fastdirs.checkpoints._names import Named, shown
from fastdirs.checkpoints._networks import aside, is_module, tensor_of
from fastdirs.checkpoints._tensors import Storage, StoredTensor
from fastdirs.errors import CheckpointError

_ADVICE = "Ask its author for a plain state dict or safetensors."
_MAX_FOREIGN = 1000


def foreign(reading: Reading) -> tuple[str, ...]:
    """The globals that a file names and that genuine checkpoints of networks do not; sorted."""
    unknown = {named.full: named for named in reading.names if not is_known(named.full)}
    return tuple(sorted(named.dotted for named in unknown.values())[:_MAX_FOREIGN])


def lost_tensor(root: object, reading: Reading) -> str:
    """What is wrong with a tensor in a file of which none could be read; empty if it has none."""
    lost = [value for value in walk(reading, [root], lambda value: False) if is_lost_tensor(value)]
    # The walk ends with what the file begins with.
    return _unknown(lost[-1], frozenset()) if lost else ""


def refuse_hostile(root: object, reading: Reading) -> None:
    """Refuse a file that would act if it were unpickled the ordinary way.

    What a discriminator or an optimiser names does not count: they are never taken.

    Raises:
        CheckpointError: Something acting is named anywhere else, or was named and then hidden.
    """
    acting = [named for named in reading.names if reading.acts(named)]
    if not acting:
        return
    set_aside = aside(root, reading)
    ids = {id(value) for value in set_aside}
    wanted = {id(value) for value in walk(reading, [root], lambda value: id(value) in ids)}
    beside = {id(value) for value in walk(reading, set_aside, lambda value: False)}
    for named in acting:
        if id(named) in wanted or id(named) not in beside:
            raise hostile(named, reading)


def hostile(named: Named, reading: Reading) -> CheckpointError:
    """The error for a file that wants something done."""
    when = f"{named.where}, which the original loader runs" if named.where else "when it is read"
    return CheckpointError(
        f"{reading.path} asks to run {named.dotted} {when}, so it was refused; nothing was run. {_ADVICE}"
    )


def refuse_unknown(network: object, part: str, reading: Reading, known: frozenset[str] = frozenset()) -> None:
    """Refuse a module that holds anything besides tensors, plain values and modules.

    Of a dictionary only its tensors are taken, so that anything else in it may be unknown, unless it acts.

    Args:
        network: The one that was taken.
        part: Its dotted path, for the message.
        reading: The file.
        known: Classes whose objects belong to it, where it is no torch module.

    Raises:
        CheckpointError: The first such thing is named.
    """
    values = list(walk(reading, [network], lambda value: False))
    for value in values:
        if isinstance(value, Named) and reading.acts(value):
            raise hostile(value, reading)
    if isinstance(network, dict):
        reading.spend(len(network))
        values = [value for value in network.values() if is_lost_tensor(value)]
    for value in values:
        reason = _unknown(value, known)
        if reason:
            where = f"{part} of {reading.path}" if part else str(reading.path)
            raise CheckpointError(
                f"{shown(where)} holds something that cannot be read without running code, or is broken "
                f"({reason}), so it was refused; nothing was run. {_ADVICE}"
            )


def _unknown(value: object, known: frozenset[str]) -> str:
    """What is unknown of a value; empty if nothing is."""
    if isinstance(value, Record):
        name = shown(value.name) or "something that it made itself"
        if value.problem:
            return f"{name} {value.problem}" if value.name else value.problem
        if tensor_of(value) is not None or is_module(value) or value.name in known:
            return ""
        if is_inert(value.name) and not is_lost_tensor(value):
            return ""
        return f"it asks to call {name}"
    if isinstance(value, dict | list | tuple | Named | Key | StoredTensor | Storage | bytearray):
        return ""
    return f"a {type(value).__name__}"
