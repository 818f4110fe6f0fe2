"""What is special to ResNet-18."""

import math

import pytest
import torch
from torch import nn

from fastdirs.errors import SelectionError
from fastdirs.reconstructors import build_reconstructor


def test_size_is_the_published_one_without_the_classifier() -> None:
    count = sum(each.numel() for each in build_reconstructor("resnet18", 128, 3, 64).parameters())
    # 11,689,512 with the classifier of 513,000, three more input channels of 64 filters, and two heads.
    assert count == 11_689_512 - 513_000 + 3 * 64 * 49 + 513 * 128 + 513


def test_eighteen_layers_with_weights_on_the_way_to_the_logits() -> None:
    reconstructor = build_reconstructor("resnet18", 4, 3, 64)
    convolutions = [each for each in reconstructor.modules() if isinstance(each, nn.Conv2d)]
    assert len([each for each in convolutions if each.kernel_size != (1, 1)]) + 1 == 18


@pytest.mark.parametrize(("size", "side"), [(32, 1), (64, 2), (128, 4)])
def test_pictures_are_halved_five_times(size: int, side: int) -> None:
    body = build_reconstructor("resnet18", 4, 1, size).body.eval()
    assert body(torch.zeros(1, 2, size, size)).shape == (1, 512, side, side)


def test_convolutions_start_as_published() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reconstructor = build_reconstructor("resnet18", 4, 3, 64)
    for module in reconstructor.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()


def test_pictures_of_less_than_32_pixels_are_too_small() -> None:
    with pytest.raises(SelectionError, match="resnet18 takes images of 32 pixels or more; these have 16"):
        build_reconstructor("resnet18", 4, 3, 16)
