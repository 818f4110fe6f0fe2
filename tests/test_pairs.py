"""The pairs that reconstructors learn from."""

import numpy as np
import pytest
import torch

from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.pairs import FIRST_TRAINING_SEED, ShiftDistribution, draw_pairs, visibility


def test_a_step_depends_on_its_number_alone(toy: Generator) -> None:
    shifts = ShiftDistribution()
    first = draw_pairs(toy, 5, shifts, 8, step=3)
    draw_pairs(toy, 5, shifts, 8, step=4)
    again = draw_pairs(toy, 5, shifts, 8, step=3)
    for name in ("z", "directions", "epsilons"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.classes is None


def test_no_two_steps_share_latents(toy: Generator) -> None:
    z = torch.cat([draw_pairs(toy, 5, ShiftDistribution(), 8, step).z for step in range(20)])
    assert len(z.unique(dim=0)) == 160
    assert torch.equal(z[:1], toy.sample([FIRST_TRAINING_SEED]))


def test_held_out_latents_are_those_that_people_look_at(toy: Generator) -> None:
    held_out = draw_pairs(toy, 5, ShiftDistribution(), 4, 1, first_seed=0)
    assert torch.equal(held_out.z, toy.sample(range(4, 8)))


def test_another_seed_draws_others(toy: Generator) -> None:
    one, other = (draw_pairs(toy, 5, ShiftDistribution(), 64, 0, seed) for seed in (0, 1))
    assert not torch.equal(one.directions, other.directions)
    assert not torch.equal(one.z, other.z)


def test_a_class_for_each_pair(conditional: Generator) -> None:
    pairs = draw_pairs(conditional, 5, ShiftDistribution(), 64, 0)
    assert pairs.classes is not None
    assert set(pairs.classes.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("name", ["uniform", "normal"])
def test_lengths(name: str) -> None:
    epsilon = ShiftDistribution(name, 6.0, 0.5).draw(np.random.default_rng(0), 20_000)
    assert epsilon.abs().min() == 0.5
    assert abs(epsilon.mean()) < 0.15
    spread = 6.0 / 3**0.5 if name == "uniform" else 6.0
    assert abs(epsilon.std() - spread) < 0.15
    assert (epsilon.abs().max() <= 6) == (name == "uniform")
    # What lay nearer to zero was moved out, not dropped.
    share = (epsilon.abs() == 0.5).float().mean()
    assert abs(share - (1 / 12 if name == "uniform" else 0.0664)) < 0.01


def test_company_for_each_direction(toy: Generator) -> None:
    pairs = draw_pairs(toy, 16, ShiftDistribution(), 24, 0, per_direction=4)
    rows = pairs.directions.reshape(4, 6)
    assert (rows == rows[0]).all()
    assert len(rows[0].unique()) == 6
    assert len(pairs.z.unique(dim=0)) == 24
    many = draw_pairs(toy, 3, ShiftDistribution(), 16, 0, per_direction=2).directions
    assert torch.bincount(many, minlength=3).min() >= 4


def test_mistakes(toy: Generator) -> None:
    with pytest.raises(SelectionError, match="A batch of 9 cannot hold 2 pairs"):
        draw_pairs(toy, 5, ShiftDistribution(), 9, 0, per_direction=2)
    for wrong in (
        {"name": "gauss"},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"minimum": 7.0},
        {"minimum": -1.0},
    ):
        with pytest.raises(SelectionError):
            ShiftDistribution(**wrong)


def test_visibility() -> None:
    assert visibility(0.0) == 0
    assert visibility(8.0) == 0.5
    assert 0.9 < visibility(100.0) < 1
    torch.testing.assert_close(visibility(torch.tensor([0.0, 8.0])), torch.tensor([0.0, 0.5]))
