"""Options of every method that trains, and what is taken where they are left open."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch

from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.machine import bf16_unit
from fastdirs.manifest import Json
from fastdirs.pairs import ShiftDistribution

S = TypeVar("S", bound="TrainingSettings")
# What "auto" and 0 come to where the family has no published settings.
USUAL: Json = {
    "steps": 2000, "batch": 32, "reconstructor": "small", "directions_lr": 1e-3, "reconstructor_lr": 3e-4,
    "deformator": "proj",
}  # fmt: skip


def option(default: Any, text: str) -> Any:
    """A field of a settings dataclass, with its help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainingSettings:
    """Options of every method that trains. 0 or "auto" is the family's published value, or a usual one.

    Raises:
        SelectionError: A value out of range.
    """

    steps: int = option(0, "training steps (0 = the family's)")
    batch: int = option(0, "pairs in a step, over all processes (0 = the family's)")
    reconstructor: str = option("auto", "lenet, resnet18 or small")
    resize: int = option(0, "what the reconstructor sees, in pixels (0 = the whole picture, up to 256)")
    shift_scale: float = option(6.0, "largest shift, in latent units")
    min_shift: float = option(0.5, "smallest shift, in latent units")
    distribution: str = option("uniform", "of shifts: uniform or normal")
    label_weight: float = option(1.0, "weight of the loss of the direction's index")
    shift_weight: float = option(0.25, "weight of the loss of epsilon")
    directions_lr: float = option(0.0, "learning rate of the directions (0 = the family's)")
    reconstructor_lr: float = option(0.0, "learning rate of the reconstructor (0 = the family's)")
    seed: int = option(0, "of weights and pairs")
    device: str = option("auto", "cpu, cuda or auto; several with torchrun")
    precision: str = option("auto", "f32, bf16 or auto (bf16 where the machine has units for it)")
    log_every: int = option(50, "steps between lines of the log")
    save_every: int = option(500, "steps between checkpoints, and held-out accuracies")
    held_out: int = option(640, "pairs of a held-out accuracy along the way")
    picture_every: int = option(1000, "steps between pictures of strips (0 = none)")

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "resize", "label_weight", "shift_weight", "directions_lr",
                     "reconstructor_lr", "seed", "held_out", "picture_every"):  # fmt: skip
            value = getattr(self, name)
            # Not `value < 0`: a NaN must not pass.
            if not 0 <= value < 2**31:
                raise SelectionError(f"{name}={value:g} is out of range. Expected 0 or more.")
        for name, known in (("device", ("auto", "cpu", "cuda")), ("precision", ("auto", "f32", "bf16"))):
            if getattr(self, name) not in known:
                raise SelectionError(
                    f"{name}={getattr(self, name)!r} is unknown. Expected {', '.join(known)}."
                )
        if self.log_every < 1 or self.save_every < 1 or self.save_every % self.log_every:
            raise SelectionError(
                f"save_every={self.save_every} is no multiple of log_every={self.log_every}. "
                f"Choose one, such as {max(1, self.save_every // max(1, self.log_every)) * self.log_every}."
            )
        self.shifts  # noqa: B018

    @property
    def shifts(self) -> ShiftDistribution:
        """How far images are shifted."""
        return ShiftDistribution(self.distribution, self.shift_scale, self.min_shift)

    def resolved(self: S, generator: Generator) -> S:
        """The settings with everything decided that was left open.

        Args:
            generator: Whose family's published values are taken, before the usual ones.

        Raises:
            SelectionError: A `resize` that does not divide the picture, or a device that is not there.
        """
        resolution = generator.img_resolution
        usual = {**USUAL, "resize": min(resolution, 256), **generator.discovery_defaults}
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SelectionError("device=cuda: torch sees no GPU here. Use auto or cpu.")
        cuda = self.device != "cpu" and torch.cuda.is_available()
        fast = torch.cuda.is_bf16_supported() if cuda else bf16_unit() is not None
        usual["device"] = "cuda" if cuda else "cpu"
        usual["precision"] = "bf16" if fast and "bf16" in generator.precisions else "f32"
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        left_open = [name for name in given if name in usual and given[name] in (0, "auto")]
        chosen = replace(self, **{name: usual[name] for name in left_open})
        if resolution % chosen.resize:
            raise SelectionError(
                f"resize={chosen.resize} does not divide the {resolution} pixels of "
                f"{generator.provenance.name}. Choose a divisor."
            )
        return chosen
