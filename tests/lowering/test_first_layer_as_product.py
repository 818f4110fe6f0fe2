from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdirs.loading import load_generator
from fastdirs.lowering.first_layer_as_product import first_layer_as_product


@pytest.mark.parametrize("bias", [False, True])
def test_the_first_transposed_convolution_becomes_a_linear_layer(
    random_dcgan: Callable[..., nn.Sequential], tmp_path: Path, bias: bool
) -> None:
    original = random_dcgan(bias=bias)
    torch.save(original.state_dict(), tmp_path / "model.pt")
    lowered = first_layer_as_product(load_generator(tmp_path / "model.pt"))
    linear = [m for m in lowered.stages[0].modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 1
    assert (linear[0].in_features, linear[0].out_features) == (8, 12 * 4 * 4)
    assert (linear[0].bias is not None) == bias
    assert not [m for m in lowered.stages[0].modules() if isinstance(m, nn.ConvTranspose2d)]
    later = [m for stage in lowered.stages[1:] for m in stage.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert len(later) == 2
