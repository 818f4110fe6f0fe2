import math

import pytest
import torch
from torch import Tensor

from fastdirs.generators.toy import ATTRIBUTES, Toy
from fastdirs.latents import sample_z

RESOLUTION = 64


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy(RESOLUTION).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def latents(toy: Toy) -> Tensor:
    return toy.mapping(sample_z(range(16), toy.z_dim))


def shifted(toy: Toy, latents: Tensor, attribute: str, epsilon: float) -> Tensor:
    return latents + epsilon * toy.true_directions()[ATTRIBUTES.index(attribute)]


def centres(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean column and row of each mask: two `[batch]`."""
    count = mask.sum(dim=(1, 2))
    steps = torch.arange(mask.shape[1]).float()
    return (mask.sum(dim=1) * steps).sum(dim=1) / count, (mask.sum(dim=2) * steps).sum(dim=1) / count


def test_true_directions_are_orthonormal(toy: Toy) -> None:
    directions = toy.true_directions().flatten(1)
    torch.testing.assert_close(directions @ directions.T, torch.eye(5), atol=1e-5, rtol=0)


def test_each_direction_changes_its_attribute_alone(toy: Toy, latents: Tensor) -> None:
    read = toy.stages[0]
    for index in range(5):
        change = read(None, latents + 2 * toy.true_directions()[index]) - read(None, latents)
        expected = torch.zeros(16, 5)
        expected[:, index] = 2
        torch.testing.assert_close(change, expected, atol=1e-4, rtol=0)


def test_attributes_are_standard_normal(toy: Toy) -> None:
    attributes = toy.stages[0](None, toy.mapping(sample_z(range(4000), toy.z_dim)))
    torch.testing.assert_close(attributes.mean(dim=0), torch.zeros(5), atol=0.06, rtol=0)
    torch.testing.assert_close(torch.cov(attributes.T), torch.eye(5), atol=0.08, rtol=0)


def test_x_moves_the_disc_sideways(toy: Toy, latents: Tensor) -> None:
    before, after = toy.mask(latents), toy.mask(shifted(toy, latents, "x", 1.0))
    assert (centres(after)[0] > centres(before)[0] + 0.3).all()
    torch.testing.assert_close(centres(after)[1], centres(before)[1], atol=0.5, rtol=0)


def test_y_moves_the_disc_down(toy: Toy, latents: Tensor) -> None:
    before, after = toy.mask(latents), toy.mask(shifted(toy, latents, "y", 1.0))
    assert (centres(after)[1] > centres(before)[1] + 0.3).all()
    torch.testing.assert_close(centres(after)[0], centres(before)[0], atol=0.5, rtol=0)


def test_size_grows_the_disc_in_place(toy: Toy, latents: Tensor) -> None:
    before, after = toy.mask(latents), toy.mask(shifted(toy, latents, "size", 1.0))
    assert (after | ~before).all()
    assert (after.sum(dim=(1, 2)) > before.sum(dim=(1, 2))).all()


def test_hue_changes_the_disc_and_not_the_background(toy: Toy, latents: Tensor) -> None:
    change = (toy.synthesis(shifted(toy, latents, "hue", 1.0)) - toy.synthesis(latents)).abs().amax(dim=1)
    mask = toy.mask(latents)
    assert torch.equal(toy.mask(shifted(toy, latents, "hue", 1.0)), mask)
    for picture, disc in zip(change, mask, strict=True):
        assert picture[disc].mean() > 0.1
        assert picture[~disc].mean() < 0.02


def test_background_brightens_the_background_and_not_the_disc(toy: Toy, latents: Tensor) -> None:
    after = toy.synthesis(shifted(toy, latents, "background", 1.0))
    change = (after - toy.synthesis(latents)).mean(dim=1)
    for picture, disc in zip(change, toy.mask(latents), strict=True):
        assert picture[~disc].min() > 0
        assert picture[disc].abs().mean() < picture[~disc].mean() / 5


def test_the_rest_of_z_changes_nothing(toy: Toy, latents: Tensor) -> None:
    basis = toy.true_directions().flatten(1)
    step = torch.randn(16, 1, toy.z_dim)
    step -= step @ basis.T @ basis
    torch.testing.assert_close(toy.synthesis(latents + step), toy.synthesis(latents), atol=1e-4, rtol=0)


def test_the_mask_is_the_disc_that_geometry_says(toy: Toy, latents: Tensor) -> None:
    attributes = toy.stages[0](None, latents)
    for mask, (x, y, size, _, _) in zip(toy.mask(latents), attributes.tolist(), strict=True):
        column, row, radius = 0.5 * math.tanh(x), 0.5 * math.tanh(y), 0.2 + 0.3 / (1 + math.exp(-size))
        centre = (torch.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 - 1
        distance = ((centre[None, :] - column) ** 2 + (centre[:, None] - row) ** 2).sqrt()
        certain = (distance - radius).abs() > 1e-4
        assert torch.equal(mask[certain], (distance < radius)[certain])
        assert 0.02 < mask.float().mean() < 0.5


def test_images_are_differentiable(toy: Toy, latents: Tensor) -> None:
    leaf = latents.clone().requires_grad_()
    toy.synthesis(leaf).square().mean().backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(("resolution", "z_dim"), [(8, 5), (33, 40), (128, 16)])
def test_sizes(resolution: int, z_dim: int) -> None:
    toy = Toy(resolution, z_dim)
    images = toy.synthesis(toy.mapping(sample_z([0], z_dim)))
    assert images.shape == (1, 3, resolution, resolution)


def test_every_toy_is_the_same() -> None:
    assert Toy().weights_sha256 == Toy().weights_sha256
    assert Toy().weights_sha256 != Toy(z_dim=17).weights_sha256
