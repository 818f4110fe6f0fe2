"""Seeds to z, classes, truncation, and the number lists of the command line (seeds, layers, epsilons)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdirs.errors import ContractError, SelectionError, check_shape

MAX_SEED = 2**63 - 1
_WORD = 2**32
MAX_EPSILON = 1000.0
MAX_PSI = 1000.0
MAX_INDICES = 1_000_000
"""The longest list of seeds or directions that is read from text."""


def sample_z(seeds: Sequence[int], z_dim: int, z_bound: float | None = None) -> Tensor:
    """Latents to start from, one independent random generator per seed.

    Row i depends on `seeds[i]` alone: not on the batch it is drawn in, the device or the number of workers.

    Args:
        seeds: Seeds from 0 to 2**63 - 1.
        z_dim: Size of z.
        z_bound: None for normal z; else values beyond plus or minus this do not occur.

    Returns:
        Standard normal z, or z of the truncated normal distribution. `[batch, z_dim]`, float32, on the CPU.

    Raises:
        SelectionError: A seed outside the range.

    Source:
        Normal: the convention of NVIDIA's StyleGAN scripts (`RandomState(seed).randn`): a seed known from
        there shows the same picture here; numpy promises never to change this stream. Truncated: inverse
        distribution function of `RandomState(seed).uniform`, as SciPy's `truncnorm` that BigGAN's users draw
        from (Brock et al. 2019, section 3.1, with the bound 2).
    """
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise SelectionError(f"Seed {seed} is out of range. Seeds run from 0 to {MAX_SEED}.")
    states = [_random_state(seed) for seed in seeds]
    if z_bound is None:
        rows = [state.randn(z_dim) for state in states]
        return torch.from_numpy(np.asarray(rows, dtype=np.float32).reshape(len(rows), z_dim))
    uniform = np.asarray([state.uniform(size=z_dim) for state in states]).reshape(len(states), z_dim)
    below = 0.5 * math.erfc(z_bound / math.sqrt(2))
    z: Tensor = torch.special.ndtri(torch.from_numpy(below + uniform * (1 - 2 * below)))
    return z.float()


def sample_classes(seeds: Sequence[int], c_dim: int) -> Tensor:
    """A class for each seed, to measure a conditional generator with: `[batch]`, int64."""
    return torch.tensor([_random_state(seed).randint(c_dim) for seed in seeds], dtype=torch.int64)


def _random_state(seed: int) -> np.random.RandomState:
    """numpy's generator of a seed; one of more than 32 bits, which numpy takes as two words, has its own."""
    return np.random.RandomState(seed if seed < _WORD else [seed % _WORD, seed // _WORD])


def class_weights(c: int | Tensor | NDArray[np.generic], count: int, c_dim: int) -> Tensor:
    """Classes in the form that networks multiply with.

    Args:
        c: One class for all, a class index for each image `[batch]`, or weights `[batch, c_dim]`, float:
            one-hot, or a mixture of classes.
        count: How many images, the size of the batch.
        c_dim: Number of classes.

    Returns:
        `[batch, c_dim]`, float32.

    Raises:
        SelectionError: No such class.
        ShapeError: Another shape.
    """
    given = torch.as_tensor(c)
    if given.ndim == 2:
        check_shape(given, "batch c_dim", "c", batch=count, c_dim=c_dim)
        return given.float()
    index = given.expand(count) if given.ndim == 0 else given
    check_shape(index, "batch", "c", batch=count)
    wrong = [value for value in index.tolist() if not 0 <= value < c_dim or value != int(value)]
    if wrong:
        raise SelectionError(f"There is no class {wrong[0]}. Classes run from 0 to {c_dim - 1}.")
    return torch.nn.functional.one_hot(index.long(), c_dim).float()


def check_class(generator: Mapping[str, Any], c: int | None) -> None:
    """Whether a class, or none, is what a generator needs to make images.

    Args:
        generator: Its identity.
        c: The class.

    Raises:
        ContractError: A class for an unconditional generator, or none for a conditional one.
        SelectionError: A class out of range.
    """
    name, c_dim = generator["name"], int(generator.get("c_dim", 0))
    if c is not None and not c_dim:
        raise ContractError(f"{name} takes no class. Leave it out.")
    if c is None and c_dim:
        raise ContractError(f"{name} needs a class. Name one from 0 to {c_dim - 1}.")
    if c is not None:
        class_weights(c, 1, c_dim)


def psi_per_layer(psi: float, cutoff: int | None, num_layers: int, truncation_rows: int = 0) -> Tensor:
    """Truncation strength of each layer: psi on the first `cutoff` layers (None: on all), 1 on the rest.

    Args:
        psi: Truncation, 1 = off, 0 = the mean.
        cutoff: How many of the first layers to truncate; None = all.
        num_layers: Layers of the latents.
        truncation_rows: Where batch norm statistics depend on psi: how many sets of them the generator holds.
            Then the last layer takes no part in the truncation: its value is the place among these sets.

    Returns:
        `[layers]`, float32.

    Raises:
        SelectionError: psi is not finite or not covered by the statistics, or the cutoff is outside 0 to
            `num_layers`.
    """
    if not abs(psi) <= MAX_PSI:
        raise SelectionError(
            f"psi is {psi:g}. Expected a number from -1000 to 1000; 1 switches truncation off."
        )
    count = num_layers if cutoff is None else cutoff
    if not 0 <= count <= num_layers:
        raise SelectionError(f"Cutoff {count} is out of range. The generator has {num_layers} layers.")
    values = torch.ones(num_layers)
    values[:count] = psi
    if truncation_rows:
        values[-1] = statistics_place(psi, truncation_rows)
    return values


def statistics_place(psi: float, rows: int) -> float:
    """Where among the sets of batch norm statistics, kept for truncations 0 to 1, a truncation lies.

    Args:
        psi: Truncation, 0 to 1.
        rows: How many sets.

    Returns:
        0 to `rows - 1`; between two whole numbers the two sets are mixed linearly.

    Raises:
        SelectionError: A truncation outside 0 to 1.

    Source:
        pytorch-pretrained-BigGAN. Its interpolation gives the two neighbouring sets each other's share; and
        its division in float64 may end a hair below a whole number, where this takes the set before. Both are
        kept, since its pictures are the published ones.
    """
    if not 0 <= psi <= 1:
        raise SelectionError(
            f"psi is {psi:g}, but this generator's batch norm statistics cover 0 to 1. Choose one of these."
        )
    share, first = math.modf(psi / (1.0 / (rows - 1)))
    return first + (1 - share if share else 0)


def truncate(latents: Tensor, mean: Tensor, psi: Tensor) -> Tensor:
    """Pull latents towards their mean.

    Args:
        latents: `[batch, layers, dim]`, float32.
        mean: Mean of the latents. `[dim]` or `[layers, dim]`, float32.
        psi: Strength for each layer, 1 = unchanged. `[layers]`, float32.

    Returns:
        `mean + psi * (latents - mean)`. `[batch, layers, dim]`, float32.

    Source:
        Karras et al. 2019 (StyleGAN), section "truncation trick in W".
    """
    return mean + psi[:, None] * (latents - mean)


def parse_indices(text: str, count: int, noun: str) -> tuple[int, ...]:
    """Read "all", "3", "0,4,7" or "6-13" (both ends included), sorted and without repeats.

    Args:
        text: What the user wrote.
        count: Valid indices run from 0 to `count - 1`.
        noun: "layer", "direction" or "seed", for the message.

    Raises:
        SelectionError: Not such a list, empty, too long, or an index out of range.
    """
    if text.strip() == "all":
        return tuple(range(count))
    chosen: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SelectionError(f"{text!r} is not a list of {noun}s. Expected 'all', '0,4,7' or '6-13'.")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise SelectionError(f"{part!r} runs backwards. Write the smaller {noun} first.")
        # Checked before the range is expanded: "0-99999999999" must not fill the memory.
        if high >= count:
            raise SelectionError(
                f"There is no {noun} {high}. {noun.capitalize()}s run from 0 to {count - 1}."
            )
        if len(chosen) + high - low >= MAX_INDICES:
            raise SelectionError(f"{text!r} asks for more than {MAX_INDICES} {noun}s. Ask for fewer.")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds such as "0-63" or "5,9".

    Raises:
        SelectionError: Not such a list, or a seed out of range.
    """
    if text.strip() == "all":
        raise SelectionError("Seeds have no 'all'. Expected a list such as '0-63' or '5,9'.")
    return parse_indices(text, MAX_SEED + 1, "seed")


def parse_epsilons(text: str) -> tuple[float, ...]:
    """Read epsilons: "-6:6:9" (first, last, how many, evenly spaced) or "-3,0,3"; ascending, without repeats.

    Raises:
        SelectionError: Not such a list, or a value that is not finite or beyond ±1000, wider than any latent
            space.
    """
    expected = "Expected first:last:count such as '-6:6:9', or a list such as '-3,0,3'."
    try:
        if ":" in text:
            first, last, count = text.split(":")
            if not 2 <= int(count) <= 10_000:
                raise SelectionError(f"{text!r} asks for {count} epsilons. The count runs from 2 to 10000.")
            values = [float(first), float(last)]
        else:
            values = [float(value) for value in text.split(",")]
    except ValueError as error:
        raise SelectionError(f"{text!r} is not a list of epsilons. {expected}") from error
    for value in values:
        if not abs(value) <= MAX_EPSILON:
            raise SelectionError(f"Epsilon {value:g} is out of range. Expected values from -1000 to 1000.")
    if ":" in text:
        values = [float(value) for value in np.linspace(values[0], values[1], int(count))]
    # linspace may leave 1e-17 where 0 is meant; the plan renders epsilon = 0 once per seed: it must be exact.
    return tuple(sorted({round(value, 9) + 0.0 for value in values}))
