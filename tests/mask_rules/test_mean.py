import torch

from fastdirs.mask_rules import MASK_RULES, grey

RULE = MASK_RULES.load("mean")


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    before, after = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return before, after


def test_it_is_what_is_lighter_than_the_image() -> None:
    before, after = drawn()
    values = grey(after)
    wanted = values > values.mean(dim=(1, 2), keepdim=True)
    assert torch.equal(RULE.mask(before, [after], 0.0), wanted)
    assert torch.equal(RULE.mask(after, [after], 0.0), wanted), "the unshifted image does not matter"
