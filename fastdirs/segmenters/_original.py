"""U-Nets that the authors' code of two papers on saliency from GANs saved, under our names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastdirs.checkpoints import FORMATS, read_checkpoint, recognise
from fastdirs.errors import CheckpointError
from fastdirs.manifest import Json

# A block, whatever the names between, and its layer's place: the public U-Net was renamed over the years.
_LAYER = re.compile(r"(?:module\.)?(inc|down[1-4]|up[1-4])\.(?:\w+\.)*?([0134])\.(\w+)")
_LAST = re.compile(r"(?:module\.)?outc\.conv\.(weight|bias)")
_INNER = {"inc": "double_conv", "down": "maxpool_conv.1.double_conv", "up": "conv.double_conv"}
_FIRST_WEIGHT, _LAST_WEIGHT = "inc.double_conv.0.weight", "outc.conv.weight"
# What a checkpoint of a run that can be continued calls the network.
_PART = "model"
_RESOLUTION = 128


@dataclass(frozen=True, kw_only=True)
class Original:
    """What a file of the authors' code holds.

    Attributes:
        config: kind, img_channels, img_resolution, width.
        tensors: By our names, any shape `[...]`.
    """

    config: Json
    tensors: Mapping[str, Tensor]


def is_original(path: Path) -> bool:
    """Whether a file holds a U-Net of the authors' code, by the names of its tensors.

    Raises:
        CheckpointError: Not readable.
    """
    parts = _parts(path)
    return any(_is_unet(parts.get(name, ())) for name in (_PART, ""))


def read_original(path: Path, img_resolution: int | None) -> Original:
    """Read segmentation.pth, or the network in checkpoint.pth.

    Args:
        path: The file.
        img_resolution: Height and width of the images, which the file does not say; None = as published.

    Raises:
        CheckpointError: Unreadable, or no U-Net.
    """
    checkpoint = read_checkpoint(path, _PART if _PART in _parts(path) else None)
    if not _is_unet(checkpoint.tensors):
        raise CheckpointError(
            f"{path} is no saliency network. Training one writes a safetensors file; in the authors' code it "
            "is segmentation.pth or checkpoint.pth."
        )
    tensors = {_renamed(name): tensor for name, tensor in checkpoint.tensors.items()}
    first, last = tensors[_FIRST_WEIGHT], tensors[_LAST_WEIGHT]
    if first.ndim != 4 or first.shape[1] not in (1, 3) or last.ndim != 4 or last.shape[0] != 2:
        raise CheckpointError(
            f"{path} has a first layer of shape {list(first.shape)} and a last one of {list(last.shape)}. "
            "Expected 1 or 3 input channels and 2 output channels: background and object."
        )
    config = {
        "kind": "unet",
        "img_channels": int(first.shape[1]),
        "img_resolution": img_resolution or _RESOLUTION,
        "width": int(first.shape[0]),
    }
    return Original(config=config, tensors=tensors)


def _parts(path: Path) -> Mapping[str, Iterable[str]]:
    """Names of the tensors in each part of a file; nothing for formats without parts."""
    survey = FORMATS.load(recognise(path)).survey
    return {} if survey is None else survey(path).parts


def _is_unet(names: Iterable[str]) -> bool:
    return {_FIRST_WEIGHT, _LAST_WEIGHT, "up4.conv.double_conv.3.weight"} <= {_renamed(n) for n in names}


def _renamed(name: str) -> str:
    """Our name of a tensor; names of other networks stay."""
    if match := _LAYER.fullmatch(name):
        block, layer, tensor = match.groups()
        return f"{block}.{_INNER[block.rstrip('1234')]}.{layer}.{tensor}"
    if match := _LAST.fullmatch(name):
        return f"outc.conv.{match[1]}"
    return name
