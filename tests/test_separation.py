import pytest
import torch

from fastdirs.separation import polarity, separation


def test_two_flat_sides_are_separated_and_noise_is_not() -> None:
    mask = torch.zeros(2, 16, 16)
    mask[:, 4:12, 4:12] = 1
    flat = mask * 3 - 1
    noise = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (separation(flat, mask) > 0.98).all()
    assert (separation(noise, mask) < 0.05).all()
    assert torch.allclose(separation(-flat, mask), separation(flat, mask))


def test_no_change_is_no_separation() -> None:
    assert separation(torch.zeros(1, 8, 8), torch.ones(1, 8, 8)).tolist() == [0.0]
    assert torch.isfinite(separation(torch.ones(1, 8, 8), torch.zeros(1, 8, 8))).all()


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (32, 48)])
def test_the_middle_is_for_objects(size: tuple[int, int]) -> None:
    height, width = size
    middle, top, bottom = torch.zeros(3, 1, height, width)
    middle[:, height // 4 : -height // 8, width // 4 : -width // 4] = 1
    top[:, : height // 8] = 1
    bottom[:, -height // 8 :] = 1
    assert polarity(middle).item() > 0.8
    assert polarity(top).item() < 0
    # Objects stand on the bottom: there is nothing wrong with it.
    assert polarity(bottom).item() == pytest.approx(0, abs=1e-6)
    for mask in (middle, top, bottom):
        assert polarity(1 - mask).item() == pytest.approx(-polarity(mask).item(), abs=1e-5)


def test_both_have_gradients() -> None:
    response = torch.rand(2, 8, 8, requires_grad=True)
    mask = torch.sigmoid(response)
    (separation(response, mask) + polarity(mask)).sum().backward()
    assert response.grad is not None
    assert torch.isfinite(response.grad).all()
    assert response.grad.abs().sum() > 0
