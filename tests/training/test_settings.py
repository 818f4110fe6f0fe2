"""Options of every method that trains."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.training.settings import TrainingSettings


def test_what_is_left_open_is_decided(toy: Generator, small_dcgan: Generator) -> None:
    settings = TrainingSettings().resolved(toy)
    assert (settings.steps, settings.batch, settings.reconstructor, settings.resize) == (
        2000,
        32,
        "small",
        32,
    )
    assert settings.device in ("cpu", "cuda")
    assert settings.precision in ("f32", "bf16")

    class Published(type(small_dcgan)):  # type: ignore[misc]
        discovery_defaults: ClassVar = {"batch": 128, "reconstructor": "lenet", "deformator": "ortho"}

    small = object.__new__(Published)
    small.__dict__.update(small_dcgan.__dict__)
    settings = TrainingSettings(steps=7).resolved(small)
    assert (settings.steps, settings.batch, settings.reconstructor) == (7, 128, "lenet")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": -1}, "steps=-1 is out of range"),
        ({"directions_lr": float("nan")}, "directions_lr=nan is out of range"),
        ({"log_every": 0}, "save_every=500 is no multiple of log_every=0"),
        ({"save_every": 70}, "save_every=70 is no multiple of log_every=50"),
        ({"device": "tpu"}, "device='tpu' is unknown"),
        ({"precision": "f16"}, "precision='f16' is unknown"),
        ({"distribution": "gauss"}, "distribution='gauss' is unknown"),
        ({"min_shift": 9.0}, "min_shift=9 is out of range"),
    ],
)
def test_values_out_of_range(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        TrainingSettings(**wrong)


def test_a_size_that_does_not_divide_the_picture(toy: Generator) -> None:
    with pytest.raises(SelectionError, match="resize=24 does not divide the 32 pixels of toy"):
        replace(TrainingSettings(), resize=24).resolved(toy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there(toy: Generator) -> None:
    with pytest.raises(SelectionError, match="device=cuda: torch sees no GPU here"):
        TrainingSettings(device="cuda").resolved(toy)
