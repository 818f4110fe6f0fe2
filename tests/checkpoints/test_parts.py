"""Which of several networks in a file is taken, and what may lie beside its tensors."""

import datetime
import pathlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.checkpoints import Checkpoint, read_checkpoint
from fastdirs.errors import CheckpointError

RAW, AVERAGE, OTHER = ({"weight": torch.full((2,), value)} for value in (1.0, 2.0, 3.0))
MEAN = torch.arange(4.0)


def read(tmp_path: Path, content: Mapping[str, object]) -> Checkpoint:
    torch.save(content, tmp_path / "model.pt")
    return read_checkpoint(tmp_path / "model.pt")


def test_one_network_under_two_names(tmp_path: Path) -> None:
    found = read(tmp_path, {"g": RAW, "g_ema": RAW, "latent_avg": MEAN})
    assert (found.part, found.parts) == ("g_ema", ("", "g", "g_ema"))
    assert list(found.tensors) == ["weight", "latent_avg"]
    assert read(tmp_path, {"a": RAW, "b": RAW}).part == "a"


def test_a_snapshot_whose_average_is_the_generator_itself(pickles: Any) -> None:
    network = pickles.network(RAW)
    found = read_checkpoint(pickles.write({"G": network, "D": pickles.network(OTHER), "G_ema": network}))
    assert (found.part, found.parts) == ("G_ema", ("G", "D", "G_ema"))


def test_a_network_that_a_discriminator_holds_too(tmp_path: Path) -> None:
    shared = {"inner": RAW}
    assert read(tmp_path, {"D": shared, "whatever": shared}).part == "whatever.inner"


@pytest.mark.parametrize(
    "name", ["ema", "model_ema", "ema_model", "averaged", "smoothed.g", "modelEMA", "ema.model"]
)
def test_an_average_comes_before_the_raw_weights(tmp_path: Path, name: str) -> None:
    outer, _, inner = name.partition(".")
    average = {inner: AVERAGE} if inner else AVERAGE
    for raw in ("model", "state_dict", "G", "generator"):
        found = read(tmp_path, {raw: RAW, outer: average})
        assert (found.part, found.tensors["weight"].tolist()) == (name, [2, 2])


@pytest.mark.parametrize("name", ["schema", "smoother", "averaging", "D_avg", "discriminator_averaged"])
def test_names_that_only_look_like_averages(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, {"model": RAW, name: AVERAGE}).part == "model"


def test_averages_of_something_else(tmp_path: Path) -> None:
    assert read(tmp_path, {"model": RAW, "encoder_ema": {"weight": torch.ones(3)}}).part == "model"
    # Of the generator, which is one of the networks in the raw part.
    raw = {**RAW, "other": torch.ones(5)}
    assert read(tmp_path, {"model": raw, "ema": AVERAGE}).part == "ema"


def test_several_averages(tmp_path: Path) -> None:
    content = {"model": RAW, "ema_0.99": AVERAGE, "ema_0.999": OTHER}
    with pytest.raises(CheckpointError, match=r"holds 'model' and several averages.*'ema_0.99', 'ema_0.999'"):
        read(tmp_path, content)
    # The field's own name for it leaves no doubt.
    assert read(tmp_path, {**content, "g_ema": AVERAGE}).part == "g_ema"


def test_the_mean_latent_as_an_array(tmp_path: Path) -> None:
    tensors = read(tmp_path, {"g_ema": RAW, "latent_avg": MEAN.numpy()}).tensors
    assert torch.equal(tensors["latent_avg"], MEAN)


def test_counters_are_no_state_dict(tmp_path: Path) -> None:
    found = read(tmp_path, {"weights": RAW, "step": torch.tensor(3), "ema": {"decay": torch.tensor(0.99)}})
    assert (found.part, found.parts) == ("weights", ("", "weights", "ema"))
    assert list(read(tmp_path, {"step": torch.tensor(3)}).tensors) == ["step"]


HARMLESS = {
    "date": datetime.datetime(2020, 1, 2),
    "path": pathlib.PurePosixPath("a/b"),
    "text": np.str_("text"),
    "random": np.random.RandomState(0).get_state(),
    "random object": np.random.RandomState(0),
    "exact": 1 + 2j,
    "set": {1, 2},
}


@pytest.mark.parametrize("value", HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless_values_beside_tensors(tmp_path: Path, value: object) -> None:
    for content in ({**RAW, "extra": value}, {**RAW, "extra": [{"deep": value}]}):
        assert list(read(tmp_path, content).tensors) == ["weight"]


def test_tensors_that_cannot_be_read_are_not_left_out(tmp_path: Path) -> None:
    for lost, why in (
        (torch.eye(3).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.ones(1).expand(4), "larger than its storage"),
        (np.array(["text"]), "not of little-endian numbers"),
    ):
        with pytest.raises(CheckpointError, match=why):
            read(tmp_path, {**RAW, "lost": lost})


def test_a_defect_in_all_tensors_is_named(tmp_path: Path) -> None:
    state: dict[str, Tensor] = {"a": torch.ones(1).expand(4), "b": torch.ones(1).expand(5)}
    with pytest.raises(CheckpointError, match=r"\(it is a dict\).*cannot be read: .*larger than its storage"):
        read(tmp_path, state)
