"""What every mask rule promises. A new one is tested the moment its file exists."""

import pytest
import torch
from torch import Tensor

from fastdirs.mask_rules import MASK_RULES, brightness, grey

every_rule = pytest.mark.parametrize("name", MASK_RULES.names())


def images(seed: int, batch: int = 3, channels: int = 3) -> Tensor:
    random = torch.rand(batch, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    # Much of it is white: one rule asks for that.
    return (random * 12 - 4).clamp(-1, 1)


@every_rule
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_of_each_image_alone(name: str, channels: int) -> None:
    rule = MASK_RULES.load(name)
    unshifted, *shifted = (images(seed, channels=channels) for seed in range(1 + len(rule.signs)))
    mask = rule.mask(unshifted, shifted, rule.threshold)
    assert mask.dtype == torch.bool
    assert mask.shape == (3, 8, 8)
    assert 0 < mask.float().mean() < 1
    alone = rule.mask(unshifted[1:2], [each[1:2] for each in shifted], rule.threshold)
    assert torch.equal(alone[0], mask[1])


@every_rule
def test_a_shift_that_changes_nothing_is_no_error(name: str) -> None:
    rule = MASK_RULES.load(name)
    flat = torch.zeros(2, 3, 4, 4)
    mask = rule.mask(flat, [flat] * len(rule.signs), rule.threshold)
    # Intensity asks for white, and grey is not white.
    assert mask.all() if name == "intensity" else not mask.any()


@every_rule
def test_the_summary_names_its_source(name: str) -> None:
    rule = MASK_RULES.load(name)
    assert "Voynov" in rule.summary
    assert rule.signs[0] == 1


def test_grey_and_brightness() -> None:
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None]
    assert grey(red).item() == pytest.approx(0.2989 - 0.5870 - 0.1140)
    assert brightness(red).item() == pytest.approx(1 / 3)
    assert torch.equal(grey(red[:, :1]), red[:, 0])


@every_rule
def test_the_response_is_higher_in_the_mask(name: str) -> None:
    rule = MASK_RULES.load(name)
    unshifted, *shifted = (images(seed) for seed in range(1 + len(rule.signs)))
    mask = rule.mask(unshifted, shifted, rule.threshold)
    response = rule.response(unshifted, shifted)
    assert response.shape == mask.shape
    for row in range(len(mask)):
        inside, outside = response[row][mask[row]], response[row][~mask[row]]
        assert inside.min() >= outside.max()
