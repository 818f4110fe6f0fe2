"""Nearest doubling and a convolution in one: the same picture, and only where it applies."""

import pytest
import torch
from torch import nn

from fastdirs.generators import GENERATORS, Generator
from fastdirs.lowering.nearest_as_subpixel import DoublingConvolution, nearest_as_subpixel


@pytest.mark.parametrize("bias", [True, False])
def test_it_equals_what_it_stands_for(bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(5, 7, 3, padding=1, bias=bias)
    features = torch.randn(2, 5, 6, 4)
    expected = convolution(nn.functional.interpolate(features, scale_factor=2))
    torch.testing.assert_close(DoublingConvolution(convolution)(features), expected, rtol=0, atol=1e-5)


def _sngan() -> Generator:
    torch.manual_seed(0)
    config = {"z_dim": 8, "widths": [8, 8, 6], "img_channels": 3, "eps": 1e-5}
    return GENERATORS.load("sngan").build(config)


def _count(generator: Generator, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in generator.modules())


def test_every_doubling_before_a_convolution_is_gone() -> None:
    generator = _sngan()
    lowered = nearest_as_subpixel(generator)
    assert _count(generator, nn.Upsample) > 0
    assert _count(lowered, DoublingConvolution) > 0
    # What only doubles, such as a bypass of equal width, still does.
    doublings = _count(lowered, nn.Upsample) + _count(lowered, DoublingConvolution)
    assert doublings == _count(generator, nn.Upsample)
    assert _count(generator, DoublingConvolution) == 0


def test_a_sequence_with_a_way_of_its_own_is_left_alone() -> None:
    class Backwards(nn.Sequential):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            for layer in reversed(list(self)):
                features = layer(features)
            return features

    generator = _sngan()
    generator.stages.append(Backwards(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1)))
    last = nearest_as_subpixel(generator).stages[-1]
    assert isinstance(last, Backwards)
    assert isinstance(last[0], nn.Upsample)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 3, padding=1)),
        (nn.Upsample(scale_factor=3), nn.Conv2d(4, 4, 3, padding=1)),
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3)),
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1, stride=2)),
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1, groups=2)),
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 5, padding=2)),
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        (nn.Upsample(scale_factor=2), nn.ReLU()),
    ],
)
def test_what_it_does_not_fit_is_left_alone(first: nn.Module, second: nn.Module) -> None:
    generator = _sngan()
    generator.stages.append(nn.Sequential(first, second))
    lowered = nearest_as_subpixel(generator)
    last = lowered.stages[-1]
    assert isinstance(last, nn.Sequential)
    assert [type(module) for module in last] == [type(first), type(second)]
