"""The reconstructor contract, and one file per network: an image pair -> which direction, and how far."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.checkpoints import recognise
from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.errors import CheckpointError, SelectionError, ShapeError, UnknownNameError
from fastdirs.manifest import Json, manifest, write_bytes
from fastdirs.reconstructors._original import is_original, read_original
from fastdirs.registry import Registry

KIND = "reconstructor"


class Reconstructor(nn.Module, ABC):
    """Predicts the index of a direction and epsilon from an unshifted and a shifted image.

    Attributes:
        kind: Registered name of the network.
        num_directions: K, the classes it tells apart.
        img_channels: Channels of one image, 1 or 3.
        img_resolution: Height and width of the images, in pixels.
        width: Numbers in the features of a pair.
        smallest: Height and width of the smallest images that it takes, in pixels.
        classifier: The layer that ends in the logits; a row for each direction.

    Raises:
        SelectionError: No directions, images that are neither grey nor RGB, or too small for the network.
    """

    kind: str
    width: int
    smallest: int = 1
    classifier: nn.Linear

    def __init__(self, num_directions: int, img_channels: int, img_resolution: int) -> None:
        super().__init__()
        if num_directions < 1:
            raise SelectionError(f"A reconstructor tells directions apart: {num_directions} is too few.")
        if img_channels not in (1, 3):
            raise SelectionError(f"Images of {img_channels} channels. Expected 1 (grey) or 3 (RGB).")
        if img_resolution < self.smallest:
            raise SelectionError(
                f"{self.kind} takes images of {self.smallest} pixels or more; these have {img_resolution}. "
                "Choose another reconstructor."
            )
        self.num_directions = num_directions
        self.img_channels = img_channels
        self.img_resolution = img_resolution

    @abstractmethod
    def features(self, pair: Tensor) -> Tensor:
        """Both images, channels joined, `[batch, 2 * channels, height, width]` -> `[batch, width]`."""

    @abstractmethod
    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[batch, width]` -> logits `[batch, num_directions]` and epsilon `[batch]`."""

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Renumber directions: number i becomes what `order[i]` was. `order` is `[num_directions]`, int64."""
        self.classifier.weight.copy_(self.classifier.weight[order])
        self.classifier.bias.copy_(self.classifier.bias[order])

    def forward(self, images: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What was done to the images, to be seen in the pair.

        Args:
            images: Unshifted. `[batch, channels, height, width]`, float in [-1, 1]; larger ones than
                `img_resolution` are averaged down to it.
            shifted: The same seeds, shifted. `[batch, channels, height, width]`, float in [-1, 1].

        Returns:
            Logits over directions `[batch, num_directions]`, epsilon in latent units `[batch]`, and the
            features they were read from `[batch, width]`.

        Raises:
            ShapeError: Images that are no multiple of `img_resolution`.
        """
        pair = shrink(torch.cat([images, shifted], dim=1), self.img_resolution)
        features = self.features(pair)
        logits, epsilon = self.heads(features)
        return logits, epsilon, features


def shrink(images: Tensor, img_resolution: int) -> Tensor:
    """Images averaged down to the size that a reconstructor reads.

    Args:
        images: Square, a multiple of `img_resolution` high. `[batch, channels, height, width]`, float.
        img_resolution: Height and width to come to, in pixels.

    Returns:
        `[batch, channels, img_resolution, img_resolution]`, of the same dtype.

    Raises:
        ShapeError: Another height or width.
    """
    height, width = images.shape[-2:]
    if height != width or height < img_resolution or height % img_resolution:
        raise ShapeError(
            f"Images of {height} x {width} pixels do not average down to the {img_resolution} that the "
            "reconstructor reads. Expected square ones of that size or a multiple."
        )
    return images if height == img_resolution else F.avg_pool2d(images, height // img_resolution)


@dataclass(frozen=True, kw_only=True)
class ReconstructorKind:
    """One network.

    Attributes:
        summary: One line, with the paper.
        build: (number of directions, image channels, resolution) -> reconstructor with random weights, in
            training mode.
    """

    summary: str
    build: Callable[[int, int, int], Reconstructor]


RECONSTRUCTORS: Registry[ReconstructorKind] = Registry(
    "fastdirs.reconstructors", "RECONSTRUCTOR", "reconstructor"
)


def build_reconstructor(
    kind: str, num_directions: int, img_channels: int, img_resolution: int
) -> Reconstructor:
    """A reconstructor with random weights, in training mode.

    Raises:
        UnknownNameError: No such kind.
        SelectionError: Images that are too small for it.
    """
    return RECONSTRUCTORS.load(kind).build(num_directions, img_channels, img_resolution)


def save_reconstructor(reconstructor: Reconstructor, path: Path, content: Json) -> None:
    """Write one safetensors file; equal weights give equal bytes.

    Args:
        reconstructor: The network.
        path: The file.
        content: What else to record: the generator's identity, and the shifts it was trained on
            (distribution, shift_scale, min_shift, bank_sha256).

    Raises:
        OutputError: The file cannot be written.
    """
    config = {
        "kind": reconstructor.kind,
        "num_directions": reconstructor.num_directions,
        "img_channels": reconstructor.img_channels,
        "img_resolution": reconstructor.img_resolution,
    }
    header = manifest(KIND, {"reconstructor": config, **content})
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in reconstructor.state_dict().items()}
    write_bytes(path, save(state, {HEADER: json.dumps(header)}))


def is_reconstructor(path: Path) -> bool:
    """Whether a file is a reconstructor, written by fastdirs or by the authors' code; False if unreadable."""
    try:
        if recognise(path) == "safetensors_file":
            return read_safetensors(path)[1].get("kind") == KIND
        return is_original(path)
    except CheckpointError:
        return False


def load_reconstructor(path: str | Path, img_resolution: int | None = None) -> tuple[Reconstructor, Json]:
    """Read a reconstructor, frozen, in evaluation mode, and what its file records.

    Args:
        path: A file that `save_reconstructor` wrote, or shift_predictor_STEP.pt or checkpoint.pt of the
            authors' code. Nothing in it is run.
        img_resolution: Height and width of the images, for a file of the authors' code, which does not say
            it; None takes it from args.json of the run, where that lies beside it.

    Raises:
        CheckpointError: Missing, broken, not a reconstructor, or values that are not finite.
    """
    path = Path(path)
    tensors, header = _read(path, img_resolution)
    try:
        config = header["reconstructor"]
        arguments = (
            config["kind"], config["num_directions"], config["img_channels"], config["img_resolution"]
        )  # fmt: skip
        # Without memory first: a damaged number may ask for more than there is.
        with torch.device("meta"):
            wanted = build_reconstructor(*arguments).state_dict()
    except (KeyError, TypeError, RuntimeError, SelectionError, UnknownNameError) as error:
        raise CheckpointError(
            f"{path} does not hold what its header says ({str(error).splitlines()[0]}). Train it again."
        ) from error
    _check_tensors(f"{path} is no whole {config['kind']} reconstructor", path, tensors, wanted)
    # Weights that are replaced at once: whoever draws random numbers goes on as if nothing had been drawn.
    with torch.random.fork_rng(devices=[]):
        reconstructor = build_reconstructor(*arguments)
    reconstructor.load_state_dict(tensors)
    return reconstructor.eval().requires_grad_(False), header


def _read(path: Path, img_resolution: int | None) -> tuple[Mapping[str, Tensor], Json]:
    """Tensors by our names, and what the file records."""
    if recognise(path) == "safetensors_file":
        tensors, header = read_safetensors(path)
        if header.get("kind") == KIND:
            return tensors, header
    original = read_original(path, img_resolution)
    return original.tensors, manifest(KIND, {"reconstructor": original.config, **original.recorded})


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
