"""Filling a generator from a checkpoint: every tensor is accounted for, bit for bit."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError, UnknownNameError
from fastdirs.generators import GENERATORS
from fastdirs.generators._layout import built, chosen, count_of, fill, number, shape_of
from fastdirs.generators.toy import Toy

HIDDEN, AVERAGE = "stages.0.hidden.weight", "stages.0.average.weight"


def _checkpoint(tensors: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint(path=Path("net.pt"), format="torch_file", tensors=tensors, sha256="")


def _toy_tensors(toy: Toy) -> dict[str, Tensor]:
    state = toy.state_dict()
    return {"a": state[HIDDEN].T * 2, "b": state[AVERAGE] * 2, "unused.kernel": torch.zeros(3)}


SOURCES = {HIDDEN: ("a", lambda tensor: tensor.permute(1, 0)), AVERAGE: "b"}


def test_values_arrive_where_they_belong_and_are_not_shared() -> None:
    toy = Toy(16)
    tensors = _toy_tensors(toy)
    fill(toy, _checkpoint(tensors), SOURCES, [r".*\.kernel"])
    assert torch.equal(toy.state_dict()[HIDDEN], tensors["a"].T)
    assert torch.equal(toy.state_dict()[AVERAGE], tensors["b"])
    tensors["b"].zero_()
    assert toy.state_dict()[AVERAGE].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("b"), r"net.pt is incomplete: 'b' is missing \(1 such tensors\)"),
        (lambda t: t.update(c=torch.zeros(2)), r"holds 'c', which is no part of a toy generator"),
        (lambda t: t.update(b=torch.zeros(3, 4)), r"holds 'b' of shape \[3, 4\]"),
        (lambda t: t.update(a=torch.zeros(2, 3, 4)), r"holds 'a' of shape \[2, 3, 4\]"),
        (lambda t: t["b"].index_fill_(0, torch.tensor(1), float("nan")), "NaN or infinite values in 'b'"),
        (lambda t: t["a"].index_fill_(0, torch.tensor(1), float("inf")), "NaN or infinite values in 'a'"),
        (lambda t: t.update(b=t["b"].double() / 3), "'b' as float64, which float32 cannot hold exactly"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_filled(
    change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    toy = Toy(16)
    before = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    tensors = _toy_tensors(toy)
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        fill(toy, _checkpoint(tensors), SOURCES, [r".*\.kernel"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in toy.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_that_float32_holds_exactly_are_taken(dtype: torch.dtype) -> None:
    toy = Toy(16)
    tensors = _toy_tensors(toy)
    tensors["b"] = torch.full_like(tensors["b"], 0.375).to(dtype)
    fill(toy, _checkpoint(tensors), SOURCES, [r".*\.kernel"])
    assert (toy.state_dict()[AVERAGE] == 0.375).all()


def test_shapes_that_ask_for_far_more_than_the_file_holds() -> None:
    small = _checkpoint({"w": torch.zeros(100)})
    dcgan = GENERATORS.load("dcgan")
    layer = {"kernel": 4, "stride": 1, "padding": 0, "output_padding": 0, "bias": False, "norm": False}
    layers = [{**layer, "in_channels": 2, "out_channels": 3}]
    config = {"layers": layers, "activation": "relu", "output": "tanh", "eps": 1e-5}
    assert built(dcgan.build, config, small).img_resolution == 4
    layers[0]["in_channels"] = 10**10
    with pytest.raises(CheckpointError, match=r"holds 100 values, but the shapes of its tensors ask for \d"):
        built(dcgan.build, config, small)


def test_shape_of() -> None:
    checkpoint = _checkpoint({"w": torch.zeros(2, 3), "none": torch.zeros(0, 3)})
    assert shape_of(checkpoint, "w", 2) == (2, 3)
    with pytest.raises(CheckpointError, match="'v' is missing"):
        shape_of(checkpoint, "v", 2)
    for name, ndim in (("w", 3), ("none", 2)):
        with pytest.raises(CheckpointError, match=f"Expected {ndim} axes"):
            shape_of(checkpoint, name, ndim)


def test_count_of_is_not_led_astray_by_a_huge_number() -> None:
    names = ["convs.0.weight", "convs.1.weight", "convs.999999999999.weight", "other.7.weight"]
    checkpoint = _checkpoint({name: torch.zeros(1) for name in names})
    assert count_of(checkpoint, r"convs\.(\d+)\.weight") == 2
    assert count_of(checkpoint, r"absent\.(\d+)") == 0


def test_chosen_notes_what_nobody_said() -> None:
    assumed: list[str] = []
    assert chosen({}, "noise", "const", ["const", "none"], assumed) == "const"
    assert chosen({"noise": "none"}, "noise", "const", ["const", "none"], assumed) == "none"
    assert assumed == ["noise=const"]
    with pytest.raises(UnknownNameError, match="Did you mean 'none'"):
        chosen({"noise": "nome"}, "noise", "const", ["const", "none"])


def test_number_notes_what_nobody_said() -> None:
    assumed: list[str] = []
    assert number({}, "eps", 1e-5, 0, 1, assumed) == 1e-5
    assert number({"eps": "0.25"}, "eps", 1e-5, 0, 1, assumed) == 0.25
    assert assumed == ["eps=1e-05"]
    for text in ("2", "-1", "nan", "small"):
        with pytest.raises(CheckpointError, match=r"eps=.* is out of range. Expected a number from 0 to 1"):
            number({"eps": text}, "eps", 1e-5, 0, 1)
