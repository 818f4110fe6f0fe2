from collections.abc import Callable

import torch

from fastdirs.discovery import discover
from fastdirs.generators import Generator


def test_each_direction_is_an_axis(toy: Generator) -> None:
    bank = discover(toy, "coordinate", 5)
    assert torch.equal(bank.directions[:, 0], torch.eye(16)[:5])
    assert not bank.scores.any()


def test_axes_of_the_chosen_parts_of_z(random_generator: Callable[[str], Generator]) -> None:
    biggan = random_generator("biggan")
    bank = discover(biggan, "coordinate", 2 * biggan.dim, layers=[1, 3])
    assert torch.equal(bank.directions[:, [1, 3]].flatten(1), torch.eye(2 * biggan.dim))
    assert not bank.directions[:, [0, 2]].any()
