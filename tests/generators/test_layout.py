"""Filling a generator from a checkpoint: every tensor is accounted for, bit for bit."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError, UnknownNameError
from fastdirs.generators import GENERATORS, built
from fastdirs.generators._layout import (
    check_channels,
    check_grown,
    check_known,
    check_positive,
    check_settings,
    chosen,
    count_of,
    fill,
    number,
    provenance_of,
    shape_of,
)
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


def test_what_is_superfluous_is_not_to_be_taken_out() -> None:
    """A tensor that no picture depends on is listed; any other may be a part of the computation."""
    tensors = {**_toy_tensors(toy := Toy(16)), "c": torch.zeros(2)}
    with pytest.raises(
        CheckpointError, match="Report it with this name, or choose another --family"
    ) as caught:
        fill(toy, _checkpoint(tensors), SOURCES, [r".*\.kernel"])
    assert "Take the tensors out" not in str(caught.value)


def test_a_generator_is_named_after_its_folder_or_file(tmp_path: Path) -> None:
    for path, name in ((tmp_path / "net.v2.pt", "net.v2"), (tmp_path, tmp_path.name)):
        checkpoint = Checkpoint(path=path, format="torch_file", tensors={}, sha256="")
        found = provenance_of(checkpoint, ["eps=1e-05"])
        assert (found.name, found.source, found.assumed) == (name, path.name, ("eps=1e-05",))


def test_pictures_are_grey_or_rgb() -> None:
    for channels in (1, 3):
        check_channels(_checkpoint({}), channels)
    with pytest.raises(CheckpointError, match=r"makes images of 4 channels. Expected 1 .* or 3"):
        check_channels(_checkpoint({}), 4)


def test_settings_beside_the_weights_are_compared() -> None:
    settings = {"z_dim": 128, "hier": True, "layers": [1, 2]}
    checkpoint = Checkpoint(path=Path("net"), format="folder", tensors={}, settings=settings, sha256="")
    check_settings(checkpoint, {**settings, "unsaid": 7})
    for name, value in (("z_dim", 64), ("hier", False), ("layers", [1, 3])):
        with pytest.raises(CheckpointError) as caught:
            check_settings(checkpoint, {**settings, name: value})
        assert f"says {name}={settings[name]!r}, but its tensors are those of {name}={value!r}" in str(
            caught.value
        )


def test_impossible_values_are_named() -> None:
    checkpoint = _checkpoint({"a.var": torch.tensor([0.0, 1.0]), "b.var": torch.tensor([2.0, -1.0])})
    check_positive(checkpoint, r"a\.var", zero=True)
    check_positive(checkpoint, r"var")
    with pytest.raises(CheckpointError, match=r"zero or less in 'a.var', such as 0: the file is damaged"):
        check_positive(checkpoint, r".*\.var")
    with pytest.raises(CheckpointError, match=r"negative values in 'b.var', such as -1"):
        check_positive(checkpoint, r".*\.var", zero=True)


def test_layers_that_are_not_in_use_yet() -> None:
    check_grown(_checkpoint({}), "lod")
    check_grown(_checkpoint({"lod": torch.zeros(())}), "lod")
    with pytest.raises(CheckpointError, match=r"has a.lod=1.5: its training ended before .* with a.lod=0"):
        check_grown(_checkpoint({"a.lod": torch.tensor([1.5])}), "a.lod")


def test_known_values() -> None:
    check_known("noise", "none", ["const", "none"])
    with pytest.raises(UnknownNameError, match=r"no noise 'nome'. Did you mean 'none'"):
        check_known("noise", "nome", ["const", "none"])


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
