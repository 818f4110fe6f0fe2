"""The discovery contract, and one file per method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdirs.directions import DirectionBank
from fastdirs.errors import MissingDependencyError, SelectionError
from fastdirs.generators import Generator
from fastdirs.manifest import Json
from fastdirs.registry import Registry, unknown_name
from fastdirs.shift_space import ShiftSpace

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a method is asked for.

    Attributes:
        generator: The generator, frozen, in evaluation mode.
        space: The latent layers to edit, as one vector.
        num_directions: K, 1 to the size of the space.
        folder: Where a long run keeps its checkpoint, log and pictures, so that it can be continued; None =
            nowhere.
        progress: Called with steps done and steps in all.
        report: Called with a line about what is going on.
    """

    generator: Generator
    space: ShiftSpace
    num_directions: int
    folder: Path | None = None
    progress: Progress = lambda done, total: None
    report: Callable[[str], None] = lambda line: None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a method hands back, best first.

    Attributes:
        vectors: Unit vectors of the space `[num_directions, size]`, or curved paths: the shift at each knot
            `[num_directions, knots, size]`, float.
        scores: Higher = stronger. `[num_directions]`, float.
        knots: Epsilons of the knots, ascending, symmetric about 0. `[knots]`, float; None if straight.
        settings: What is to be recorded beside the options: what "auto" came to, above all.
    """

    vectors: Tensor
    scores: Tensor
    knots: Tensor | None = None
    settings: Json = field(default_factory=dict)


def _anything(generator: Generator) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One discovery method.

    Attributes:
        summary: One line, with the paper.
        settings: A frozen dataclass; its fields are the method's options, `metadata={"help": ...}` the help.
        find: (search, settings) -> Found.
        refuses: Why the method does not apply to a generator; "" if it does.
        trains: Whether it takes long, so that it is given a folder to continue from.
        baseline: Whether it looks at nothing of the generator: what methods are compared with.
        seeks: The one thing that its directions are for; "" if it looks for whatever a generator can do.
    """

    summary: str
    settings: type[Any]
    find: Callable[[Search, Any], Found]
    refuses: Callable[[Generator], str] = _anything
    trains: bool = False
    baseline: bool = False
    seeks: str = ""


METHODS: Registry[Method] = Registry("fastdirs.discovery", "METHOD", "discovery method")


def discover(
    generator: Generator,
    method: str = "sefa",
    num_directions: int = 10,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Progress = lambda done, total: None,
    folder: str | Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> DirectionBank:
    """Find directions without labels.

    Args:
        generator: Any generator that the method applies to.
        method: Registered name.
        num_directions: How many, best first.
        layers: Latent layers to edit; None = all that are editable.
        settings: The method's options by name, as text; see `fastdirs list methods`.
        progress: Called with steps done and steps in all.
        folder: Where a method that trains keeps checkpoint, log, pictures and reconstructor; the same call
            continues there and ends with the same bank. None = it keeps nothing.
        report: Called with a line about what is going on.

    Raises:
        UnknownNameError: No such method or option.
        MissingDependencyError: The method needs a package that is not installed.
        SelectionError: A layer or a number of directions that the generator does not have, or an option value
            out of range, or a method that does not apply to the family.
        TrainingError: The loss is no number any more.
        OutputError: The folder holds a run with other settings, or cannot be written.
    """
    plugin = METHODS.load(method)
    space = ShiftSpace(generator, generator.editable if layers is None else tuple(sorted(set(layers))))
    if not 1 <= num_directions <= space.size:
        raise SelectionError(
            f"{num_directions} directions are out of range. "
            f"The latent space of {generator.provenance.name} has room for 1 to {space.size}."
        )
    parsed = parse_settings(method, plugin.settings, settings or {})
    refusal = plugin.refuses(generator)
    if refusal:
        raise SelectionError(
            f"{method} does not apply to {generator.provenance.name} (family {generator.family}): {refusal} "
            f"Methods that do: {', '.join(_applicable(generator))}."
        )
    search = Search(
        generator=generator, space=space, num_directions=num_directions,
        folder=None if folder is None else Path(folder), progress=progress, report=report,
    )  # fmt: skip
    found = plugin.find(search, parsed)
    return space.bank(found.vectors, found.scores, method, {**asdict(parsed), **found.settings}, found.knots)


def _applicable(generator: Generator) -> list[str]:
    names = []
    for name in METHODS.names():
        try:
            if not METHODS.load(name).refuses(generator):
                names.append(name)
        except MissingDependencyError:
            continue
    return names


def parse_settings(method: str, settings: type[Any], values: Mapping[str, str]) -> Any:
    """A method's settings from text, each value read as the type of the field's default.

    Raises:
        UnknownNameError: No such option; the nearest spelling is named.
        SelectionError: A value of another type.
    """
    known = {f.name: f for f in fields(settings)}
    parsed = {}
    for name, value in values.items():
        if name not in known:
            raise unknown_name(f"option of {method}", name, known)
        default = known[name].default
        assert default is not MISSING
        try:
            parsed[name] = _BOOLEANS[value] if isinstance(default, bool) else type(default)(value)
        except (ValueError, KeyError) as error:
            raise SelectionError(
                f"{name}={value!r} is not a {type(default).__name__}. The default is {default!r}."
            ) from error
    return settings(**parsed)


_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
