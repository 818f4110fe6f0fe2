"""The published U-Net."""

import pytest
import torch

from fastdirs.segmenters import build_segmenter


def test_sizes_of_the_published_network() -> None:
    with torch.device("meta"):
        unet = build_segmenter("unet", 3, 128)
    state = unet.state_dict()
    widths = {
        name.split(".")[0]: tuple(state[name].shape[:2])
        for name in state if name.endswith("double_conv.0.weight")
    }  # fmt: skip
    assert widths == {
        "inc": (64, 3), "down1": (128, 64), "down2": (256, 128), "down3": (512, 256), "down4": (512, 512),
        "up1": (256, 1024), "up2": (128, 512), "up3": (64, 256), "up4": (64, 128),
    }  # fmt: skip
    assert state["outc.conv.weight"].shape == (2, 64, 1, 1)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 13_395_394


def test_the_logit_is_the_difference_of_the_published_two() -> None:
    torch.manual_seed(0)
    unet = build_segmenter("unet", 3, 32, 4).eval()
    two: list[torch.Tensor] = []
    unet.outc.register_forward_hook(lambda module, inputs, output: two.append(output))
    saliency = unet(torch.rand(2, 3, 32, 32)).sigmoid()
    torch.testing.assert_close(saliency, two[0].softmax(dim=1)[:, 1])


@pytest.mark.parametrize("size", [33, 47, 100])
def test_sizes_that_do_not_halve_evenly(size: int) -> None:
    torch.manual_seed(0)
    unet = build_segmenter("unet", 1, size, 4).eval()
    logits = unet(torch.rand(1, 1, size, size))
    assert logits.shape == (1, size, size)
    assert logits.isfinite().all()
