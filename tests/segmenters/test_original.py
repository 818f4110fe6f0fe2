"""U-Nets that the authors' code saved, read without running anything in the file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.errors import CheckpointError
from fastdirs.segmenters import build_segmenter, is_segmenter, load_segmenter, save_segmenter


def state(width: int = 4, channels: int = 3, classes: int = 2) -> dict[str, Tensor]:
    """A state dict with the names of the authors' code, random values."""
    random = torch.Generator().manual_seed(3)
    down = {f"down{i}.maxpool_conv.1": (2 ** (i - 1), 2 ** min(i, 3)) for i in range(1, 5)}
    up = {f"up{i}.conv": (2 ** (5 - i), 2 ** max(3 - i, 0)) for i in range(1, 5)}
    tensors = {}
    for block, (read, wide) in {"inc": (0, 1), **down, **up}.items():
        into = read * width or channels
        for layer, given in ((0, into), (3, wide * width)):
            at = f"{block}.double_conv"
            tensors[f"{at}.{layer}.weight"] = torch.randn(wide * width, given, 3, 3, generator=random) / 9
            tensors[f"{at}.{layer}.bias"] = torch.randn(wide * width, generator=random)
            for name, start in (("weight", 0.5), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 0.5)):
                tensors[f"{at}.{layer + 1}.{name}"] = start + torch.rand(wide * width, generator=random)
            tensors[f"{at}.{layer + 1}.num_batches_tracked"] = torch.tensor(7)
    tensors["outc.conv.weight"] = torch.randn(classes, width, 1, 1, generator=random)
    tensors["outc.conv.bias"] = torch.randn(classes, generator=random)
    return tensors


def plain(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """The published network, written as plainly as it can be: `[batch, 2, height, width]`."""

    def pair(block: str, x: Tensor) -> Tensor:
        for layer in (0, 3):
            at = f"{block}.double_conv."
            x = F.conv2d(x, tensors[f"{at}{layer}.weight"], tensors[f"{at}{layer}.bias"], padding=1)
            norm = [
                tensors[f"{at}{layer + 1}.{name}"]
                for name in ("running_mean", "running_var", "weight", "bias")
            ]
            x = F.relu(F.batch_norm(x, *norm))
        return x

    left = [pair("inc", images)]
    for i in range(1, 5):
        left.append(pair(f"down{i}.maxpool_conv.1", F.max_pool2d(left[-1], 2)))
    x = left.pop()
    for i in range(1, 5):
        x = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)(x)
        x = pair(f"up{i}.conv", torch.cat([left.pop(), x], dim=1))
    return F.conv2d(x, tensors["outc.conv.weight"], tensors["outc.conv.bias"])


@pytest.mark.parametrize("channels", [1, 3])
def test_gives_what_the_published_network_gives(channels: int, tmp_path: Path) -> None:
    tensors = state(channels=channels)
    torch.save(tensors, tmp_path / "segmentation.pth")
    assert is_segmenter(tmp_path / "segmentation.pth")
    segmenter, recorded = load_segmenter(tmp_path / "segmentation.pth")
    assert (segmenter.kind, segmenter.width, segmenter.img_channels) == ("unet", 4, channels)
    assert segmenter.img_resolution == 128
    assert recorded["source"] == "segmentation.pth"
    images = torch.rand(2, channels, 48, 48) * 2 - 1
    wanted = plain(tensors, images).softmax(dim=1)[:, 1]
    torch.testing.assert_close(segmenter(images).sigmoid(), wanted, rtol=1e-4, atol=1e-5)
    assert wanted.std() > 0.02


def test_names_are_those_of_the_authors_code() -> None:
    assert set(build_segmenter("unet", 3, 32, 4).state_dict()) == set(state())


def test_sizes_are_those_of_the_published_network() -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build_segmenter("unet", 3, 128).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in state(64).items()}


def test_the_network_of_a_run_that_can_be_continued(tmp_path: Path) -> None:
    tensors = state()
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(3))], 0.005)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4000, 0.2)
    content = {
        "model": tensors, "opt": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "step": 1000
    }  # fmt: skip
    torch.save(content, tmp_path / "checkpoint.pth")
    assert is_segmenter(tmp_path / "checkpoint.pth")
    segmenter, _ = load_segmenter(tmp_path / "checkpoint.pth", 64)
    assert segmenter.img_resolution == 64
    assert torch.equal(
        segmenter.state_dict()["up2.conv.double_conv.3.weight"], tensors["up2.conv.double_conv.3.weight"]
    )


@pytest.mark.parametrize("before", ["", "module."])
def test_names_of_the_older_public_version(before: str, tmp_path: Path) -> None:
    tensors = state()
    renames = {"inc.double_conv": "inc.conv.conv", "maxpool_conv": "mpconv", "double_conv": "conv"}
    older = {}
    for name, tensor in tensors.items():
        for now, then in renames.items():
            name = name.replace(now, then)
        older[before + name] = tensor
    assert f"{before}inc.conv.conv.0.weight" in older
    assert f"{before}down1.mpconv.1.conv.0.weight" in older
    assert f"{before}up1.conv.conv.0.weight" in older
    torch.save(older, tmp_path / "older.pth")
    segmenter, _ = load_segmenter(tmp_path / "older.pth")
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


def test_becomes_a_file_of_ours(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "segmentation.pth")
    segmenter, recorded = load_segmenter(tmp_path / "segmentation.pth")
    save_segmenter(segmenter, tmp_path / "ours.safetensors", {"source": recorded["source"]})
    again, _ = load_segmenter(tmp_path / "ours.safetensors")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(images), segmenter(images))


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth is no saliency network"):
        load_segmenter(tmp_path / "other.pth")
    torch.save(state(classes=21), tmp_path / "classes.pth")
    with pytest.raises(CheckpointError, match=r"last one of \[21, 4, 1, 1\].*2 output channels"):
        load_segmenter(tmp_path / "classes.pth")
    tensors = state()
    del tensors["up3.conv.double_conv.1.running_var"]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"'up3\.conv\.double_conv\.1\.running_var' is missing"):
        load_segmenter(tmp_path / "part.pth")


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class _Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({**state(), "code": _Code()}, tmp_path / "evil.pth")
    load_segmenter(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
