"""Direction files of other programs: one file per format, each read into a bank, some also written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fastdirs.directions import DirectionBank, load_bank
from fastdirs.errors import BankError, CheckpointError, OutputError, ShapeError, check_shape
from fastdirs.generators import Generator
from fastdirs.manifest import Json, sha256_file
from fastdirs.registry import Registry, unknown_name
from fastdirs.shift_space import ShiftSpace


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a foreign file holds, in the order, sign and length that it has there.

    Attributes:
        vectors: In the space `[num_directions, size]`, or paths at knots `[num_directions, knots, size]`,
            float. Where layers differ, `num_layers, dim` stands for `size`.
        knots: Epsilons of paths. `[knots]`, float; None if straight.
        scores: `[num_directions]`, float; None if the file has none.
        labels: Names that the file gives; None if it gives none.
        layers: Latent layers that the file says are to be edited; None if it says nothing.
        ranges: Lowest and highest length that the file suggests, in multiples of the vectors if straight,
            else in epsilon. `[num_directions, 2]`, float; None if it suggests none.
        tags: Words for each direction; empty if it has none.
        judges: Who named each direction; empty if it does not say.
        settings: What else the file says: truncation, the model it was made for, ...
    """

    vectors: Tensor
    knots: Tensor | None = None
    scores: Tensor | None = None
    labels: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    ranges: Tensor | None = None
    tags: Sequence[tuple[str, ...]] = ()
    judges: Sequence[str] = ()
    settings: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BankFormat:
    """One format of other programs.

    Attributes:
        summary: One line: program, file, content.
        suffix: What its files are called, such as ".npy"; "" for folders.
        recognises: Whether a file or folder is of this format, from its content. Runs nothing in it. Raises
            CheckpointError where that cannot be told because the file is broken, or would run code.
        read: (path, space, options) -> Imported. Raises BankError or CheckpointError. The space is that of
            all editable layers.
        write: (bank, path) -> None; None where the format is only read. Raises BankError where the format
            cannot hold the bank.
        options: Options of `read`, with a line of help each.
    """

    summary: str
    suffix: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, ShiftSpace, Mapping[str, str]], Imported]
    write: Callable[[DirectionBank, Path], None] | None = None
    options: Mapping[str, str] = field(default_factory=dict)


BANK_FORMATS: Registry[BankFormat] = Registry("fastdirs.interchange", "BANK_FORMAT", "bank format")


def import_bank(
    path: str | Path,
    generator: Generator,
    layers: Sequence[int] | None = None,
    format_name: str | None = None,
    options: Mapping[str, str] | None = None,
) -> DirectionBank:
    """Read directions that another program found in a generator.

    Signs stay as they are. A straight direction is brought to unit length (where layers differ in length, to
    1 in the root mean square over layers, so that their proportions stay); what its length was is recorded as
    `lengths` in the settings, and as its score if the file gives none: one unit of the other program is as
    many of ours. Paths keep their epsilons.

    Args:
        path: A file, or the folder of a run.
        generator: The one that the directions were found in.
        layers: Latent layers to edit; None = those that the file says, or all that are editable.
        format_name: Registered name; None = recognised from the content.
        options: The format's options by name, as text; see `fastdirs list formats`.

    Raises:
        BankError: Missing, broken, refused because it would run code, of no known format, of another size or
            space than the generator's, not finite, or without what is needed to make sense of it.
        UnknownNameError: No such format or option.
        SelectionError: A layer that the generator does not have, or an option value out of range.
    """
    path = Path(path)
    whole = ShiftSpace(generator, generator.editable)
    given = dict(options or {})
    try:
        name = recognise_bank(path, format_name)
        plugin = BANK_FORMATS.load(name)
        for option in given:
            if option not in plugin.options:
                raise unknown_name(f"option of {name}", option, plugin.options)
        imported = plugin.read(path, whole, given)
    except CheckpointError as error:
        raise BankError(str(error)) from error
    try:
        _check(path, imported)
        return _assembled(path, name, imported, whole, layers)
    except ShapeError as error:
        raise BankError(
            f"{path} holds things that do not fit each other ({error}) Get it again from where it was made."
        ) from error


def recognise_bank(path: Path, format_name: str | None = None) -> str:
    """The format of a file or folder, from its content.

    Args:
        path: The file or folder.
        format_name: The only one that it may be of; None = any.

    Raises:
        BankError: Missing, a bank of fastdirs already, or of no such format.
        CheckpointError: Broken, or it would run code.
        UnknownNameError: No such format.
    """
    if not path.exists():
        raise BankError(f"{path} does not exist. Check the path.")
    for name in BANK_FORMATS.names() if format_name is None else [format_name]:
        if BANK_FORMATS.load(name).recognises(path):
            return name
    if _is_bank(path):
        raise BankError(f"{path} is a direction bank of fastdirs already. Use it as it is.")
    if format_name is not None:
        raise BankError(
            f"{path} is not of the format {format_name} ({BANK_FORMATS.load(format_name).summary}). "
            "Leave the format out to have it recognised."
        )
    raise BankError(
        f"{path} is in none of the formats that directions are imported from: "
        f"{', '.join(BANK_FORMATS.names())}. What each of them is, `fastdirs list formats` says."
    )


def export_bank(
    bank: DirectionBank, path: str | Path, format_name: str | None = None, force: bool = False
) -> None:
    """Write a bank for other programs.

    Args:
        bank: Any bank; which ones a format can hold, its summary says.
        path: The file.
        format_name: Registered name; None = the one whose files end as `path` does.
        force: Replace a file that exists, unless it is a direction bank.

    Raises:
        BankError: The format cannot hold the bank, or is only read.
        UnknownNameError: No such format, or none with this ending.
        OutputError: The file exists, or cannot be written.
    """
    path = Path(path)
    writers = {n: BANK_FORMATS.load(n) for n in BANK_FORMATS.names() if BANK_FORMATS.load(n).write}
    if format_name is None:
        endings = {plugin.suffix: name for name, plugin in writers.items()}
        if path.suffix not in endings:
            raise unknown_name("bank format for files that end in", path.suffix, endings)
        format_name = endings[path.suffix]
    write = BANK_FORMATS.load(format_name).write
    if write is None:
        raise BankError(
            f"{format_name} is only read. Formats that are written: {', '.join(sorted(writers))}."
        )
    if path.exists() and not force:
        raise OutputError(f"{path} exists already. Choose another --out, or pass --force to replace it.")
    if path.exists() and _is_bank(path):
        raise OutputError(f"{path} is a direction bank, so it is left alone. Choose another --out.")
    write(bank, path)


def _is_bank(path: Path) -> bool:
    try:
        load_bank(path)
    except BankError:
        return False
    return True


def _check(path: Path, imported: Imported) -> None:
    """Raises BankError or ShapeError where a file holds what no generator's directions can be."""
    vectors, knots, ranges = imported.vectors, imported.knots, imported.ranges
    before, leading = ("K", 1) if knots is None else ("K, knots", 2)
    if vectors.ndim - leading not in (1, 2):
        raise BankError(
            f"{path} holds directions of shape {list(vectors.shape)}. Expected [{before}, size] or "
            f"[{before}, layers, dim]. Get it again from where it was made."
        )
    if vectors.is_complex():
        raise BankError(f"{path} holds directions of complex numbers. Expected real ones. Name another file.")
    if not len(vectors):
        raise BankError(f"{path} holds no directions. Name another file.")
    # Paths are kept as they are, in float32.
    paths = [] if knots is None else [vectors.float(), knots.float()]
    numbers = [vectors, *paths, imported.scores, ranges]
    if any(not bool(torch.isfinite(tensor).all()) for tensor in numbers if tensor is not None):
        raise BankError(f"{path} has NaN or infinite values. Get it again from where it was made.")
    if knots is not None and (vectors.shape[1:2] != knots.shape or len(knots) < 2):
        raise BankError(f"{path} holds knots and paths that do not fit each other. Make it again.")
    if ranges is not None:
        check_shape(ranges, "directions 2", "ranges", directions=len(vectors))
        for index, (low, high) in enumerate(ranges.tolist()):
            if low > high:
                raise BankError(
                    f"{path} suggests a range from {low:g} to {high:g} for direction {index}. "
                    "Expected the lowest length first. Correct it in the file."
                )


def _assembled(
    path: Path, name: str, imported: Imported, whole: ShiftSpace, layers: Sequence[int] | None
) -> DirectionBank:
    """The bank of what a file holds, of the chosen layers. Raises ShapeError where parts do not fit."""
    generator, knots = whole.generator, imported.knots
    chosen = layers if layers is not None else imported.layers
    space = whole if chosen is None else ShiftSpace(generator, tuple(sorted(set(chosen))))
    vectors = _each_layer(path, imported, whole)
    left_out = [layer for layer in range(generator.num_layers) if layer not in space.layers]
    vectors[..., left_out, :] = 0
    for index, moves in enumerate(vectors.flatten(1).any(dim=1).tolist()):
        if not moves:
            raise BankError(
                f"Direction {index} of {path} goes nowhere in layers {_shown(space.layers)} of "
                f"{generator.provenance.name}. Choose other layers, or leave it out of the file."
            )
    # Of a path: from end to end, for each unit of epsilon.
    reach = vectors if knots is None else (vectors[:, -1] - vectors[:, 0]) / float(knots[-1] - knots[0])
    lengths = _lengths(reach.double(), whole)
    scores = lengths if imported.scores is None else imported.scores
    ranges = imported.ranges
    if not bool(torch.isfinite(lengths).all()) or (knots is None and not bool(lengths.all())):
        raise BankError(f"{path} has directions whose length is beyond all numbers. Scale them in the file.")
    if knots is None:
        vectors = vectors / lengths[:, None, None]
        ranges = None if ranges is None else ranges * lengths[:, None]
    for kept in (scores, ranges):
        if kept is not None and not bool(torch.isfinite(kept.float()).all()):
            raise BankError(
                f"{path} has lengths, scores or ranges beyond all of float32. Scale them in the file."
            )
    source = {"file": path.name, **({"sha256": sha256_file(path)} if path.is_file() else {})}
    bank = space.bank(
        vectors.float(), scores, name,
        {**source, **imported.settings, "lengths": lengths.tolist()}, knots, imported.labels,
        keep_signs=True,
    )  # fmt: skip
    return replace(
        bank,
        ranges=bank.ranges if ranges is None else ranges.float().contiguous(),
        tags=tuple(imported.tags),
        judges=tuple(imported.judges),
    )


def _each_layer(path: Path, imported: Imported, whole: ShiftSpace) -> Tensor:
    """The vectors for each layer, in memory of their own.

    Straight `[num_directions, num_layers, dim]`, float64; paths `[num_directions, knots, num_layers, dim]`,
    float32.
    """
    generator, vectors = whole.generator, imported.vectors
    vectors = vectors.double() if imported.knots is None else vectors.float()
    leading = 1 if imported.knots is None else 2
    if vectors.ndim == leading + 1 and vectors.shape[-1] == whole.size:
        return whole.spread(vectors).clone()
    if vectors.ndim == leading + 2 and vectors.shape[leading:] == (generator.num_layers, generator.dim):
        return vectors.clone()
    of_layers = "" if vectors.ndim == leading + 1 else f"{vectors.shape[-2]} layers of "
    layers = f", in {generator.num_layers} layers" if generator.num_layers > 1 else ""
    wanted = f"{generator.num_layers} layers of {generator.dim}" if generator.chunked else str(generator.dim)
    raise BankError(
        f"{path} holds directions of {of_layers}{vectors.shape[-1]} numbers, but the latents of "
        f"{generator.provenance.name} have {wanted}{'' if generator.chunked else layers} "
        f"(space {generator.space}). Name the generator that they were found in."
    )


def _lengths(vectors: Tensor, space: ShiftSpace) -> Tensor:
    """Length of each direction: over all layers together where these are parts of z, else of a layer on
    average (root mean square) over those that it touches. `[num_directions]`, of the same dtype.
    """
    if space.generator.chunked:
        whole: Tensor = vectors.flatten(1).norm(dim=1)
        return whole
    squares = vectors.square().sum(dim=2)
    lengths: Tensor = (squares.sum(dim=1) / (squares > 0).sum(dim=1).clamp(min=1)).sqrt()
    return lengths


def _shown(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
