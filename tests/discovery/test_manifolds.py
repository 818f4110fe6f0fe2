"""A network from one-hot vectors to curved paths."""

import pytest
import torch
from torch.nn import functional as F

from fastdirs.discovery import discover
from fastdirs.discovery._learned import NUM_KNOTS
from fastdirs.discovery.manifolds import CentroidLoss, Manifold
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator

QUICK = {
    "steps": "4",
    "batch": "8",
    "log_every": "2",
    "save_every": "2",
    "precision": "f32",
    "held_out": "16",
    "picture_every": "0",
}


def test_paths_curve_begin_at_zero_and_have_their_length() -> None:
    torch.manual_seed(0)
    manifold = Manifold(3, 8, 16, 6.0)
    knots = torch.linspace(-6, 6, 7)
    paths = manifold.paths(knots)
    assert not paths[:, 3].any()
    torch.testing.assert_close(paths.norm(dim=2), knots.abs().expand(3, 7))
    assert not torch.allclose(paths[:, 6], 2 * (paths[:, 4] + paths[:, 5]) / 2, atol=1e-3)
    # No kink at zero: both sides leave along one line.
    near = manifold.paths(torch.tensor([-1e-3, 1e-3]))
    cosine = F.cosine_similarity(near[:, 0], -near[:, 1], dim=1)
    torch.testing.assert_close(cosine, torch.ones(3), rtol=0, atol=1e-4)


def test_the_basis_form_is_the_same() -> None:
    manifold = Manifold(3, 8, 16, 6.0)
    basis = torch.tensor([[0.0, -2.0, 0.0], [0.5, 0.0, 0.0]])
    wanted = manifold(torch.tensor([1, 0]), torch.tensor([-2.0, 0.5]))
    torch.testing.assert_close(manifold.deform(basis), wanted)


def test_centroid_loss_is_ge2e() -> None:
    torch.manual_seed(0)
    features, directions = torch.randn(6, 5), torch.tensor([4, 1, 4, 1, 4, 1])
    unit = F.normalize(features, dim=1)
    total = 0.0
    for row in range(6):
        scores = []
        for direction in (1, 4):
            members = [j for j in range(6) if directions[j] == direction and j != row]
            scores.append(10 * F.cosine_similarity(unit[row], unit[members].mean(dim=0), dim=0) - 5)
        own = 0 if directions[row] == 1 else 1
        total += F.cross_entropy(torch.stack(scores)[None], torch.tensor([own]))
    torch.testing.assert_close(CentroidLoss()(features, directions), total / 6)


def test_centroid_loss_falls_when_features_gather() -> None:
    loss, directions = CentroidLoss(), torch.arange(4).repeat(3)
    apart = torch.eye(4).repeat(3, 1)
    torch.manual_seed(0)
    assert loss(apart, directions) < loss(apart + 0.3 * torch.randn(12, 4), directions)
    # Where all features are alike, nothing tells directions apart: the logarithm of their number.
    torch.testing.assert_close(loss(torch.ones(12, 4), directions), torch.tensor(4.0).log())
    loss(apart + 0.1 * torch.randn(12, 4), directions).backward()
    assert loss.log_scale.grad is not None


@pytest.mark.parametrize("weight", ["0", "0.1"])
def test_a_bank_of_paths(toy: Generator, weight: str) -> None:
    bank = discover(toy, "manifolds", 3, settings={**QUICK, "centroid_weight": weight})
    assert bank.curved
    assert bank.directions.shape == (3, NUM_KNOTS, 1, toy.dim)
    ends = bank.directions[:, -1] - bank.directions[:, 0]
    assert (ends.flatten(1).gather(1, ends.flatten(1).abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("scale", ["1", "4.1", "5", "0.7"])
def test_knots_are_symmetric_and_hold_zero_at_any_scale(toy: Generator, scale: str) -> None:
    bank = discover(toy, "manifolds", 2, settings={**QUICK, "shift_scale": scale, "min_shift": "0.1"})
    assert bank.knots is not None
    assert torch.equal(bank.knots, -bank.knots.flip(0))
    torch.testing.assert_close(bank.knots[-1], torch.tensor(float(scale)))


def test_the_centroid_loss_changes_what_is_found(toy: Generator) -> None:
    banks = [discover(toy, "manifolds", 3, settings={**QUICK, "centroid_weight": w}) for w in ("0", "10")]
    assert not torch.equal(banks[0].directions, banks[1].directions)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"per_direction": "1"}, "per_direction=1 and hidden=128 are out of range"),
        ({"hidden": "0"}, "hidden=0 are out of range"),
        ({"centroid_weight": "-1"}, "centroid_weight=-1 is out of range"),
        ({"centroid_weight": "nan"}, "centroid_weight=nan is out of range"),
        ({"batch": "10"}, "A batch of 10 cannot be shared by 1 processes with 4 pairs"),
    ],
)
def test_mistakes(toy: Generator, wrong: dict[str, str], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        discover(toy, "manifolds", 3, settings={**QUICK, **wrong})
