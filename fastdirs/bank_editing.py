"""Editing direction banks: naming, choosing and joining directions. Every function returns another bank."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastdirs.directions import DirectionBank
from fastdirs.errors import BankError, SelectionError
from fastdirs.latents import MAX_EPSILON
from fastdirs.manifest import Json
from fastdirs.registry import unknown_name

MAX_LABEL = 200
"""Longest name or tag, in characters."""

# Settings that, where they are lists, hold an entry for each direction: what importing recorded.
_OF_EACH = ("lengths", "lat_stdev")


def label(
    bank: DirectionBank,
    index: int,
    name: str | None = None,
    tags: Sequence[str] = (),
    judge: str | None = None,
    limits: tuple[float, float] | None = None,
) -> DirectionBank:
    """Say what a direction does.

    Args:
        bank: The bank.
        index: Direction, from 0.
        name: Its new name; None = as it was.
        tags: Words to add to those that it has.
        judge: Who looked at it; None = as it was.
        limits: Lowest and highest epsilon to suggest; None = as they were.

    Raises:
        SelectionError: No such direction, an empty or very long name, or limits that do not ascend.
    """
    bank.check_index(index)
    for text in (*([] if name is None else [name]), *tags):
        if not text.strip() or len(text) > MAX_LABEL:
            raise SelectionError(f"{text[:40]!r} is no name. Expected 1 to {MAX_LABEL} characters.")
    labels, all_tags, judges, ranges = [*bank.labels], [*bank.tags], [*bank.judges], bank.ranges.clone()
    if name is not None:
        labels[index] = name.strip()
    # In the order in which they were given, each once.
    all_tags[index] = tuple(dict.fromkeys((*bank.tags[index], *(tag.strip() for tag in tags))))
    if judge is not None:
        judges[index] = judge
    if limits is not None:
        low, high = limits
        if not -MAX_EPSILON <= low < high <= MAX_EPSILON:
            raise SelectionError(
                f"{low:g} to {high:g} is no range. Expected two ascending epsilons, up to ±1000."
            )
        ranges[index] = torch.tensor([low, high])
    return replace(bank, labels=tuple(labels), tags=tuple(all_tags), judges=tuple(judges), ranges=ranges)


def read_names(path: Path) -> Json:
    """The file that the page of an atlas downloads.

    Raises:
        BankError: Missing, or no JSON.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BankError(
            f"{path} cannot be read as names: {str(error)[:100]}. Name the file that an atlas downloaded."
        ) from error
    return content if isinstance(content, dict) else {}


def label_all(bank: DirectionBank, names: Json, judge: str | None = None) -> tuple[DirectionBank, list[int]]:
    """Take over the names that were given on the page of an atlas.

    Args:
        bank: The bank that the atlas shows.
        names: What the page downloads: {"generator_sha256": hash of the weights, "labels": {"0": name, ...}}.
        judge: Who gave the names; recorded for the directions whose name changes.

    Returns:
        The bank, and the directions whose name changed.

    Raises:
        BankError: Something else, or the names of another generator's directions.
        SelectionError: A direction that the bank does not have.
    """
    labels = names.get("labels")
    if not isinstance(labels, Mapping) or not all(str(index).isdecimal() for index in labels):
        raise BankError(
            "These are no names of directions. Expected the file that the page of an atlas downloads."
        )
    made_for = names.get("generator_sha256", bank.generator["weights_sha256"])
    if made_for != bank.generator["weights_sha256"]:
        raise BankError(
            f"These names belong to a generator with weights {str(made_for)[:12]}, but the bank was made for "
            f"{bank.generator['name']} (weights {str(bank.generator['weights_sha256'])[:12]}). Name its bank."
        )
    changed = []
    for index, name in sorted((int(index), str(name)) for index, name in labels.items()):
        bank.check_index(index)
        if name != bank.labels[index]:
            bank = label(bank, index, name, judge=judge)
            changed.append(index)
    return bank, changed


def rename(bank: DirectionBank, old: str, new: str) -> tuple[DirectionBank, list[int]]:
    """Give every direction of one name another.

    Returns:
        The bank, and the directions that had the name.

    Raises:
        UnknownNameError: No direction of that name; the nearest is named.
        SelectionError: An empty or very long name.
    """
    found = [index for index, name in enumerate(bank.labels) if name == old]
    if not found:
        raise unknown_name("direction called", old, dict.fromkeys(bank.labels))
    for index in found:
        bank = label(bank, index, new)
    return bank, found


def select(bank: DirectionBank, indices: Sequence[int]) -> DirectionBank:
    """Some directions, in the given order, with everything that is known of them.

    Args:
        bank: The bank.
        indices: Directions, from 0. Recorded as `selected` in the settings, counted in the first bank.
            What the settings hold for each direction, such as `lengths` of imported ones, is chosen too.

    Raises:
        SelectionError: No direction, or one that the bank does not have.
    """
    if not indices:
        raise SelectionError("No direction is chosen. Choose at least one.")
    for index in indices:
        bank.check_index(index)
    before = bank.settings.get("selected", range(len(bank)))
    chosen = list(indices)
    return replace(
        bank,
        directions=bank.directions[chosen],
        scales=bank.scales[chosen],
        scores=bank.scores[chosen],
        ranges=bank.ranges[chosen],
        labels=tuple(bank.labels[index] for index in chosen),
        tags=tuple(bank.tags[index] for index in chosen),
        judges=tuple(bank.judges[index] for index in chosen),
        settings={
            **bank.settings,
            **{name: [values[index] for index in chosen] for name, values in _of_each(bank).items()},
            "selected": [before[index] for index in chosen],
        },
    )


def restrict(bank: DirectionBank, layers: Sequence[int], indices: Sequence[int]) -> DirectionBank:
    """A bank that shifts some latent layers alone: a global edit becomes one of pose, or of colours.

    Args:
        bank: The bank.
        layers: Latent layers, from 0.
        indices: Directions that are meant; each must shift one of these layers.

    Raises:
        SelectionError: No such layer or direction, or one of the directions would do nothing.
    """
    count = int(bank.generator["num_layers"])
    for layer in layers:
        if not 0 <= layer < count:
            raise SelectionError(f"There is no layer {layer}. The generator has {count}: 0 to {count - 1}.")
    for index in indices:
        if not set(layers) & set(bank.edited_layers(index)):
            raise SelectionError(
                f"Direction {index} shifts layers {', '.join(map(str, bank.edited_layers(index)))}, none of "
                "those asked for. Choose other layers or directions."
            )
    kept = torch.zeros(count, 1)
    kept[list(layers)] = 1.0
    return replace(
        bank,
        directions=bank.directions * kept,
        layers=tuple(layer for layer in bank.layers if layer in set(layers)),
    )


def _of_each(bank: DirectionBank) -> dict[str, list[object]]:
    """The settings that hold an entry for each direction."""
    found = {name: bank.settings.get(name) for name in _OF_EACH}
    return {
        name: value for name, value in found.items() if isinstance(value, list) and len(value) == len(bank)
    }


def tagged(bank: DirectionBank, tag: str) -> list[int]:
    """The directions that have a tag.

    Raises:
        UnknownNameError: None has it; the nearest is named.
    """
    found = [index for index, words in enumerate(bank.tags) if tag in words]
    if not found:
        raise unknown_name("tag", tag, {word for words in bank.tags for word in words})
    return found


def best(bank: DirectionBank, count: int) -> list[int]:
    """The directions of the highest scores, best first.

    Raises:
        SelectionError: More than there are, or none.
    """
    if not 1 <= count <= len(bank):
        raise SelectionError(f"{count} directions are out of range. The bank has 1 to {len(bank)}.")
    return bank.scores.argsort(descending=True, stable=True)[:count].tolist()


def merge(banks: Sequence[DirectionBank]) -> DirectionBank:
    """One bank of the directions of several, in order.

    Where any is curved, all are tabulated at the knots of all: a path is straight between knots and beyond
    them, so that every shift stays what it was (to rounding). Scores keep the meaning that each method gave
    them, and so cannot be compared across methods. Settings stay with the bank that they are of: `merged`
    lists method, settings and number of directions of each, in order. What these hold for each direction,
    such as `lengths`, counts the directions of that bank, also after `select`, whose `selected` counts those
    of the merged one.

    Args:
        banks: Banks of one generator, at least two.

    Raises:
        SelectionError: Fewer than two.
        BankError: They belong to different generators.
    """
    if len(banks) < 2:
        raise SelectionError("One bank alone cannot be merged. Name at least two.")
    first = banks[0]
    for number, bank in enumerate(banks[1:], start=2):
        try:
            first.check_generator(bank.generator)
        except BankError as error:
            raise BankError(
                f"The first bank was made for {_named(first)}, but bank {number} for {_named(bank)}. "
                "Expected banks of one generator. Merge those of each generator by themselves."
            ) from error
    places = {knot for bank in banks if bank.knots is not None for knot in bank.knots.tolist()}
    knots = torch.tensor(sorted(places)) if places else None
    methods = list(dict.fromkeys(bank.method for bank in banks))
    origins = [{"method": bank.method, "settings": bank.settings, "directions": len(bank)} for bank in banks]
    return DirectionBank(
        directions=torch.cat([_at(bank, knots) for bank in banks]),
        scales=torch.cat([bank.scales for bank in banks]),
        scores=torch.cat([bank.scores for bank in banks]),
        ranges=torch.cat([bank.ranges for bank in banks]),
        labels=tuple(name for bank in banks for name in bank.labels),
        tags=tuple(words for bank in banks for words in bank.tags),
        judges=tuple(judge for bank in banks for judge in bank.judges),
        layers=tuple(sorted({layer for bank in banks for layer in bank.layers})),
        generator=first.generator,
        method="+".join(methods),
        settings={"merged": origins},
        knots=knots,
    )


def _named(bank: DirectionBank) -> str:
    return f"{bank.generator['name']} (weights {str(bank.generator['weights_sha256'])[:12]})"


def _at(bank: DirectionBank, knots: Tensor | None) -> Tensor:
    """Directions as they are, or the shifts at some knots, `[num_directions, knots, layers, dim]`."""
    if knots is None or (bank.knots is not None and torch.equal(bank.knots, knots)):
        return bank.directions
    return torch.stack([bank.shifts(index, knots.tolist()) for index in range(len(bank))])
