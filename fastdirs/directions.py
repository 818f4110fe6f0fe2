"""The direction bank: what every discovery method produces, as one safetensors file that can be shared."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.errors import BankError, CheckpointError, SelectionError, ShapeError, check_shape
from fastdirs.latents import MAX_EPSILON
from fastdirs.manifest import Json, manifest, sha256_tensors, write_bytes

KIND = "direction-bank"


def fix_signs(directions: Tensor) -> Tensor:
    """Flip each direction so that its largest component is positive: solvers differ in sign, banks must not.

    Args:
        directions: `[num_directions, layers, dim]`, float.

    Returns:
        `[num_directions, layers, dim]`, float.
    """
    return directions * signs(directions)[:, None, None]


def signs(directions: Tensor) -> Tensor:
    """1 or -1 for each direction: the sign of its largest component.

    Args:
        directions: `[num_directions, ...]`, float.

    Returns:
        `[num_directions]`, of the same dtype.
    """
    flat = directions.flatten(1)
    largest = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(largest < 0, -1.0, 1.0).to(directions.dtype)


@dataclass(frozen=True, kw_only=True)
class DirectionBank:
    """Directions in the latent space of one generator, straight or curved.

    A straight direction is one vector, and its shift grows with epsilon. A curved one is a path: its shift at
    some values of epsilon, the knots, with straight lines between them and beyond the ends.

    Attributes:
        directions: Straight: unit length in each layer they touch (over all layers together where these are
            parts of z; in the root mean square where an imported one differs between layers), zero in the
            others. `[num_directions, layers, dim]`, float32.
            Curved: the shift at each knot. `[num_directions, knots, layers, dim]`, float32.
        knots: Epsilons of the knots, ascending, with 0, where the shift is zero; None if straight.
            `[knots]`, float32.
        scales: Standard deviation of the latents along each direction, in latent units.
            `[num_directions]`, float32.
        scores: How strong the method thinks each direction is; meaning and unit depend on the method.
            `[num_directions]`, float32.
        ranges: Suggested lowest and highest epsilon. `[num_directions, 2]`, float32.
        labels: A name for each direction; may be edited.
        tags: Words for each direction, to find it by; may be edited. Empty = none.
        judges: Who looked at each direction and named it; "" = nobody. Empty = nobody at all.
        layers: Latent layers that the directions touch.
        generator: Identity of the generator they belong to: name, family, weights_sha256, licence, space, ...
        method: Name of the method.
        settings: The method's settings.

    Raises:
        ShapeError: Tensors that do not fit each other, the labels or the generator.
        BankError: Knots that do not ascend, or paths that do not pass through zero at epsilon 0.
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
    knots: Tensor | None = None
    tags: tuple[tuple[str, ...], ...] = ()
    judges: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count, sizes = len(self.labels), {"layers": int(self.generator["num_layers"])}
        axes = "directions layers dim"
        if self.knots is not None:
            check_shape(self.knots, "knots", "knots")
            axes, sizes["knots"] = "directions knots layers dim", len(self.knots)
        check_shape(self.directions, axes, "directions", directions=count, **sizes)
        check_shape(self.directions, axes, "directions", dim=int(self.generator["dim"]))
        check_shape(self.scales, "directions", "scales", directions=count)
        check_shape(self.scores, "directions", "scores", directions=count)
        check_shape(self.ranges, "directions 2", "ranges", directions=count)
        # Frozen: what nobody gave is filled in once, so that each direction has its tags and its judge.
        object.__setattr__(self, "tags", self.tags or ((),) * count)
        object.__setattr__(self, "judges", self.judges or ("",) * count)
        for name, values in (("tags", self.tags), ("judges", self.judges)):
            if len(values) != count:
                raise ShapeError(f"{name} are {len(values)}, but there are {count} directions.")
        if self.knots is not None:
            self._check_knots(self.knots)

    def _check_knots(self, knots: Tensor) -> None:
        if len(knots) < 2 or not bool((knots.diff() > 0).all()) or not bool((knots == 0).any()):
            raise BankError(
                f"The knots {[round(knot, 4) for knot in knots.tolist()]} of the paths are no ascending list "
                "that holds 0. Make the bank again."
            )
        if self.directions[:, knots == 0].any():
            raise BankError("A path does not begin at zero: its shift at epsilon 0 is not 0. Make it again.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def curved(self) -> bool:
        """Whether the directions are paths with knots."""
        return self.knots is not None

    def shift(self, index: int, epsilon: float) -> Tensor:
        """What to add to latents to go a signed length along a direction.

        Args:
            index: Direction, from 0.
            epsilon: Signed length, in latent units.

        Returns:
            `[layers, dim]`, float32.

        Raises:
            SelectionError: No such direction, or an epsilon that is not finite or beyond ±1000.
        """
        return self.shifts(index, [epsilon])[0]

    def shifts(self, index: int, epsilons: Sequence[float]) -> Tensor:
        """What to add to latents, for several lengths along one direction.

        Args:
            index: Direction, from 0.
            epsilons: Signed lengths, in latent units.

        Returns:
            `[epsilons, layers, dim]`, float32.

        Raises:
            SelectionError: No such direction, or an epsilon that is not finite or beyond ±1000.
        """
        self.check_index(index)
        for epsilon in epsilons:
            if not abs(epsilon) <= MAX_EPSILON:
                raise SelectionError(
                    f"Epsilon {epsilon:g} is out of range. Expected a value from -1000 to 1000."
                )
        lengths = torch.tensor(list(epsilons), dtype=torch.float32)
        if self.knots is None:
            return lengths[:, None, None] * self.directions[index]
        # The stretch between two knots that an epsilon falls into; the outermost ones go on beyond the ends.
        after = torch.searchsorted(self.knots, lengths).clamp(1, len(self.knots) - 1)
        low, high = self.knots[after - 1], self.knots[after]
        share = ((lengths - low) / (high - low))[:, None, None]
        path = self.directions[index]
        return torch.lerp(path[after - 1], path[after], share)

    def edited_layers(self, index: int) -> tuple[int, ...]:
        """The latent layers that a direction shifts; others of the bank may shift more.

        Raises:
            SelectionError: No such direction.
        """
        self.check_index(index)
        # Layers are the last axis but one, of a vector or of the vectors at all knots.
        touched = self.directions[index].ne(0).any(dim=-1).reshape(-1, self.directions.shape[-2]).any(dim=0)
        return tuple(torch.nonzero(touched).flatten().tolist())

    def chords(self) -> Tensor:
        """Each direction as one vector: itself if straight, else from one end of its path to the other.

        Returns:
            Unit length as straight directions have it; of a path, shorter the more it bends.
            `[num_directions, layers, dim]`, float32.
        """
        if self.knots is None:
            return self.directions
        return (self.directions[:, -1] - self.directions[:, 0]) / (self.knots[-1] - self.knots[0])

    @property
    def sha256(self) -> str:
        """Hash of what shifts depend on; names, scores and ranges may change without changing it."""
        knots = {} if self.knots is None else {"knots": self.knots}
        return sha256_tensors({"directions": self.directions, **knots})

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
            "tags": [list(words) for words in self.tags],
            "judges": list(self.judges),
        }
        header = manifest(KIND, {"generator": self.generator, "bank": bank})
        tensors = {
            "directions": self.directions,
            "scales": self.scales,
            "scores": self.scores,
            "ranges": self.ranges,
        }
        if self.knots is not None:
            tensors["knots"] = self.knots
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
        raise BankError(
            f"{path} is not a direction bank: it is no readable safetensors file. Files of other programs "
            f"become banks with: fastdirs bank import {path} MODEL --out bank.safetensors"
        ) from error
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
            tags=tuple(tuple(words) for words in meta.get("tags", ())),
            judges=tuple(meta.get("judges", ())),
            generator=header["generator"],
            method=meta["method"],
            settings=meta["settings"],
        )
    except (KeyError, TypeError, ShapeError) as error:
        raise BankError(
            f"{path} does not hold what its header says ({error}). Run discover again."
        ) from error
