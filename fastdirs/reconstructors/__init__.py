"""The reconstructor contract, and one file per network: an image pair -> which direction, and how far."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.errors import CheckpointError, SelectionError
from fastdirs.manifest import Json, manifest, write_bytes
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
    """

    kind: str
    width: int

    def __init__(self, num_directions: int, img_channels: int, img_resolution: int) -> None:
        super().__init__()
        self.num_directions = num_directions
        self.img_channels = img_channels
        self.img_resolution = img_resolution

    @abstractmethod
    def features(self, pair: Tensor) -> Tensor:
        """Both images, channels joined, `[batch, 2 * channels, height, width]` -> `[batch, width]`."""

    @abstractmethod
    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[batch, width]` -> logits `[batch, num_directions]` and epsilon `[batch]`."""

    def forward(self, images: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What was done to the images, to be seen in the pair.

        Args:
            images: Unshifted. `[batch, channels, height, width]`, float in [-1, 1].
            shifted: The same seeds, shifted. `[batch, channels, height, width]`, float in [-1, 1].

        Returns:
            Logits over directions `[batch, num_directions]`, epsilon in latent units `[batch]`, and the
            features they were read from `[batch, width]`.
        """
        features = self.features(torch.cat([images, shifted], dim=1))
        logits, epsilon = self.heads(features)
        return logits, epsilon, features


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
        content: What else to record: the generator's identity, and the shifts it was trained on (distribution,
            shift_scale, min_shift, bank_sha256).

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


def load_reconstructor(path: str | Path) -> tuple[Reconstructor, Json]:
    """Read a reconstructor, frozen, in evaluation mode, and what its file records.

    Raises:
        CheckpointError: Missing, broken, not a reconstructor, or values that are not finite.
    """
    path = Path(path)
    tensors, header = read_safetensors(path)
    if header.get("kind") != KIND:
        raise CheckpointError(
            f"{path} is no reconstructor. Discovery by a method that trains writes one into its run folder."
        )
    try:
        config = header["reconstructor"]
        reconstructor = build_reconstructor(
            config["kind"], config["num_directions"], config["img_channels"], config["img_resolution"]
        )
        reconstructor.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, SelectionError) as error:
        raise CheckpointError(
            f"{path} does not hold what its header says ({str(error).splitlines()[0]}). Train it again."
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} has NaN or infinite values in {name!r}. Train it again.")
    return reconstructor.eval().requires_grad_(False), header
