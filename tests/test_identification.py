"""Files that hold no generator are called what they are."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fastdirs.checkpoints import Checkpoint
from fastdirs.identification import identify


def _named(names: Sequence[str]) -> str | None:
    tensors = {name: torch.zeros(1) for name in names}
    return identify(Checkpoint(path=Path("x.pt"), format="torch_file", tensors=tensors, sha256=""))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["b32.fromrgb.weight", "b32.conv0.weight", "b4.fc.weight", "b4.out.bias"], "StyleGAN2 or"),
        (["convs.0.0.weight", "convs.1.conv1.0.weight", "final_linear.0.weight"], "rosinality"),
        (["input0.weight", "layer0.weight", "output0.bias"], "discriminator.*genforce"),
        (["blocks.0.0.conv1.weight", "blocks.0.0.conv2.sv0", "linear.weight", "embed.weight"], "BigGAN"),
        (["0.exp_avg", "0.exp_avg_sq"], "optimiser"),
        (["type_estimator.weight", "shift_estimator.weight"], "reconstructor"),
        (["convnet.0.weight", "fc_logits.0.weight", "fc_shift.0.weight"], "reconstructor"),
        (["log_mat_half"], "bank of directions"),
        (["linear.weight"], "bank of directions"),
        (["linear.weight", "linear.bias"], "bank of directions"),
        (["eigvec"], "closed-form directions"),
        (["conv1.weight", "layer1.0.bn1.running_mean", "fc.weight"], "classifier"),
        (["features.0.weight", "classifier.0.weight"], "classifier"),
    ],
)
def test_strangers(names: list[str], what: str) -> None:
    found = _named(names)
    assert found is not None
    assert re.search(what, found), found


@pytest.mark.parametrize("names", [[], ["main.0.weight"], ["linear.weight", "blocks.0.weight"]])
def test_what_nobody_can_tell(names: list[str]) -> None:
    assert _named(names) is None
