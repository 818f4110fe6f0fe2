"""A U-Net on a residual network of 10 layers."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from fastdirs.segmenters import build_segmenter, save_segmenter


def test_width_is_that_of_the_way_up() -> None:
    with torch.device("meta"):
        narrow, wide = (build_segmenter("resnet10", 3, 64, width).state_dict() for width in (4, 8))
    differing = {name for name, tensor in narrow.items() if tensor.shape != wide[name].shape}
    assert differing
    assert not any(name.startswith("body.encoder") for name in differing)


def test_other_sizes_are_read_with_their_border_repeated() -> None:
    torch.manual_seed(0)
    segmenter = build_segmenter("resnet10", 3, 45, 4).eval()
    images = torch.rand(2, 3, 45, 45)
    wanted = segmenter(F.pad(images, (0, 19, 0, 19), mode="replicate"))[:, :45, :45]
    torch.testing.assert_close(segmenter(images), wanted, rtol=0, atol=0)


def test_without_its_library(python_without: Callable[..., str], tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from fastdirs.errors import MissingDependencyError
from fastdirs.segmenters import SEGMENTERS, build_segmenter, is_segmenter, load_segmenter
assert SEGMENTERS.names() == ["resnet10", "unet"]
assert build_segmenter("unet", 3, 32, 4)
assert is_segmenter(Path(sys.argv[1]))
for work in (lambda: build_segmenter("resnet10", 3, 32, 4), lambda: load_segmenter(sys.argv[1])):
    try:
        work()
    except MissingDependencyError as error:
        print(error)
"""
    save_segmenter(build_segmenter("resnet10", 3, 32, 4), tmp_path / "s.safetensors", {})
    printed = python_without(["monai"], code, tmp_path / "s.safetensors").splitlines()
    assert len(printed) == 2
    for line in printed:
        assert line.startswith(
            "The saliency network 'resnet10' needs monai, which is not installed: pip install "
        )
