"""From a checkpoint's names and shapes to a generator's: every tensor accounted for, or an error."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import Generator, Provenance
from fastdirs.registry import unknown_name

Source = str | tuple[str, Callable[[Tensor], Tensor]]
"""A tensor's name in the checkpoint, and how it is laid out: reshaped, permuted, flipped or sliced."""


def fill(
    generator: Generator,
    checkpoint: Checkpoint,
    sources: Mapping[str, Source],
    unused: Sequence[str] = (),
) -> None:
    """Copy a checkpoint's tensors into a generator, value by value.

    Args:
        generator: The generator, with any weights.
        checkpoint: Where the tensors come from.
        sources: For each tensor of the generator's state dict, where it stands in the checkpoint; what is
            left out keeps the value that the generator was built with.
        unused: Regular expressions for names that the checkpoint may hold and that no picture depends on.

    Raises:
        CheckpointError: A tensor is missing, has another shape, is not finite, or is no part of the family.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    named = {target: (s, _as_it_is) if isinstance(s, str) else s for target, s in sources.items()}
    missing = [name for name, _ in named.values() if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{path} is incomplete: {missing[0]!r} is missing ({len(missing)} such tensors), so it is no "
            f"whole {generator.family} generator. Download or save it again."
        )
    used = {name for name, _ in named.values()}
    known = re.compile("|".join(f"(?:{pattern})" for pattern in (*unused, r".*num_batches_tracked")))
    extra = [name for name in tensors if name not in used and not known.fullmatch(name)]
    if extra:
        raise CheckpointError(
            f"{path} holds {extra[0]!r}, which is no part of a {generator.family} generator ({len(extra)} "
            "such tensors): it may be a variant that fastdirs does not know. Report it with this name, or "
            "choose another --family."
        )
    state = generator.state_dict()
    for target, (name, lay_out) in named.items():
        state[target] = _copied(path.name, name, tensors[name], lay_out, state[target])
    generator.load_state_dict(state)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _copied(
    file: str, name: str, tensor: Tensor, lay_out: Callable[[Tensor], Tensor], target: Tensor
) -> Tensor:
    """The values in the place, shape and type of the target; float32 holds all of them exactly."""
    try:
        laid_out = lay_out(tensor)
    except (RuntimeError, IndexError) as error:
        raise _misshapen(file, name, tensor, target) from error
    if laid_out.shape != target.shape:
        raise _misshapen(file, name, tensor, target)
    if laid_out.is_floating_point() and not torch.isfinite(laid_out).all():
        raise CheckpointError(
            f"{file} has NaN or infinite values in {name!r}: its training failed or the file is damaged. "
            "Take an earlier snapshot, or download it again."
        )
    copied = laid_out.to(target.dtype).contiguous()
    if not torch.equal(copied.to(laid_out.dtype), laid_out):
        raise CheckpointError(
            f"{file} holds {name!r} as {str(laid_out.dtype)[6:]}, which {str(target.dtype)[6:]} cannot hold "
            "exactly. Save it as float32."
        )
    return copied


def _misshapen(file: str, name: str, tensor: Tensor, target: Tensor) -> CheckpointError:
    return CheckpointError(
        f"{file} holds {name!r} of shape {list(tensor.shape)}, where the other tensors ask for one like "
        f"{list(target.shape)}. The file is damaged or of another variant."
    )


def shape_of(checkpoint: Checkpoint, name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor that the architecture is read from.

    Args:
        checkpoint: Where to look.
        name: The tensor.
        ndim: How many axes it must have.

    Raises:
        CheckpointError: It is missing, or has another number of axes.
    """
    tensor = checkpoint.tensors.get(name)
    if tensor is None:
        raise CheckpointError(
            f"{checkpoint.path} is incomplete: {name!r} is missing. Download or save it again."
        )
    if tensor.ndim != ndim or 0 in tensor.shape:
        raise CheckpointError(
            f"{checkpoint.path} holds {name!r} of shape {list(tensor.shape)}. Expected {ndim} axes: the file "
            "is damaged or of another variant."
        )
    return tuple(tensor.shape)


def count_of(checkpoint: Checkpoint, pattern: str) -> int:
    """How many layers a numbered name has: one more than the largest number in the pattern's first group."""
    numbers = [int(m[1]) for m in (re.fullmatch(pattern, name) for name in checkpoint.tensors) if m]
    # A name may hold any number; no whole generator has more layers than tensors.
    return 1 + max((number for number in numbers if number < len(checkpoint.tensors)), default=-1)


def check_channels(checkpoint: Checkpoint, channels: int) -> None:
    """Raises CheckpointError unless a picture of so many channels is grey or RGB."""
    if channels not in (1, 3):
        raise CheckpointError(
            f"{checkpoint.path} makes images of {channels} channels. Expected 1 (grey) or 3 (RGB): the file "
            "is damaged or of another kind."
        )


def check_settings(checkpoint: Checkpoint, told: Mapping[str, object]) -> None:
    """Refuse settings of another network.

    Args:
        checkpoint: Settings that it does not hold are not compared.
        told: What the tensors say, under the name that each setting has in the file.

    Raises:
        CheckpointError: A setting has another value.
    """
    for name, value in told.items():
        said = checkpoint.settings.get(name, value)
        if said != value:
            raise CheckpointError(
                f"{checkpoint.path} says {name}={said!r}, but its tensors are those of {name}={value!r}. The "
                "settings belong to other weights: take both from one training run."
            )


def check_positive(checkpoint: Checkpoint, pattern: str, zero: bool = False) -> None:
    """Refuse tensors that no training makes.

    Args:
        checkpoint: Where to look.
        pattern: Regular expression for the whole names of the tensors.
        zero: Whether zeros are fine, as in variances, to which an epsilon is added.

    Raises:
        CheckpointError: A value is negative, or zero where that is not fine.
    """
    for name, tensor in checkpoint.tensors.items():
        if re.fullmatch(pattern, name) and bool((tensor < 0 if zero else tensor <= 0).any()):
            wrong = "negative values" if zero else "values of zero or less"
            raise CheckpointError(
                f"{checkpoint.path} has {wrong} in {name!r}, such as {tensor.min():g}: the file is damaged. "
                "Download or save it again."
            )


def check_grown(checkpoint: Checkpoint, name: str) -> None:
    """Raises CheckpointError where the tensor `name`, if there is one, says that layers are unused yet."""
    lod = checkpoint.tensors.get(name)
    if lod is not None and bool((lod != 0).any()):
        raise CheckpointError(
            f"{checkpoint.path} has {name}={lod.flatten()[0]:g}: its training ended before the network had "
            f"grown to its full size, so its last layers make no picture. Take a later snapshot, with "
            f"{name}=0."
        )


def provenance_of(checkpoint: Checkpoint, assumed: Sequence[str]) -> Provenance:
    """Where a generator comes from: named after its folder, or its file without the ending.

    Args:
        checkpoint: What it was read from.
        assumed: Settings that were taken as usual, as "name=value".
    """
    path = checkpoint.path
    name = path.name if path.is_dir() else path.stem
    return Provenance(name=name, source=path.name, assumed=tuple(assumed))


def chosen(
    options: Mapping[str, str],
    option: str,
    usual: str,
    known: Sequence[str],
    assumed: list[str] | None = None,
) -> str:
    """An option's value out of a few.

    Args:
        options: What the user settled.
        option: Its name.
        usual: The published default.
        known: Every value.
        assumed: Where to note "option=usual" if the user said nothing and the file cannot know.

    Raises:
        UnknownNameError: Another value; the nearest is named.
    """
    if option not in options and assumed is not None:
        assumed.append(f"{option}={usual}")
    value = options.get(option, usual)
    check_known(option, value, known)
    return value


def check_known(name: str, value: str, known: Collection[str]) -> None:
    """Raises UnknownNameError, which names the nearest, where a setting is none of the known values."""
    if value not in known:
        raise unknown_name(name, value, known)


def number(
    options: Mapping[str, str],
    option: str,
    usual: float,
    low: float,
    high: float,
    assumed: list[str] | None = None,
) -> float:
    """An option's value as a number, from `low` to `high`.

    Args:
        options: What the user settled.
        option: Its name.
        usual: The published default.
        low: Smallest value.
        high: Largest value.
        assumed: Where to note "option=usual" if the user said nothing and the file cannot know.

    Raises:
        CheckpointError: No number, or out of range.
    """
    if option not in options:
        if assumed is not None:
            assumed.append(f"{option}={usual:g}")
        return usual
    try:
        value = float(options[option])
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise CheckpointError(
            f"{option}={options[option]!r} is out of range. Expected a number from {low:g} to {high:g}; the "
            f"usual one is {usual:g}."
        )
    return value
