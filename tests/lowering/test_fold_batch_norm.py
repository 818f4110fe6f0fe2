from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdirs.loading import load_generator
from fastdirs.lowering.fold_batch_norm import fold_batch_norm


@pytest.mark.parametrize("bias", [False, True])
def test_no_batch_norm_is_left(
    random_dcgan: Callable[..., nn.Sequential], tmp_path: Path, bias: bool
) -> None:
    torch.save(random_dcgan(bias=bias).state_dict(), tmp_path / "model.pt")
    generator = load_generator(tmp_path / "model.pt")
    folded = fold_batch_norm(generator)
    assert [m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    convolutions = [m for m in folded.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.bias is not None for m in convolutions] == [True, True, bias]


def test_the_folded_weights_are_the_scaled_ones(
    random_dcgan: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    original = random_dcgan()
    torch.save(original.state_dict(), tmp_path / "model.pt")
    folded = fold_batch_norm(load_generator(tmp_path / "model.pt"))
    norm = original[1]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    first = folded.stages[0].body[0]
    torch.testing.assert_close(first.weight, original[0].weight * scale[:, None, None])
    torch.testing.assert_close(first.bias, norm.bias - norm.running_mean * scale)
