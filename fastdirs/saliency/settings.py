"""Options of the training of a saliency network, and the published ones as presets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from fastdirs.errors import SelectionError
from fastdirs.machine import bf16_unit
from fastdirs.manifest import Json
from fastdirs.mask_dataset import MaskDataset
from fastdirs.registry import unknown_name
from fastdirs.segmenters import SEGMENTERS

_CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "precision": ("auto", "f32", "bf16"),
    "schedule": ("step", "cosine"),
}
# Beyond it, a picture would be held out of training for every four that are in it.
_MOST_HELD_OUT = 5


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class SaliencySettings:
    """Options of a training. 0 or "auto" is what the network, the dataset or the machine brings.

    Raises:
        SelectionError: A value out of range.
        UnknownNameError: No such network.
    """

    network: str = _option("unet", "unet (as published) or resnet10")
    width: int = _option(0, "what all channel counts are proportional to (0 = as published)")
    size: int = _option(0, "height and width of the images, in pixels (0 = the dataset's)")
    channels: int = _option(0, "1 (grey) or 3 (RGB) (0 = the dataset's)")
    steps: int = _option(15_000, "training steps")
    batch: int = _option(128, "images in a step, over all processes")
    lr: float = _option(0.005, "learning rate of Adam")
    schedule: str = _option("step", "of the learning rate: step, or cosine (down to 0)")
    lr_drop_every: int = _option(4000, "steps between drops of the learning rate")
    lr_drop_factor: float = _option(0.2, "what a drop multiplies it by")
    temperature: float = _option(10.0, "what the loss divides logits by")
    weight_decay: float = _option(0.0, "weight of the squared weights, as Adam has it")
    flip: bool = _option(False, "mirror every other image")
    zoom: float = _option(1.0, "largest factor by which images are enlarged or made smaller (1 = off)")
    jitter: float = _option(0.0, "largest change of brightness, contrast and colour, 0 to 1 (0 = off)")
    seed: int = _option(2, "of weights, order and augmentation")
    device: str = _option("auto", "cpu, cuda or auto; several with torchrun")
    precision: str = _option("auto", "f32, bf16 or auto (bf16 where the machine is fast in it)")
    held_out: int = _option(512, "last pairs that are never trained on; at most a fifth (0 = none)")
    log_every: int = _option(50, "steps between lines of the log")
    save_every: int = _option(500, "steps between checkpoints, and held-out figures")
    picture_every: int = _option(500, "steps between pictures of predictions (0 = none)")

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "width": (0, 1024), "size": (0, 4096), "steps": (1, 2**31), "batch": (2, 2**20), "lr": (0, 1e9),
            "lr_drop_every": (1, 2**31), "lr_drop_factor": (0, 1), "weight_decay": (0, 1e9),
            "zoom": (1, 8), "jitter": (0, 1), "seed": (0, 2**31), "held_out": (0, 2**20),
            "picture_every": (0, 2**31),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            # Not `value < low`: a NaN must not pass.
            if not low <= value <= high:
                raise SelectionError(f"{name}={value:g} is out of range. Expected {low:g} to {high:g}.")
        if not 0 < self.temperature < math.inf:
            raise SelectionError(f"temperature={self.temperature:g} is out of range. Expected more than 0.")
        if self.channels not in (0, 1, 3):
            raise SelectionError(f"channels={self.channels} is unknown. Expected 1 (grey) or 3 (RGB).")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise SelectionError(
                    f"{name}={getattr(self, name)!r} is unknown. Expected {', '.join(known)}."
                )
        if self.network not in SEGMENTERS.names():
            raise unknown_name(SEGMENTERS.noun, self.network, SEGMENTERS.names())
        if self.log_every < 1 or self.save_every < 1 or self.save_every % self.log_every:
            raise SelectionError(
                f"save_every={self.save_every} is no multiple of log_every={self.log_every}. "
                f"Choose one, such as {max(1, self.save_every // max(1, self.log_every)) * self.log_every}."
            )

    def resolved(self, dataset: MaskDataset) -> "SaliencySettings":
        """The settings with everything decided that was left open.

        Args:
            dataset: What is trained on.

        Raises:
            SelectionError: A device that is not there.
            MissingDependencyError: The network needs a package that is not installed.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SelectionError("device=cuda: torch sees no GPU here. Use auto or cpu.")
        cuda = self.device != "cpu" and torch.cuda.is_available()
        fast = torch.cuda.is_bf16_supported() if cuda else bf16_unit() is not None
        precision = "bf16" if fast else "f32"
        return replace(
            self,
            width=self.width or SEGMENTERS.load(self.network).usual_width,
            size=self.size or dataset.img_resolution,
            channels=self.channels or dataset.img_channels,
            held_out=min(self.held_out, len(dataset) // _MOST_HELD_OUT),
            device="cuda" if cuda else "cpu",
            precision=precision if self.precision == "auto" else self.precision,
        )

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2
        return self.lr * self.lr_drop_factor ** (step // self.lr_drop_every)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that go together.

    Attributes:
        source: Where they are from.
        settings: What differs from the published settings, by name.
    """

    source: str
    settings: Json


PRESETS = {
    "published": Preset(
        source="Voynov & Babenko 2020, the authors' code: BigGAN, 128 pixels",
        settings={
            "network": "unet", "width": 64, "steps": 15_000, "batch": 128, "lr": 0.005, "schedule": "step",
            "lr_drop_every": 4000, "lr_drop_factor": 0.2, "temperature": 10.0, "weight_decay": 0.0,
            "flip": False, "zoom": 1.0, "jitter": 0.0, "seed": 2, "log_every": 100, "save_every": 1000,
            "picture_every": 1000,
        },
    ),
    "bgw": Preset(
        source="Voynov, Morozov & Babenko 2021, the authors' code: BigBiGAN, 128 pixels",
        settings={
            "network": "unet", "width": 64, "steps": 12_000, "batch": 95, "lr": 0.001, "schedule": "step",
            "lr_drop_every": 8000, "lr_drop_factor": 0.2, "temperature": 1.0, "weight_decay": 0.0,
            "flip": False, "zoom": 1.0, "jitter": 0.0, "seed": 2, "log_every": 100, "save_every": 1000,
            "picture_every": 1000,
        },
    ),
    "quick": Preset(
        source="chosen here, for processors: minutes instead of days",
        settings={
            "network": "unet", "width": 16, "steps": 2000, "batch": 16, "lr": 0.002, "schedule": "cosine",
            "temperature": 1.0, "flip": True, "zoom": 1.25, "jitter": 0.2, "seed": 0, "log_every": 50,
            "save_every": 500, "picture_every": 500,
        },
    ),
}  # fmt: skip


def saliency_settings(preset: str = "published", values: Mapping[str, str] | None = None) -> SaliencySettings:
    """The settings of a preset, some of them replaced.

    Args:
        preset: Its name in `PRESETS`.
        values: Settings by name, as text, each read as the type of the field's default.

    Raises:
        UnknownNameError: No such preset, setting or network; the nearest spelling is named.
        SelectionError: A value of another type, or out of range.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    chosen = dict(PRESETS[preset].settings)
    defaults: Json = {each.name: each.default for each in fields(SaliencySettings)}
    for name, value in (values or {}).items():
        if name not in defaults:
            raise unknown_name("option of the training", name, defaults)
        kind = type(defaults[name])
        try:
            chosen[name] = _BOOLEANS[value] if kind is bool else kind(value)
        except (ValueError, KeyError) as error:
            raise SelectionError(
                f"{name}={value!r} is not a {kind.__name__}. The default is {defaults[name]!r}."
            ) from error
    return SaliencySettings(**chosen)


_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
