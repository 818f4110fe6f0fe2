"""Options of the training of a saliency network, and the published ones as presets."""

import math
from dataclasses import asdict, fields

import pytest
import torch

from fastdirs.errors import SelectionError, UnknownNameError
from fastdirs.machine import bf16_unit
from fastdirs.mask_dataset import MaskDataset
from fastdirs.saliency.settings import PRESETS, SaliencySettings, saliency_settings


def test_the_published_settings() -> None:
    """As in section 5 of the paper and in the authors' code."""
    settings = saliency_settings("published")
    assert (settings.network, settings.width) == ("unet", 64)
    assert (settings.steps, settings.batch, settings.seed) == (15_000, 128, 2)
    assert (settings.lr, settings.weight_decay, settings.temperature) == (0.005, 0, 10)
    assert not settings.flip
    assert (settings.zoom, settings.jitter) == (1, 0)
    rates = [settings.lr_at(step) for step in (0, 3999, 4000, 7999, 8000, 12_000, 14_999)]
    assert rates == pytest.approx([0.005, 0.005, 0.001, 0.001, 2e-4, 4e-5, 4e-5])


def test_the_settings_of_the_paper_after_it() -> None:
    settings = saliency_settings("bgw")
    assert (settings.steps, settings.batch, settings.temperature) == (12_000, 95, 1)
    assert [settings.lr_at(step) for step in (0, 7999, 8000)] == pytest.approx([1e-3, 1e-3, 2e-4])


def test_rates_are_those_of_the_scheduler_of_torch() -> None:
    settings = saliency_settings("published", {"lr_drop_every": "3", "steps": "10"})
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], settings.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, settings.lr_drop_factor)
    for step in range(10):
        assert settings.lr_at(step) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_a_rate_that_goes_down_to_nothing() -> None:
    settings = saliency_settings("quick", {"steps": "100", "lr": "0.01"})
    assert settings.lr_at(0) == 0.01
    assert settings.lr_at(50) == pytest.approx(0.005)
    assert 0 < settings.lr_at(99) < 1e-5


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets(preset: str) -> None:
    assert PRESETS[preset].source
    settings = saliency_settings(preset)
    for name, value in PRESETS[preset].settings.items():
        assert getattr(settings, name) == value
        assert type(value) is type(getattr(SaliencySettings(), name)), name
    # Every setting may be given as text.
    as_text = {name: str(value).lower() for name, value in asdict(settings).items()}
    assert saliency_settings("published", as_text) == settings
    assert all(each.metadata["help"] for each in fields(SaliencySettings))


def test_given_settings_replace_those_of_the_preset() -> None:
    settings = saliency_settings("quick", {"steps": "7", "flip": "no", "jitter": "0"})
    assert (settings.steps, settings.flip, settings.jitter) == (7, False, 0)
    assert settings.width == PRESETS["quick"].settings["width"]


def test_what_is_left_open(toy_dataset: MaskDataset) -> None:
    settings = SaliencySettings(device="cpu").resolved(toy_dataset)
    assert (settings.width, settings.size, settings.channels) == (64, 32, 3)
    assert settings.held_out == 20, "at most a fifth of 100"
    assert settings.precision == ("bf16" if bf16_unit() else "f32")
    given = SaliencySettings(
        network="resnet10", width=8, size=48, channels=1, held_out=3, device="cpu", precision="f32"
    )
    assert given.resolved(toy_dataset) == given
    assert SaliencySettings(network="resnet10", device="cpu").resolved(toy_dataset).width == 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(toy_dataset: MaskDataset) -> None:
    with pytest.raises(SelectionError, match="device=cuda: torch sees no GPU"):
        SaliencySettings(device="cuda").resolved(toy_dataset)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", -1), ("size", -4), ("steps", 0), ("batch", 1), ("lr", -1e-3), ("lr", math.nan),
        ("lr_drop_every", 0), ("lr_drop_factor", 1.5), ("temperature", 0.0), ("temperature", math.inf),
        ("temperature", math.nan), ("weight_decay", -1.0), ("zoom", 0.5), ("jitter", 1.5), ("seed", -1),
        ("held_out", -1), ("picture_every", -1), ("channels", 2), ("device", "tpu"), ("precision", "f16"),
        ("schedule", "linear"), ("log_every", 0),
    ],
)  # fmt: skip
def test_values_out_of_range(name: str, value: object) -> None:
    with pytest.raises(SelectionError, match=rf"\b{name}="):
        SaliencySettings(**{name: value})


def test_checkpoints_lie_at_lines_of_the_log() -> None:
    with pytest.raises(SelectionError, match=r"save_every=70 is no multiple of log_every=50.*such as 50"):
        SaliencySettings(save_every=70)


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UnknownNameError, match=r"preset 'publisht'.*'published'"):
        saliency_settings("publisht")
    with pytest.raises(UnknownNameError, match=r"option of the training 'step'.*'steps'"):
        saliency_settings("quick", {"step": "3"})
    with pytest.raises(UnknownNameError, match=r"saliency network 'unnet'.*'unet'"):
        saliency_settings("quick", {"network": "unnet"})


@pytest.mark.parametrize(
    ("name", "value"), [("steps", "many"), ("steps", "1.5"), ("lr", "low"), ("flip", "maybe")]
)
def test_values_of_another_type(name: str, value: str) -> None:
    with pytest.raises(SelectionError, match=f"{name}='{value}' is not a "):
        saliency_settings("quick", {name: value})
