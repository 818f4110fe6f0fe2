"""The direction bank: what every discovery method produces, as one safetensors file that can be shared."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.errors import BankError, CheckpointError, SelectionError, ShapeError, check_shape
from fastdirs.latents import MAX_EPSILON
from fastdirs.manifest import Json, manifest, write_bytes

KIND = "direction-bank"


def fix_signs(directions: Tensor) -> Tensor:
    """Flip each direction so that its largest component is positive: solvers differ in sign, banks must not.

    Args:
        directions: `[num_directions, layers, dim]`, float.

    Returns:
        `[num_directions, layers, dim]`, float.
    """
    flat = directions.flatten(1)
    largest = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)[:, :, None].to(directions.dtype)


@dataclass(frozen=True, kw_only=True)
class DirectionBank:
    """Straight directions in the latent space of one generator.

    Attributes:
        directions: Unit length in each layer they touch, zero in the others.
            `[num_directions, layers, dim]`, float32.
        scales: Standard deviation of the latents along each direction, in latent units.
            `[num_directions]`, float32.
        scores: How strong the method thinks each direction is; meaning and unit depend on the method.
            `[num_directions]`, float32.
        ranges: Suggested lowest and highest epsilon. `[num_directions, 2]`, float32.
        labels: A name for each direction; may be edited.
        layers: Latent layers that the directions touch.
        generator: Identity of the generator they belong to: name, family, weights_sha256, licence, space, ...
        method: Name of the method.
        settings: The method's settings.

    Raises:
        ShapeError: Tensors that do not fit each other, the labels or the generator.
    """

    directions: Tensor
    scales: Tensor
    scores: Tensor
    ranges: Tensor
    labels: tuple[str, ...]
    layers: tuple[int, ...]
    generator: Json
    method: str
    settings: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, num_layers = len(self.labels), int(self.generator["num_layers"])
        check_shape(
            self.directions, "directions layers dim", "directions", directions=count, layers=num_layers
        )
        check_shape(self.directions, "directions layers dim", "directions", dim=int(self.generator["dim"]))
        check_shape(self.scales, "directions", "scales", directions=count)
        check_shape(self.scores, "directions", "scores", directions=count)
        check_shape(self.ranges, "directions 2", "ranges", directions=count)

    def __len__(self) -> int:
        return len(self.labels)

    def shift(self, index: int, epsilon: float) -> Tensor:
        """What to add to latents: epsilon times a direction.

        Args:
            index: Direction, from 0.
            epsilon: Signed length, in latent units.

        Returns:
            `[layers, dim]`, float32.

        Raises:
            SelectionError: No such direction, or an epsilon that is not finite or beyond ±1000.
        """
        self.check_index(index)
        if not abs(epsilon) <= MAX_EPSILON:
            raise SelectionError(f"Epsilon {epsilon:g} is out of range. Expected a value from -1000 to 1000.")
        return epsilon * self.directions[index]

    def check_index(self, index: int) -> None:
        """Raises SelectionError unless the bank has this direction."""
        if not 0 <= index < len(self):
            raise SelectionError(
                f"There is no direction {index}. The bank has {len(self)}: 0 to {len(self) - 1}."
            )

    def check_generator(self, generator: Mapping[str, object]) -> None:
        """Compare with the identity of a generator.

        Raises:
            BankError: The bank was made for other weights.
        """
        mine, other = self.generator, generator
        if any(mine[key] != other[key] for key in ("weights_sha256", "config_sha256")):
            raise BankError(
                f"The bank was made for {mine['name']} (weights {str(mine['weights_sha256'])[:12]}), "
                f"but this is {other['name']} (weights {str(other['weights_sha256'])[:12]}). "
                "Run discover on this generator."
            )

    def save(self, path: Path) -> None:
        """Write one safetensors file; equal banks give equal bytes.

        Raises:
            OutputError: The file cannot be written.
        """
        bank = {
            "method": self.method,
            "settings": self.settings,
            "labels": list(self.labels),
            "layers": list(self.layers),
        }
        header = manifest(KIND, {"generator": self.generator, "bank": bank})
        tensors = {
            "directions": self.directions,
            "scales": self.scales,
            "scores": self.scores,
            "ranges": self.ranges,
        }
        data = save(
            {name: tensor.float().contiguous() for name, tensor in tensors.items()},
            {HEADER: json.dumps(header)},
        )
        write_bytes(path, data)


def load_bank(path: str | Path) -> DirectionBank:
    """Read a bank.

    Args:
        path: A file written by `DirectionBank.save`.

    Raises:
        BankError: Missing, broken, no bank, or values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise BankError(f"{path} does not exist. Make a bank with: fastdirs discover MODEL --out {path}")
    try:
        tensors, header = read_safetensors(path)
    except CheckpointError as error:
        raise BankError(f"{path} is not a direction bank: it is no readable safetensors file.") from error
    if header.get("kind") != KIND:
        what = f"a fastdirs {header['kind']}" if "kind" in header else "a safetensors file of another program"
        raise BankError(f"{path} is {what}, not a direction bank.")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BankError(f"{path} has NaN or infinite values in {name!r}. Run discover again.")
    try:
        meta = header["bank"]
        return DirectionBank(
            **tensors,
            labels=tuple(meta["labels"]),
            layers=tuple(meta["layers"]),
            generator=header["generator"],
            method=meta["method"],
            settings=meta["settings"],
        )
    except (KeyError, TypeError, ShapeError) as error:
        raise BankError(
            f"{path} does not hold what its header says ({error}). Run discover again."
        ) from error
