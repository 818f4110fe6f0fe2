"""Which of the networks in a file is taken, and its tensors."""

import re
from collections.abc import Iterable, Mapping

from fastdirs.checkpoints import Contents, Survey
from fastdirs.checkpoints._inert import Reading, Record
from fastdirs.checkpoints._names import shown
from fastdirs.checkpoints._networks import is_aside, networks, settings, tensor_of, tensors
from fastdirs.checkpoints._tensors import StoredTensor
from fastdirs.checkpoints._verdict import foreign, lost_tensor, refuse_hostile, refuse_unknown
from fastdirs.errors import CheckpointError
from fastdirs.registry import unknown_name

# What training scripts call the generator that is meant to be used, best first, then the one in training.
PREFERRED = (
    "G_ema", "g_ema", "netG_ema", "generator_smooth", "generator_ema", "netG_state_dict", "netG", "G", "g",
    "generator", "state_dict", "model_state_dict", "model",
)  # fmt: skip
# What they call an average of the weights, which gives the better images.
_AVERAGED = re.compile(
    r"(?i:(?<![a-z])(ema|smooth(ed)?|avg|averaged?)(?![a-z]))|(EMA|Ema|Avg|Average)(?![a-z])"
)
_MAX_NAMED = 20


def take(root: object, reading: Reading, key: str | None) -> Contents:
    """The network that a user wants from a file.

    Args:
        root: The file's content, inert.
        reading: The file, still open.
        key: Dotted path of the network; None takes the generator if it is clear which one that is.

    Raises:
        CheckpointError: Hostile, no network at all, or it is not clear which.
        UnknownNameError: No network of that name.
    """
    found = _found(root, reading)
    part = choose(found, reading, key)
    network = found[part]
    refuse_unknown(network, part, reading)
    stored = tensors(network, reading)
    if not stored:
        others = [path for path in found if path != part]
        instead = f", or take another part with key=NAME: {_listed(others)}" if others else ""
        raise CheckpointError(
            f"{reading.path} holds no tensors in {shown(part) or 'its network'}. "
            f"Name a file with weights{instead}."
        )
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
        part = choose(found, reading, None)
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
            f"so it is not a generator's state dict. {_advice(lost_tensor(root, reading))}"
        )
    return found


def _advice(problem: str) -> str:
    """What to do about a file without networks."""
    if problem:
        return f"Its tensors cannot be read: {problem}. Ask its author for a plain state dict or safetensors."
    return "Name the file that holds the generator's weights."


def _kind(root: object) -> str:
    """What a file without networks is instead."""
    if isinstance(root, dict):
        return "a dict"
    if isinstance(root, StoredTensor):
        return "one tensor"
    if isinstance(root, Record):
        return f"an object of {shown(root.name)}" if root.name else "an object of nothing known"
    return "nothing" if root is None else f"a {type(root).__name__}"


def _listed(found: Iterable[str]) -> str:
    return ", ".join(repr(shown(path)) for path in [*found][:_MAX_NAMED])


def choose(found: Mapping[str, object], reading: Reading, key: str | None) -> str:
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
    candidates = [path for path in candidates if not _is_counter(found[path], reading)] or candidates
    chosen = _preferred(candidates)
    if chosen is None:
        # One network under two names is one network.
        if len({id(found[path]) for path in candidates}) > 1:
            raise CheckpointError(
                f"{reading.path} holds several state dicts: {_listed(candidates)}. "
                "Name the generator's with key=NAME."
            )
        chosen = candidates[0]
    if _AVERAGED.search(chosen):
        return chosen
    shapes = _shapes(found[chosen], reading)
    averaged = [
        path
        for path in candidates
        # An average of the same weights, perhaps without buffers, or of the generator among several networks.
        if _AVERAGED.search(path) and _related(shapes, _shapes(found[path], reading))
    ]
    if not averaged:
        return chosen
    if len({id(found[path]) for path in averaged}) > 1:
        raise CheckpointError(
            f"{reading.path} holds {_listed([chosen])} and several averages of weights: {_listed(averaged)}. "
            "Name the one to take with key=NAME."
        )
    return averaged[0]


def _preferred(candidates: list[str]) -> str | None:
    """The one that training scripts call best; None if they use no such name."""
    for name in PREFERRED:
        named = [path for path in candidates if path.rpartition(".")[2] == name]
        if named:
            return min(named, key=lambda path: path.count("."))
    return None


def _shapes(network: object, reading: Reading) -> set[tuple[int, ...]]:
    return {tensor.shape for tensor in tensors(network, reading).values()}


def _related(one: set[tuple[int, ...]], other: set[tuple[int, ...]]) -> bool:
    return one <= other or other <= one


def _is_counter(network: object, reading: Reading) -> bool:
    """Whether this is no network, but something that counts steps in tensors of one element."""
    return isinstance(network, dict) and all(t.numel() == 1 for t in tensors(network, reading).values())


def _mean_latent(root: object, part: str) -> StoredTensor | None:
    """The mean w that rosinality's converted files keep beside the averaged generator."""
    beside = root.get("latent_avg") if isinstance(root, dict) and part == "g_ema" else None
    return tensor_of(beside)
