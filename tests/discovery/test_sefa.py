from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdirs.discovery import discover, parse_settings
from fastdirs.errors import SelectionError, UnknownNameError
from fastdirs.generators import Factor, Generator
from fastdirs.generators.toy import ATTRIBUTES, Toy
from fastdirs.loading import load_generator


class Stack(Generator):
    """Three latent layers, of which the first two are read by weights; draws nothing worth looking at."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__(
            family="stack", space="w+", z_dim=dim, num_layers=3, dim=dim, img_resolution=1, img_channels=3,
            stages=[nn.Identity()], reads=[(0, 1, 2)], config={},
        )  # fmt: skip
        random = np.random.RandomState(1)
        self.weights = [torch.from_numpy(random.randn(units, dim)).float() for units in (5, 9, 7)]

    @property
    def has_mapping(self) -> bool:
        return True

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        return z[:, None].repeat(1, self.num_layers, 1)

    def factors(self) -> list[Factor]:
        layers = (0, 1, 1)
        return [
            Factor(f"weight {i}", layer, weight)
            for i, (layer, weight) in enumerate(zip(layers, self.weights, strict=True))
        ]


def by_hand(weights: list[Tensor], normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Right singular vectors of the stacked rows and their squared singular values, largest first."""
    a = np.concatenate([weight.double().numpy() for weight in weights])
    if normalize:
        a = a / np.linalg.norm(a, axis=1, keepdims=True)
    _, values, vectors = np.linalg.svd(a, full_matrices=False)
    return vectors, values**2


@pytest.mark.parametrize("normalize", ["rows", "none"])
@pytest.mark.parametrize(
    ("layers", "which"), [([0], [0]), ([1], [1, 2]), ([0, 1], [0, 1, 2]), ([1, 2], [1, 2])]
)
def test_equals_a_singular_value_decomposition(normalize: str, layers: list[int], which: list[int]) -> None:
    stack = Stack()
    bank = discover(stack, "sefa", 4, layers, {"normalize": normalize})
    vectors, values = by_hand([stack.weights[i] for i in which], normalize == "rows")
    np.testing.assert_allclose(bank.scores.numpy(), values[:4], rtol=1e-5)
    for layer in range(3):
        found = bank.directions[:, layer].numpy()
        if layer in layers:
            cosines = np.abs((found * vectors[:4]).sum(axis=1))
            np.testing.assert_allclose(cosines, 1, atol=1e-5)
        else:
            assert not found.any()


def test_the_two_normalisations_differ() -> None:
    rows, raw = (discover(Stack(), "sefa", 4, settings={"normalize": n}) for n in ("rows", "none"))
    assert not torch.allclose(rows.scores, raw.scores)
    assert discover(Stack(), "sefa", 4).settings == {"normalize": "rows", "weights": "sefa"}


def test_directions_are_eigenvectors_in_descending_order(
    random_dcgan: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    torch.save(random_dcgan(widths=(12, 20, 8)).state_dict(), tmp_path / "model.pt")
    generator = load_generator(tmp_path / "model.pt")
    found = discover(generator, "sefa", 12, settings={"normalize": "none"})
    a = generator.factors()[0].weight
    v = found.directions[:, 0]
    torch.testing.assert_close(
        v @ (a.T @ a), found.scores[:, None] * v, rtol=0, atol=1e-4 * float(found.scores[0])
    )
    torch.testing.assert_close(v @ v.T, torch.eye(12), rtol=0, atol=1e-5)
    assert (found.scores.diff() <= 0).all()


def test_no_other_direction_moves_the_first_features_more(
    random_dcgan: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    torch.save(random_dcgan(widths=(12, 20, 8)).state_dict(), tmp_path / "model.pt")
    generator = load_generator(tmp_path / "model.pt")
    best = discover(generator, "sefa", 1, settings={"normalize": "none"}).directions[0, 0]
    a = generator.factors()[0].weight
    others = nn.functional.normalize(torch.randn(500, 12), dim=1)
    assert (a @ best).norm() >= (others @ a.T).norm(dim=1).max()


def test_a_row_of_zeros_does_no_harm() -> None:
    class OneLayer(Stack):
        def factors(self) -> list[Factor]:
            weight = self.weights[0].clone()
            weight[2] = 0
            return [Factor("weight", 0, weight)]

    bank = discover(OneLayer(), "sefa", 2, [0])
    assert torch.isfinite(bank.directions).all()
    assert torch.isfinite(bank.scores).all()


def test_layers_that_no_weight_reads() -> None:
    message = r"No weight of stack reads layers \[2\] directly.*Choose among the layers that are read: 0, 1\."
    with pytest.raises(SelectionError, match=message):
        discover(Stack(), "sefa", 2, [2])


def test_no_layers_at_all() -> None:
    with pytest.raises(SelectionError):
        discover(Stack(), "sefa", 2, [])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"normalise": "rows"}, UnknownNameError, "Did you mean 'normalize'"),
        ({"normalize": "columns"}, SelectionError, "normalize='columns' is unknown. Expected rows or none"),
        ({"weights": "genforce"}, SelectionError, "weights='genforce' is unknown. Expected sefa, rosinality"),
    ],
)
def test_bad_settings(settings: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        discover(Stack(), "sefa", 2, settings=settings)


@dataclass(frozen=True)
class Various:
    """Settings of every type that text can become."""

    steps: int = field(default=3)
    rate: float = field(default=0.5)
    name: str = field(default="x")
    fast: bool = field(default=False)


def test_settings_take_the_type_of_their_default() -> None:
    values = {"steps": "7", "rate": "1e-3", "name": "7", "fast": "yes"}
    assert parse_settings("m", Various, values) == Various(7, 1e-3, "7", True)
    assert parse_settings("m", Various, {"fast": "false"}) == Various()
    assert parse_settings("m", Various, {}) == Various()


@pytest.mark.parametrize("values", [{"steps": "7.5"}, {"steps": ""}, {"rate": "fast"}, {"fast": "maybe"}])
def test_settings_of_another_type(values: dict[str, str]) -> None:
    with pytest.raises(SelectionError, match=f"{next(iter(values))}="):
        parse_settings("m", Various, values)


@pytest.mark.parametrize("normalize", ["rows", "none"])
def test_it_finds_the_true_directions(toy: Generator, normalize: str) -> None:
    assert isinstance(toy, Toy)
    bank = discover(toy, "sefa", len(ATTRIBUTES), settings={"normalize": normalize})
    cosines = (toy.true_directions().flatten(1) @ bank.directions.flatten(1).T).abs()
    torch.testing.assert_close(cosines, torch.eye(len(ATTRIBUTES)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", ["sefa", "rosinality", "all"])
def test_the_images_that_belong_to_a_set(weights: str) -> None:
    class Images(Stack):
        def factors(self) -> list[Factor]:
            return [
                Factor(f.name, f.layer, f.weight, "image" if f.layer else "features")
                for f in super().factors()
            ]

    kept = {"sefa": [0, 2], "rosinality": [0, 1], "all": [0, 1, 2]}[weights]
    images = Images()
    bank = discover(images, "sefa", 4, settings={"weights": weights, "normalize": "none"})
    vectors, values = by_hand([images.weights[index] for index in kept], normalize=False)
    np.testing.assert_allclose(bank.scores.numpy(), values[:4], rtol=1e-5)
    np.testing.assert_allclose(
        np.abs((bank.directions[:, 0].numpy() * vectors[:4]).sum(axis=1)), 1, atol=1e-5
    )


def test_stylegan2_is_stacked_as_either_code_does(random_generator: Callable[[str], Generator]) -> None:
    generator = random_generator("stylegan2")
    # Six layers: convolutions read the first five, images the second, the fourth and the last.
    convolutions = [f"stages.{layer}.convolution.affine" for layer in range(5)]
    images = {
        "sefa": ["stages.5.rgb.affine"], "rosinality": ["stages.1.rgb.affine"],
        "all": [f"stages.{layer}.rgb.affine" for layer in (1, 3, 5)],
    }  # fmt: skip
    for weights, last in images.items():
        stacked = [generator.get_parameter(f"{name}.weight") for name in [*convolutions, *last]]
        vectors, values = by_hand(stacked, normalize=False)
        bank = discover(generator, "sefa", 3, settings={"weights": weights, "normalize": "none"})
        np.testing.assert_allclose(bank.scores.numpy(), values[:3], rtol=1e-4)
        cosines = np.abs((bank.directions[:, 0].numpy() * vectors[:3]).sum(axis=1))
        np.testing.assert_allclose(cosines, 1, atol=1e-4)


def test_the_three_sets_are_one_where_there_are_no_images(
    random_generator: Callable[[str], Generator],
) -> None:
    generator = random_generator("biggan_deep")
    banks = [
        discover(generator, "sefa", 3, settings={"weights": name}) for name in ("sefa", "rosinality", "all")
    ]
    assert banks[0].sha256 == banks[1].sha256 == banks[2].sha256


def test_an_image_layer_that_the_set_leaves_out(random_generator: Callable[[str], Generator]) -> None:
    generator = random_generator("stylegan2")
    assert len(discover(generator, "sefa", 2, [5])) == 2
    with pytest.raises(SelectionError, match=r"reads layers \[5\] directly.*are read: 0, 1, 2, 3, 4\."):
        discover(generator, "sefa", 2, [5], {"weights": "rosinality"})


def test_biggan_deep_stacks_all_places_where_z_enters(random_generator: Callable[[str], Generator]) -> None:
    generator = random_generator("biggan_deep")
    assert not generator.chunked
    vectors, values = by_hand([f.weight for f in generator.factors() if f.layer in (1, 2)], normalize=True)
    bank = discover(generator, "sefa", 4, [1, 2])
    np.testing.assert_allclose(bank.scores.numpy(), values[:4], rtol=1e-4)
    np.testing.assert_allclose(
        np.abs((bank.directions[:, 1].numpy() * vectors[:4]).sum(axis=1)), 1, atol=1e-3
    )


def test_layers_that_are_parts_of_z_are_factorised_each_for_itself(
    random_generator: Callable[[str], Generator],
) -> None:
    generator = random_generator("biggan")
    assert generator.chunked
    bank = discover(generator, "sefa", num_directions=4, layers=[0, 2])
    edited = bank.directions.any(dim=2)
    assert (edited.sum(dim=1) == 1).all(), "a direction edits one part of z alone"
    assert set(edited.nonzero()[:, 1].tolist()) <= {0, 2}
    for layer in (0, 2):
        rows = torch.cat([f.weight.double() for f in generator.factors() if f.layer == layer])
        rows = rows / rows.norm(dim=1, keepdim=True)
        values, vectors = torch.linalg.eigh(rows.T @ rows)
        for index in edited[:, layer].nonzero().flatten().tolist():
            best = (values - bank.scores[index]).abs().argmin()
            cosine = vectors[:, best].float() @ bank.directions[index, layer]
            assert abs(float(cosine)) == pytest.approx(1, abs=1e-5)
    # One standard normal coordinate, whatever the number of layers.
    torch.testing.assert_close(bank.scales, torch.ones(4), rtol=0.1, atol=0)


def test_more_directions_than_the_weights_have_room_for(random_generator: Callable[[str], Generator]) -> None:
    generator = random_generator("biggan")

    class Fewer(type(generator)):  # type: ignore[misc]
        def factors(self) -> list[Factor]:
            return [factor for factor in super().factors() if factor.layer in (0, 2)]

    generator.__class__ = Fewer
    message = r"sefa finds 4 directions in layers \[1, 2\] of biggan, fewer than 5.*read layers 0, 2 directly"
    with pytest.raises(SelectionError, match=message):
        discover(generator, "sefa", 5, [1, 2])
