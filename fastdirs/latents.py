"""Seeds to z, truncation, and the number lists of the command line (seeds, layers, directions, epsilons)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastdirs.errors import SelectionError

MAX_SEED = 2**32 - 1
MAX_EPSILON = 1000.0
MAX_PSI = 1000.0
MAX_INDICES = 1_000_000
"""The longest list of seeds or directions that is read from text."""


def sample_z(seeds: Sequence[int], z_dim: int) -> Tensor:
    """Gaussian latents, one independent random generator per seed.

    Row i depends on `seeds[i]` alone: not on the batch it is drawn in, the device or the number of workers.

    Args:
        seeds: Seeds from 0 to 2**32 - 1.
        z_dim: Size of z.

    Returns:
        Standard normal z. `[batch, z_dim]`, float32, on the CPU.

    Raises:
        SelectionError: A seed outside the range.

    Source:
        The convention of NVIDIA's StyleGAN scripts (`RandomState(seed).randn`): a seed known from there shows
        the same picture here; numpy promises never to change this stream.
    """
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise SelectionError(f"Seed {seed} is out of range. Seeds run from 0 to {MAX_SEED}.")
    rows = [np.random.RandomState(seed).randn(z_dim) for seed in seeds]
    return torch.from_numpy(np.asarray(rows, dtype=np.float32).reshape(len(rows), z_dim))


def psi_per_layer(psi: float, cutoff: int | None, num_layers: int) -> Tensor:
    """Truncation strength of each layer: psi on the first `cutoff` layers (None: on all), 1 on the rest.

    Returns:
        `[layers]`, float32.

    Raises:
        SelectionError: psi is not finite, or the cutoff is outside 0 to `num_layers`.
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
    return values


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
