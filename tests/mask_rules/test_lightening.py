import torch

from fastdirs.mask_rules import MASK_RULES, grey

RULE = MASK_RULES.load("lightening")


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    before, after = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return before, after


def test_it_is_what_becomes_lighter() -> None:
    before, after = drawn()
    wanted = grey(before) < grey(after)
    assert torch.equal(RULE.mask(before, [after], 0.0), wanted)
    assert torch.equal(RULE.mask(after, [before], 0.0), ~wanted)
    assert 0 < RULE.mask(before, [after], 0.3).sum() < wanted.sum()
