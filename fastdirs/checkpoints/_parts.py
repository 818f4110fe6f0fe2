"""Which of the networks in a file is taken, and its tensors."""

from collections.abc import Mapping, Sequence

from fastdirs.checkpoints import Contents, Survey
from fastdirs.checkpoints._inert import Reading, Record
from fastdirs.checkpoints._names import shown
from fastdirs.checkpoints._networks import is_aside, networks, settings, tensors
from fastdirs.checkpoints._tensors import StoredTensor
from fastdirs.checkpoints._verdict import foreign, refuse_hostile, refuse_unknown
from fastdirs.errors import CheckpointError
from fastdirs.registry import unknown_name

# What training scripts call the generator that is meant to be used, best first, then the one in training.
PREFERRED = (
    "G_ema", "g_ema", "netG_ema", "generator_smooth", "generator_ema", "netG_state_dict", "netG", "G", "g",
    "generator", "state_dict", "model_state_dict", "model",
)  # fmt: skip
_MAX_NAMED = 20


def take(root: object, reading: Reading, key: str | None, preferred: Sequence[str] = PREFERRED) -> Contents:
    """The network that a user wants from a file.

    Args:
        root: The file's content, inert.
        reading: The file, still open.
        key: Dotted path of the network; None takes the generator if it is clear which one that is.
        preferred: Names of generators, best first.

    Raises:
        CheckpointError: Hostile, no network at all, or it is not clear which.
        UnknownNameError: No network of that name.
    """
    found = _found(root, reading)
    part = choose(found, reading, key, preferred)
    network = found[part]
    refuse_unknown(network, part, reading)
    stored = tensors(network, reading)
    if not stored:
        raise CheckpointError(f"{reading.path} holds no tensors in {shown(part) or 'its network'}.")
    mean = _mean_latent(root, part)
    if mean is not None and "latent_avg" not in stored:
        stored["latent_avg"] = mean
    return Contents(
        tensors={name: tensor.read(reading) for name, tensor in stored.items()},
        settings=settings(network, root, found),
        part=part,
        parts=tuple(found),
        foreign=foreign(reading),
    )


def survey(root: object, reading: Reading) -> Survey:
    """Every network in a file, none of their tensors read.

    Raises:
        CheckpointError: Hostile, or no network at all.
    """
    found = _found(root, reading)
    part: str | None
    try:
        part = choose(found, reading, None, PREFERRED)
    except CheckpointError:
        part = None
    return Survey(
        parts={name: tensors(network, reading) for name, network in found.items()},
        part=part,
        settings={} if part is None else settings(found[part], root, found),
        foreign=foreign(reading),
    )


def _found(root: object, reading: Reading) -> dict[str, object]:
    """All networks in a file that is not hostile; at least one."""
    found = networks(root, reading)
    refuse_hostile(root, reading)
    if not found:
        raise CheckpointError(
            f"{reading.path} holds no tensors by name (it is {_kind(root)}), "
            "so it is not a generator's state dict."
        )
    return found


def _kind(root: object) -> str:
    """What a file without networks is instead."""
    if isinstance(root, dict):
        return "a dict"
    if isinstance(root, StoredTensor):
        return "one tensor"
    if isinstance(root, Record):
        return f"an object of {shown(root.name)}" if root.name else "an object of nothing known"
    return "nothing" if root is None else f"a {type(root).__name__}"


def choose(found: Mapping[str, object], reading: Reading, key: str | None, preferred: Sequence[str]) -> str:
    """The dotted path of the network to take.

    Raises:
        CheckpointError: It is not clear which.
        UnknownNameError: No network of that name.
    """
    if key is not None:
        if key not in found:
            raise unknown_name(
                f"state dict in {reading.path.name}", key, [shown(p) for p in found][:_MAX_NAMED]
            )
        return key
    candidates = [path for path in found if not is_aside(path)]
    if not candidates:
        raise CheckpointError(
            f"{reading.path} holds only {', '.join(shown(path) for path in [*found][:_MAX_NAMED])}, "
            "which is no generator. Name another file, or take it all the same with key=NAME."
        )
    for name in preferred:
        named = [path for path in candidates if path.rpartition(".")[2] == name]
        if named:
            return min(named, key=lambda path: path.count("."))
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(repr(path) for path in candidates[:_MAX_NAMED])
    raise CheckpointError(
        f"{reading.path} holds several state dicts: {names}. Name the generator's with key=NAME."
    )


def _mean_latent(root: object, part: str) -> StoredTensor | None:
    """The mean w that rosinality's converted files keep beside the averaged generator."""
    beside = root.get("latent_avg") if isinstance(root, dict) and part == "g_ema" else None
    return beside if isinstance(beside, StoredTensor) else None
