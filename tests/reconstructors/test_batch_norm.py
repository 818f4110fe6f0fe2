"""Batch normalisation of a single value."""

import pytest
import torch
from torch import nn

from fastdirs.reconstructors._batch_norm import BatchNorm1d, BatchNorm2d

LAYERS = [(BatchNorm1d, nn.BatchNorm1d, (4,)), (BatchNorm2d, nn.BatchNorm2d, (4, 1, 1))]


@pytest.mark.parametrize(("ours", "usual", "shape"), LAYERS)
def test_is_the_usual_one_where_there_is_a_variance(
    ours: type[nn.Module], usual: type[nn.Module], shape: tuple[int, ...]
) -> None:
    mine, theirs = ours(4), usual(4)
    for training in (True, False):
        values = torch.randn(3, *shape)
        assert torch.equal(mine.train(training)(values), theirs.train(training)(values))
    assert torch.equal(mine.running_var, theirs.running_var)
    assert mine.running_mean.any()


@pytest.mark.parametrize(("ours", "usual", "shape"), LAYERS)
def test_one_value_takes_the_running_statistics(
    ours: type[nn.Module], usual: type[nn.Module], shape: tuple[int, ...]
) -> None:
    layer = ours(4)
    layer(torch.randn(5, *shape))
    before, value = layer.running_mean.clone(), torch.randn(1, *shape)
    trained = layer(value)
    assert torch.equal(layer.running_mean, before), "one value says nothing of the others"
    assert torch.equal(trained, layer.eval()(value))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        usual(4)(value)
