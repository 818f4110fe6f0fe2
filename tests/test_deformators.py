"""Which direction and how far -> a shift."""

import pytest
import torch

from fastdirs.deformators import DEFORMATORS, Fixed, Ortho, build_deformator
from fastdirs.errors import SelectionError, UnknownNameError

COUNT, SIZE = 4, 7


def made(kind: str, random_init: bool = True) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_deformator(kind, COUNT, SIZE, random_init)


@pytest.mark.parametrize("kind", DEFORMATORS)
def test_shifts_follow_the_basis(kind: str) -> None:
    deformator = made(kind).eval()
    directions, epsilons = torch.tensor([2, 0, 3]), torch.tensor([1.5, -6.0, 0.5])
    basis = torch.zeros(3, COUNT)
    for row, (direction, epsilon) in enumerate(zip(directions, epsilons, strict=True)):
        basis[row, direction] = epsilon
    torch.testing.assert_close(deformator(directions, epsilons), deformator.deform(basis))
    assert deformator(directions, epsilons).shape == (3, SIZE)


@pytest.mark.parametrize("kind", DEFORMATORS)
def test_epsilon_zero_changes_nothing(kind: str) -> None:
    deformator = made(kind)
    for mode in (True, False):
        shifts = deformator.train(mode)(torch.arange(COUNT), torch.zeros(COUNT))
        # A batch norm in training blows up the rounding of rows that are all alike.
        atol = 1e-2 if kind == "fc" and mode else 1e-6
        torch.testing.assert_close(shifts, torch.zeros(COUNT, SIZE), rtol=0, atol=atol)


@pytest.mark.parametrize("kind", DEFORMATORS)
def test_straight_ones_grow_with_epsilon(kind: str) -> None:
    deformator = made(kind)
    paths = deformator.paths(torch.tensor([1.0, 3.0]))
    assert paths.shape == (COUNT, 2, SIZE)
    assert torch.allclose(paths[:, 1], 3 * paths[:, 0], atol=1e-5) == deformator.straight


@pytest.mark.parametrize("kind", ["proj", "ortho", "id", "random"])
def test_unit_columns(kind: str) -> None:
    shifts = made(kind)(torch.arange(COUNT), torch.full((COUNT,), -2.0))
    torch.testing.assert_close(shifts.norm(dim=1), torch.full((COUNT,), 2.0))


@pytest.mark.parametrize("kind", ["ortho", "id", "random"])
def test_directions_at_right_angles(kind: str) -> None:
    vectors = made(kind).paths(torch.ones(1))[:, 0]
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(COUNT), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "proj", "ortho"])
def test_the_start_may_be_the_axes(kind: str) -> None:
    vectors = made(kind, random_init=False).paths(torch.ones(1))[:, 0]
    torch.testing.assert_close(vectors, torch.eye(COUNT, SIZE), rtol=0, atol=0.02)


def test_ortho_reaches_the_whole_space() -> None:
    # The original confines fewer directions to the first coordinates.
    assert made("ortho").paths(torch.ones(1))[:, 0, COUNT:].abs().max() > 0.1


def test_ortho_is_computed_once_in_evaluation_and_anew_in_training() -> None:
    ortho = made("ortho")
    assert isinstance(ortho, Ortho)
    assert ortho.matrix() is not ortho.matrix()
    ortho.eval()
    assert ortho.matrix() is ortho.matrix()
    before = ortho.matrix().clone()
    ortho.train()
    with torch.no_grad():
        ortho.log_mat_half += torch.randn_like(ortho.log_mat_half)
    assert not torch.allclose(ortho.eval().matrix(), before)


@pytest.mark.parametrize("kind", ["linear", "proj", "ortho", "fc"])
def test_gradients_reach_every_parameter(kind: str) -> None:
    deformator = made(kind)
    deformator(torch.arange(COUNT), torch.tensor([1.0, 2.0, -3.0, 4.0])).square().sum().backward()
    if kind == "proj":
        # The length of a column does not matter: only its heading is taught.
        deformator.zero_grad()
        deformator(torch.arange(COUNT), torch.ones(COUNT))[:, 0].sum().backward()
    # fc4's bias cancels out of an anchored path.
    missing = [n for n, p in deformator.named_parameters() if not (p.grad is not None and p.grad.any())]
    assert set(missing) <= {"fc4.bias"}


def test_what_is_not_trained_is_kept_with_the_weights() -> None:
    first, second = made("random"), build_deformator("random", COUNT, SIZE)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.paths(torch.ones(1)), first.paths(torch.ones(1)))


def test_fixed_paths_are_followed_between_and_beyond_knots() -> None:
    knots = torch.tensor([-2.0, 0.0, 1.0])
    paths = torch.randn(2, 3, SIZE)
    paths[:, 1] = 0
    fixed = Fixed(paths, knots)
    assert torch.equal(fixed.paths(knots), paths)
    half = fixed(torch.tensor([1]), torch.tensor([0.5]))
    torch.testing.assert_close(half[0], paths[1, 2] / 2)
    torch.testing.assert_close(fixed(torch.tensor([0]), torch.tensor([3.0]))[0], 3 * paths[0, 2])
    basis = torch.tensor([[0.0, -1.0]])
    torch.testing.assert_close(fixed.deform(basis)[0], paths[1, 0] / 2)


def test_mistakes() -> None:
    with pytest.raises(UnknownNameError, match=r"no deformator 'orto'.*'ortho'"):
        build_deformator("orto", COUNT, SIZE)
    for kind in DEFORMATORS:
        with pytest.raises(SelectionError, match=r"8 directions are out of range.*1 to 7"):
            build_deformator(kind, 8, SIZE)


def test_a_path_begins_at_exactly_zero_whatever_the_rounding() -> None:
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            deformator = build_deformator("fc", 40, 128)
            paths = deformator.paths(torch.linspace(-6, 6, 25))
            assert not paths[:, 12].any()
            assert paths[:, 11].any(dim=1).all()
    finally:
        torch.set_num_threads(threads)
