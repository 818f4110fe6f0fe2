"""The segmenter contract, and one file per network: an image -> how likely each pixel is salient."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fastdirs.checkpoints import recognise
from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.errors import CheckpointError, MissingDependencyError, SelectionError, UnknownNameError
from fastdirs.manifest import Json, manifest, write_bytes
from fastdirs.registry import Registry
from fastdirs.segmenters._original import is_original, read_original

KIND = "segmenter"
_MAX_WIDTH = 1024


class Segmenter(nn.Module, ABC):
    """Tells salient objects from their background, pixel by pixel.

    Attributes:
        kind: Registered name of the network.
        img_channels: Channels of an image, 1 or 3.
        img_resolution: Height and width of the images that it is trained on and reads, in pixels; callers
            resize theirs.
        width: What all its channel counts are proportional to.
        smallest: Height and width of the smallest images that it takes, in pixels.

    Raises:
        SelectionError: Images that are neither grey nor RGB, or too small for the network, or a width that
            makes no sense.
    """

    kind: str
    smallest: int = 1

    def __init__(self, img_channels: int, img_resolution: int, width: int) -> None:
        super().__init__()
        if img_channels not in (1, 3):
            raise SelectionError(f"Images of {img_channels} channels. Expected 1 (grey) or 3 (RGB).")
        if img_resolution < self.smallest:
            raise SelectionError(
                f"{self.kind} takes images of {self.smallest} pixels or more, not of {img_resolution}. "
                "Resize them, or choose another network."
            )
        if not 1 <= width <= _MAX_WIDTH:
            raise SelectionError(f"width={width} is out of range. Expected 1 to {_MAX_WIDTH}.")
        self.img_channels = img_channels
        self.img_resolution = img_resolution
        self.width = width

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Logits of "salient"; their sigmoid is the saliency.

        Args:
            images: `[batch, channels, height, width]`, float in [-1, 1].

        Returns:
            `[batch, height, width]`, float.
        """


@dataclass(frozen=True, kw_only=True)
class SegmenterKind:
    """One network.

    Attributes:
        summary: One line, with the paper.
        build: (image channels, resolution, width) -> segmenter with random weights, in training mode.
        usual_width: The published width.
    """

    summary: str
    build: Callable[[int, int, int], Segmenter]
    usual_width: int


SEGMENTERS: Registry[SegmenterKind] = Registry("fastdirs.segmenters", "SEGMENTER", "saliency network")


def build_segmenter(kind: str, img_channels: int, img_resolution: int, width: int = 0) -> Segmenter:
    """A segmenter with random weights, in training mode.

    Args:
        kind: Registered name.
        img_channels: 1 (grey) or 3 (RGB).
        img_resolution: Height and width of the images, in pixels.
        width: What all channel counts are proportional to; 0 = as published.

    Raises:
        UnknownNameError: No such kind.
        MissingDependencyError: It needs a package that is not installed.
        SelectionError: Images that it does not take, or a width that makes no sense.
    """
    plugin = SEGMENTERS.load(kind)
    return plugin.build(img_channels, img_resolution, width or plugin.usual_width)


def save_segmenter(segmenter: Segmenter, path: Path, content: Json) -> None:
    """Write one safetensors file; equal weights give equal bytes.

    Args:
        segmenter: The network.
        path: The file.
        content: What else to record: the dataset's identity, the settings, what was reached.

    Raises:
        OutputError: The file cannot be written.
    """
    config = {
        "kind": segmenter.kind,
        "img_channels": segmenter.img_channels,
        "img_resolution": segmenter.img_resolution,
        "width": segmenter.width,
    }
    header = manifest(KIND, {**content, "segmenter": config})
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in segmenter.state_dict().items()}
    write_bytes(path, save(state, {HEADER: json.dumps(header)}))


def is_segmenter(path: Path) -> bool:
    """Whether a file is a segmenter, written by fastdirs or by the authors' code; False if unreadable."""
    try:
        if recognise(path) == "safetensors_file":
            return read_safetensors(path)[1].get("kind") == KIND
        return is_original(path)
    except CheckpointError:
        return False


def load_segmenter(path: str | Path, img_resolution: int | None = None) -> tuple[Segmenter, Json]:
    """Read a segmenter, frozen, in evaluation mode, and what its file records.

    Args:
        path: A file that `save_segmenter` wrote, or segmentation.pth or checkpoint.pth of the authors' code.
            Nothing in it is run.
        img_resolution: Height and width of the images, for a file of the authors' code, which does not say
            it; None = the 128 of all their runs.

    Raises:
        CheckpointError: Missing, broken, not a segmenter, or values that are not finite.
        MissingDependencyError: The network needs a package that is not installed.
    """
    path = Path(path)
    tensors, header = _read(path, img_resolution)
    try:
        config = header["segmenter"]
        arguments = config["kind"], config["img_channels"], config["img_resolution"], config["width"]
        # Without memory first: a damaged number may ask for more than there is.
        with torch.device("meta"):
            wanted = build_segmenter(*arguments).state_dict()
    except MissingDependencyError:
        raise
    except (KeyError, TypeError, RuntimeError, SelectionError, UnknownNameError) as error:
        raise CheckpointError(
            f"{path} does not hold what its header says ({str(error).splitlines()[0]}). Train it again."
        ) from error
    _check_tensors(f"{path} is no whole {config['kind']} segmenter", path, tensors, wanted)
    # Weights that are replaced at once: whoever draws random numbers goes on as if nothing had been drawn.
    with torch.random.fork_rng(devices=[]):
        segmenter = build_segmenter(*arguments)
    segmenter.load_state_dict(tensors)
    return segmenter.eval().requires_grad_(False), header


def _read(path: Path, img_resolution: int | None) -> tuple[Mapping[str, Tensor], Json]:
    """Tensors by our names, and what the file records."""
    if recognise(path) == "safetensors_file":
        tensors, header = read_safetensors(path)
        if header.get("kind") == KIND:
            return tensors, header
    original = read_original(path, img_resolution)
    return original.tensors, manifest(KIND, {"segmenter": original.config, "source": path.name})


def _check_tensors(
    problem: str, path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Raises CheckpointError unless all tensors are there, of the right shape, finite, and no others."""
    differing = sorted(set(wanted) ^ set(tensors))
    if differing:
        state = "is missing" if differing[0] in wanted else "is no part of it"
        raise CheckpointError(
            f"{problem}: {differing[0]!r} {state} ({len(differing)} tensors differ). Train it again."
        )
    for name, tensor in tensors.items():
        right = wanted[name]
        if tensor.shape != right.shape or tensor.is_floating_point() != right.is_floating_point():
            raise CheckpointError(
                f"{problem}: {name!r} has shape {list(tensor.shape)} and type {str(tensor.dtype)[6:]}, "
                f"expected {list(right.shape)} and {str(right.dtype)[6:]}. Train it again."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} has NaN or infinite values in {name!r}. Train it again.")
