from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdirs.loading import load_generator
from fastdirs.lowering.transposed_as_subpixel import (
    FourConvolutions,
    Interleave,
    OneConvolution,
    ShuffleAndCrop,
    transposed_as_subpixel,
)


def kinds(module: nn.Module) -> set[type]:
    return {type(layer) for layer in module.modules()}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4)])
@pytest.mark.parametrize(
    ("convolutions", "shuffle"), [(FourConvolutions, Interleave), (OneConvolution, ShuffleAndCrop)]
)
def test_both_ways_equal_the_transposed_convolution(
    convolutions: Callable[[nn.Module], nn.Module],
    shuffle: type[nn.Module],
    size: tuple[int, int],
    bias: bool,
) -> None:
    transposed = nn.ConvTranspose2d(6, 5, 4, 2, 1, bias=bias)
    features = torch.randn(2, 6, *size)
    rewritten = nn.Sequential(convolutions(transposed), shuffle())
    torch.testing.assert_close(rewritten(features), transposed(features), rtol=0, atol=1e-5)


def test_interleave_puts_positions_side_by_side() -> None:
    positions = torch.arange(4.0).reshape(1, 4, 1, 1)
    assert Interleave()(positions).tolist() == [[[[0, 1], [2, 3]]]]


def test_wide_layers_become_four_convolutions_and_narrow_ones_one(
    random_dcgan: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    torch.save(random_dcgan(widths=(8, 20, 16)).state_dict(), tmp_path / "model.pt")
    lowered = transposed_as_subpixel(load_generator(tmp_path / "model.pt"))
    assert {FourConvolutions, Interleave} <= kinds(lowered.stages[1])
    assert {OneConvolution, ShuffleAndCrop} <= kinds(lowered.stages[2])
    assert nn.ConvTranspose2d not in kinds(lowered.stages[1]) | kinds(lowered.stages[2])


def test_the_activation_comes_before_the_shuffle_when_no_norm_stands_between(
    random_dcgan: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    torch.save(random_dcgan(widths=(8, 20, 16), norm_after=()).state_dict(), tmp_path / "model.pt")
    lowered = transposed_as_subpixel(load_generator(tmp_path / "model.pt"))
    assert [type(m) for m in lowered.stages[1].body] == [FourConvolutions, nn.ReLU, Interleave]
    assert [type(m) for m in lowered.stages[2].body] == [OneConvolution, nn.Tanh, ShuffleAndCrop]


def test_a_norm_stays_behind_the_shuffle(random_dcgan: Callable[..., nn.Sequential], tmp_path: Path) -> None:
    torch.save(random_dcgan(widths=(8, 20, 16)).state_dict(), tmp_path / "model.pt")
    lowered = transposed_as_subpixel(load_generator(tmp_path / "model.pt"))
    assert [type(m) for m in lowered.stages[1].body] == [
        FourConvolutions,
        Interleave,
        nn.BatchNorm2d,
        nn.ReLU,
    ]


def test_other_kernels_are_left_as_they_are(
    random_dcgan: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    torch.save(random_dcgan(kernels=(4, 6, 2)).state_dict(), tmp_path / "model.pt")
    lowered = transposed_as_subpixel(load_generator(tmp_path / "model.pt"))
    assert all(nn.ConvTranspose2d in kinds(stage) for stage in lowered.stages)
