from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fastdirs.errors import BankError, SelectionError, ShapeError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.shift_space import ShiftSpace


@pytest.fixture(scope="module")
def chunked() -> Generator:
    """A BigGAN whose four layers are parts of z, each four numbers."""
    config = {
        "widths": [24, 24, 16, 16], "bottom": 4, "channels": 3, "attention": [1], "classes": 5,
        "shared_dim": 8, "dim": 4, "hier": True, "sn_eps": 1e-6, "bn_eps": 1e-5,
    }  # fmt: skip
    generator = GENERATORS.load("biggan").build(config)
    assert generator.chunked
    return generator


def unit(count: int, size: int, seed: int = 0) -> Tensor:
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def test_one_vector_for_all_edited_layers(layered: Generator) -> None:
    space = ShiftSpace(layered, (0, 2))
    assert space.size == layered.dim == 5
    vectors = unit(4, 5)
    spread = space.spread(vectors)
    assert spread.shape == (4, 3, 5)
    assert torch.equal(spread[:, 0], vectors)
    assert torch.equal(spread[:, 2], vectors)
    assert not spread[:, 1].any()


def test_a_vector_for_each_where_layers_are_parts_of_z(chunked: Generator) -> None:
    space = ShiftSpace(chunked, (1, 3))
    assert space.size == 8
    vectors = unit(4, 8)
    spread = space.spread(vectors)
    assert torch.equal(spread[:, [1, 3]].flatten(1), vectors)
    assert not spread[:, [0, 2]].any()
    assert torch.equal(space.gather(spread), vectors)


def test_the_layer_that_carries_a_place_is_left_alone(classes: Generator) -> None:
    space = ShiftSpace(classes, classes.editable)
    assert not space.spread(unit(2, space.size))[:, 3].any()
    with pytest.raises(SelectionError, match=r"Layer 3 of classes is no latent to edit.*Layers 0 to 2 can"):
        ShiftSpace(classes, (2, 3))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 7, 5), (0, 5)])
def test_any_axes_before_the_last(layered: Generator, shape: tuple[int, ...]) -> None:
    space = ShiftSpace(layered, (1,))
    vectors = torch.randn(shape, dtype=torch.float64)
    spread = space.spread(vectors)
    assert spread.shape == (*shape[:-1], 3, 5)
    assert spread.dtype == torch.float64
    assert torch.equal(spread[..., 1, :], vectors)


def test_gradients_pass_through(layered: Generator) -> None:
    vectors = unit(2, 5).requires_grad_()
    ShiftSpace(layered, (0, 2)).spread(vectors).sum().backward()
    assert vectors.grad is not None
    assert torch.equal(vectors.grad, torch.full((2, 5), 2.0))


def test_latents_as_vectors(layered: Generator) -> None:
    latents = torch.randn(6, 3, 5)
    torch.testing.assert_close(ShiftSpace(layered, (0, 2)).gather(latents), latents[:, [0, 2]].mean(dim=1))
    torch.testing.assert_close(ShiftSpace(layered, (1,)).gather(latents), latents[:, 1])


def test_a_vector_of_another_size(layered: Generator) -> None:
    with pytest.raises(ShapeError, match=r"vectors has shape \[2, 4\], expected \[vectors, size=5\]"):
        ShiftSpace(layered, (0,)).spread(torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "No layer to edit"),
        ((3,), "There is no layer 3. layered has layers 0 to 2"),
        ((-1, 0), "no layer -1"),
    ],
)
def test_layers_that_do_not_exist(layered: Generator, layers: Sequence[int], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        ShiftSpace(layered, tuple(layers))


def test_a_straight_bank(layered: Generator) -> None:
    space, vectors = ShiftSpace(layered, (0, 2)), unit(3, 5)
    bank = space.bank(vectors, torch.tensor([3.0, 2.0, 1.0]), "mine", {"a": 1})
    assert (bank.method, bank.settings, bank.layers) == ("mine", {"a": 1}, (0, 2))
    assert bank.labels == ("direction 0", "direction 1", "direction 2")
    assert bank.generator == layered.identity()
    assert not bank.curved
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True)).sign()
    torch.testing.assert_close(bank.directions[:, 2], vectors * largest)
    w = layered.mapping(layered.sample(range(2000, 4000)))
    spread_of_layers = torch.stack([(w[:, layer] @ vectors.T).std(dim=0) for layer in (0, 2)])
    torch.testing.assert_close(bank.scales, spread_of_layers.mean(dim=0), rtol=0.1, atol=0)
    torch.testing.assert_close(bank.ranges[:, 1], 6 * bank.scales)


def test_the_scale_of_a_vector_over_all_parts_of_z(chunked: Generator) -> None:
    bank = ShiftSpace(chunked, (0, 1, 2, 3)).bank(unit(5, 16), torch.zeros(5), "mine", {})
    torch.testing.assert_close(bank.scales, torch.ones(5), rtol=0.1, atol=0)


def test_signs_of_others_are_kept(layered: Generator) -> None:
    space, vectors = ShiftSpace(layered, (1,)), -unit(3, 5).abs()
    fixed, kept = (space.bank(vectors, torch.zeros(3), "m", {}, keep_signs=k) for k in (False, True))
    torch.testing.assert_close(fixed.directions[:, 1], -vectors)
    torch.testing.assert_close(kept.directions[:, 1], vectors)


KNOTS = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])


def bent(vectors: Tensor) -> Tensor:
    """Paths that leave straight lines on one side only: `[num_directions, knots, size]`."""
    aside = vectors.roll(1, 1)[:, None] * torch.tensor([0.0, 0.0, 0.0, 0.1, 0.4])[:, None]
    return vectors[:, None] * KNOTS[:, None] + aside


def test_paths(layered: Generator) -> None:
    vectors = unit(3, 5).abs()
    paths = bent(vectors)
    bank = ShiftSpace(layered, (0, 2)).bank(paths, torch.zeros(3), "mine", {}, KNOTS)
    assert bank.curved
    torch.testing.assert_close(bank.directions[:, :, 2], paths)
    torch.testing.assert_close(bank.shift(1, -2.0)[0], paths[1, 0])
    # Measured along the chord, whatever its length.
    chords = torch.nn.functional.normalize(paths[:, -1] - paths[:, 0], dim=1)
    straight = ShiftSpace(layered, (0, 2)).bank(chords, torch.zeros(3), "mine", {})
    torch.testing.assert_close(bank.scales, straight.scales)
    torch.testing.assert_close(bank.ranges, straight.ranges)


def test_a_path_of_the_wrong_sign_is_walked_from_its_other_end(layered: Generator) -> None:
    vectors = unit(3, 5).abs()
    paths = bent(vectors)
    paths[1] = paths[1].flip(0)
    space = ShiftSpace(layered, (0, 2))
    bank = space.bank(paths, torch.zeros(3), "mine", {}, KNOTS)
    torch.testing.assert_close(bank.directions[:, :, 0], bent(vectors))
    kept = space.bank(paths, torch.zeros(3), "mine", {}, KNOTS, keep_signs=True)
    torch.testing.assert_close(kept.directions[:, :, 0], paths)


@pytest.mark.parametrize("curved", [False, True])
def test_what_differs_from_layer_to_layer(layered: Generator, curved: bool) -> None:
    whole = torch.nn.functional.normalize(torch.rand(4, 3, 5), dim=2)
    vectors = whole[:, None] * KNOTS[:, None, None] if curved else whole
    knots = KNOTS if curved else None
    bank = ShiftSpace(layered, (0, 1, 2)).bank(vectors, torch.zeros(4), "mine", {}, knots)
    torch.testing.assert_close(bank.shift(2, 1.0), whole[2])
    torch.testing.assert_close(bank.directions, vectors)


def test_names_are_taken_over(layered: Generator) -> None:
    space = ShiftSpace(layered, (0,))
    bank = space.bank(unit(2, 5), torch.zeros(2), "mine", {}, labels=["age", "smile"])
    assert bank.labels == ("age", "smile")
    with pytest.raises(ShapeError):
        space.bank(unit(2, 5), torch.zeros(2), "mine", {}, labels=["age"])


def test_paths_that_are_none(layered: Generator) -> None:
    space, paths = ShiftSpace(layered, (0,)), bent(unit(2, 5))
    with pytest.raises(BankError, match="no ascending list"):
        space.bank(paths, torch.zeros(2), "mine", {}, KNOTS.abs())
    with pytest.raises(BankError, match="shift at epsilon 0 is not 0"):
        space.bank(paths + 1, torch.zeros(2), "mine", {}, KNOTS)
    with pytest.raises(ShapeError):
        space.bank(paths, torch.zeros(2), "mine", {}, KNOTS[:3])
    with pytest.raises(ShapeError):
        space.bank(paths[..., :4], torch.zeros(2), "mine", {}, KNOTS)
