"""Curved paths of other programs: at which epsilons they are tabulated, from which latent they go."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastdirs.errors import BankError, SelectionError
from fastdirs.latents import parse_epsilons
from fastdirs.shift_space import ShiftSpace

Heading = Callable[[Tensor], Tensor]
"""Where paths go from latents: `[num_directions, size]` -> unit vectors `[num_directions, size]`."""

EPSILONS_HELP = "where paths are tabulated, as first:last:count or a list"
AT_HELP = "the latent that paths set out from: mean, or a seed"


def knots_of(options: Mapping[str, str], default: str) -> Tensor:
    """The option `epsilons`, or its default, with 0 put in. `[knots]`, float32.

    Raises:
        SelectionError: No list of epsilons, or only 0.
    """
    knots = sorted({*parse_epsilons(options.get("epsilons", default)), 0.0})
    if len(knots) < 2:
        raise SelectionError("epsilons=0 is one point, not a path. Expected a list such as -8:8:33.")
    return torch.tensor(knots, dtype=torch.float32)


def start_of(path: Path, space: ShiftSpace, options: Mapping[str, str]) -> Tensor:
    """The option `at` as a latent, `[size]`, float32.

    Raises:
        BankError: It is missing: without it there are as many paths as latents.
        SelectionError: Neither "mean" nor a seed.
    """
    generator = space.generator
    if "at" not in options:
        raise BankError(
            f"Where the paths of {path} lead depends on the latent that they set out from, so they are no "
            "directions for all latents. Choose one with the option at=mean or at=SEED: its paths are then "
            "used for every latent, which is exact for that latent alone."
        )
    at = options["at"]
    if at == "mean":
        return space.gather(generator.latent_mean[None])[0].float()
    if not at.isdecimal():
        raise SelectionError(f"at={at!r} is no latent. Expected mean, or a seed such as at=7.")
    with torch.no_grad():
        latents = generator.mapping(generator.sample([int(at)]), generator.sample_classes([int(at)]))
    return space.gather(latents)[0].float()


def unit(vectors: Tensor) -> Tensor:
    """Vectors at unit length, NaN where they have none. `[num_directions, size]`, float."""
    lengths: Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / lengths


def walk(path: Path, start: Tensor, knots: Tensor, heading: Heading, num_directions: int) -> Tensor:
    """Go along paths both ways, a straight step from each knot to the next.

    Args:
        path: The file, for the message.
        start: `[size]`, float32.
        knots: Ascending, with 0. `[knots]`, float32.
        heading: See `Heading`.
        num_directions: K.

    Returns:
        Shifts from the start, `[num_directions, knots, size]`, float32.

    Raises:
        BankError: A path has nowhere to go from the start.
    """
    paths = torch.zeros(num_directions, len(knots), len(start))
    middle = int((knots == 0).nonzero()[0])
    begin = start.expand(num_directions, -1)
    for order in (range(middle + 1, len(knots)), range(middle - 1, -1, -1)):
        place, last = begin, middle
        for knot in order:
            place = place + (knots[knot] - knots[last]) * heading(place)
            paths[:, knot], last = place - begin, knot
    if not torch.isfinite(paths).all():
        raise BankError(f"A path of {path} has nowhere to go from this latent. Choose another with at=SEED.")
    return paths
