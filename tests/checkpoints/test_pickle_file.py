"""Plain pickles: snapshots as the StyleGAN repositories write them, modules, arrays, all protocols."""

import importlib.util
import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastdirs.checkpoints import FORMATS, read_checkpoint, recognise
from fastdirs.errors import CheckpointError, UnknownNameError

FIXTURES = Path(
    os.environ.get("FASTDIRS_FIXTURES") or Path(__file__).parents[2].parent / "shared" / "fixtures"
)
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(),
    reason=f"needs the checkpoints of the original projects in {FIXTURES} (FASTDIRS_FIXTURES)",
)
RECONSTRUCT = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
WEIGHT, OTHER = torch.arange(6.0).reshape(2, 3), torch.zeros(2, 3)


def snapshot(pickles: Any, **entries: object) -> dict[str, object]:
    networks = {"G": pickles.network({"weight": OTHER}), "G_ema": pickles.network({"weight": WEIGHT})}
    return {"training_set_kwargs": {"resolution": 32}, **networks, **entries}


@pytest.mark.parametrize("protocol", range(6))
def test_a_snapshot_in_every_protocol(pickles: Any, protocol: int) -> None:
    read = read_checkpoint(pickles.write(snapshot(pickles), protocol))
    assert (read.format, read.part, read.parts) == ("pickle_file", "G_ema", ("G", "G_ema"))
    assert torch.equal(read.tensors["weight"], WEIGHT)
    assert read.settings == {"class_name": "Generator", "z_dim": 4}
    assert read.foreign == ()


def test_arguments_without_names_are_kept_beside_the_others(pickles: Any) -> None:
    network = pickles.network(
        {"weight": WEIGHT}, _init_args=(512, "x"), _init_kwargs={"a": (1, None), "b": object}
    )
    read = read_checkpoint(pickles.write({"G_ema": network}))
    assert read.settings == {
        "class_name": "Generator",
        "a": [1, None],
        "b": "builtins.object",
        "init_args": [512, "x"],
    }


def test_networks_inside_networks_in_torch_order(pickles: Any) -> None:
    inner = pickles.network({"b": WEIGHT, "a": OTHER}, {"deep": pickles.network({"c": WEIGHT})})
    network = pickles.network(
        {"own": WEIGHT},
        {"z": inner, "y": inner, "none": None},
        _buffers=OrderedDict(kept=OTHER, dropped=OTHER, nothing=None),
        _non_persistent_buffers_set={"dropped"},
    )
    names = list(read_checkpoint(pickles.write({"G_ema": network})).tensors)
    assert names == ["own", "kept", "z.b", "z.a", "z.deep.c", "y.b", "y.a", "y.deep.c"]


def test_a_snapshot_without_its_average(pickles: Any) -> None:
    path = pickles.write({"G": pickles.network({"weight": WEIGHT}), "D": pickles.network({"weight": OTHER})})
    with pytest.raises(CheckpointError, match=r"without its averaged generator G_ema: .* G, D\. .* key=G"):
        read_checkpoint(path)
    assert torch.equal(read_checkpoint(path, key="G").tensors["weight"], WEIGHT)
    with pytest.raises(UnknownNameError, match="Known: D, G"):
        read_checkpoint(path, key="Gs")


def test_a_discriminator_of_unknown_classes_does_not_matter(pickles: Any) -> None:
    layer = pickles.named("timm.models.layers.conv2d_same", "Conv2dSame")
    discriminator = pickles.network({"weight": OTHER}, {"backbone": layer(state={"_parameters": {}})})
    read = read_checkpoint(pickles.write(snapshot(pickles, D=discriminator)))
    assert torch.equal(read.tensors["weight"], WEIGHT)
    assert read.foreign == ("timm.models.layers.conv2d_same.Conv2dSame",)
    assert "timm" not in sys.modules


def test_an_unknown_class_elsewhere_is_only_listed(pickles: Any) -> None:
    entry = [Path("x"), pickles.named("mylab.data", "Loader")(1), nn.ReLU()]
    read = read_checkpoint(pickles.write(snapshot(pickles, dataset=entry)))
    assert "mylab.data.Loader" in read.foreign
    assert any(name.startswith("pathlib.") for name in read.foreign)


def test_an_unknown_class_in_what_is_taken_is_refused(pickles: Any) -> None:
    network = pickles.network({"weight": WEIGHT}, schedule=pickles.named("mylab.train", "Schedule")(3))
    with pytest.raises(CheckpointError, match=r"G_ema of .*asks to call mylab.train.Schedule.*nothing"):
        read_checkpoint(pickles.write(snapshot(pickles, G_ema=network)))


def test_a_module_of_somebodys_own_class(pickles: Any) -> None:
    state = {"_parameters": {"weight": WEIGHT}, "_buffers": {}, "_modules": {}, "activation": torch.tanh}
    read = read_checkpoint(pickles.write(pickles.named("__main__", "Generator")(state=state)))
    assert (list(read.tensors), read.part) == (["weight"], "")
    assert read.settings == {"class_name": "__main__.Generator"}
    assert "__main__.Generator" in read.foreign


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_by_name(pickles: Any, protocol: int) -> None:
    arrays = {
        "rows": np.arange(6, dtype=np.float64).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "number": np.array(3, np.float16),
        "none": np.zeros((0, 2), np.uint8),
        "truth": np.array([True, False]),
    }
    beside = {"step": np.int64(7), "rate": np.float32(0.5), "name": "x", "long": 2**70, "nan": float("nan")}
    read = read_checkpoint(pickles.write({**arrays, **beside}, protocol))
    assert list(read.tensors) == list(arrays)
    for name, array in arrays.items():
        assert read.tensors[name].dtype == torch.from_numpy(array).dtype
        assert read.tensors[name].tolist() == array.tolist()
    assert read.settings == {"step": 7, "rate": 0.5, "name": "x"}


@pytest.mark.parametrize("core", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_of_dill_and_of_every_numpy(pickles: Any, core: str) -> None:
    named = pickles.named
    kind = named("numpy", "dtype")("f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
    empty = (named(core, "_reconstruct"), (named("numpy", "ndarray"), (0,), b"b"))
    state = (1, (3,), kind, False, np.array([1, 2, 3], np.float32).tobytes())
    array = named("dill._dill", "_create_array")(*empty, state, None)
    scalar = named(core, "scalar")(kind, np.float32(2.5).tobytes())
    read = read_checkpoint(pickles.write({"array": array, "scalar": scalar}))
    assert (read.tensors["array"].tolist(), read.settings, read.foreign) == ([1, 2, 3], {"scalar": 2.5}, ())


@pytest.mark.parametrize("axes", [(1, 0, 2), (1, 2, 0), (2, 1, 0)])
def test_arrays_of_numpy_2_4_with_axes_in_any_order(pickles: Any, axes: tuple[int, ...]) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    kind = pickles.named("numpy", "dtype")("f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
    make = pickles.named("numpy._core.numeric", "_frombuffer")
    stored = {"weight": make(bytearray(array.tobytes()), kind, array.shape, "K", axes)}
    read = read_checkpoint(pickles.write(stored, 5))
    assert (read.tensors["weight"].tolist(), read.foreign) == (array.transpose(axes).tolist(), ())
    for wrong in ((0, 1), (0, 0, 1), (0, 1, 3), "210"):
        stored = {"weight": make(bytearray(array.tobytes()), kind, array.shape, "K", wrong)}
        with pytest.raises(CheckpointError, match=r"_frombuffer has a list of axes"):
            read_checkpoint(pickles.write(stored, 5))


def test_an_argument_that_cannot_be_read_leaves_a_mark(pickles: Any) -> None:
    unknown = pickles.named("mylab.ops", "Filter")(3)
    kwargs = {"z_dim": 4, "filter": unknown, "synthesis": {"gain": float("nan"), "list": [1, unknown]}}
    survey = FORMATS.load("pickle_file").survey
    assert survey is not None
    found = survey(pickles.write({"G_ema": pickles.network({"weight": WEIGHT}, _init_kwargs=kwargs)}))
    mark = "(not readable)"
    assert found.settings == {
        "class_name": "Generator",
        "z_dim": 4,
        "filter": mark,
        "synthesis": {"gain": mark, "list": [1, mark]},
    }


@pytest.mark.parametrize(
    "call",
    [
        RECONSTRUCT + b")}(X\x04\x00\x00\x00metaNu\x92",
        RECONSTRUCT + b"]R",
        RECONSTRUCT + b"K\x01R",
        RECONSTRUCT + b")R",
        RECONSTRUCT + b"]\x85R",
    ],
    ids=["NEWOBJ_EX", "list", "number", "no arguments", "no description"],
)
def test_networks_that_are_called_in_another_way(pickles: Any, call: bytes) -> None:
    state = pickles.dumps({"_parameters": {}, "_modules": {}}, 2)[2:-1]
    survey = FORMATS.load("pickle_file").survey
    assert survey is not None
    path = pickles.raw(b"\x80\x04" + call + state + b"b.")
    assert (survey(path).part, survey(path).settings) == ("", {})
    with pytest.raises(CheckpointError, match=r"has other arguments|without a description"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array(["text"]), "not of little-endian numbers"),
        (np.array([1, 2], ">f4"), "not of little-endian numbers"),
        (np.array([{"a": 1}]), "not of little-endian numbers"),
        (np.zeros(2, [("a", "f4")]), "not of little-endian numbers"),
    ],
    ids=["text", "big endian", "objects", "fields"],
)
def test_arrays_of_no_numbers(pickles: Any, array: np.ndarray, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(pickles.write({"weight": WEIGHT, "array": array}))


@pytest.mark.parametrize("protocol", range(6))
def test_recognised_in_every_protocol(pickles: Any, protocol: int) -> None:
    for content in ({}, {"a": 1}, OrderedDict(a=1), [1], pickles.named("a", "B")()):
        path = pickles.write(content, protocol)
        assert recognise(path) == "pickle_file"
        with pytest.raises(CheckpointError, match="holds no tensors by name"):
            read_checkpoint(path)


@pytest.mark.parametrize("text", [b"(draft)\n", b"class A:\n    pass\n", b"]\n", b"chapter one\n", b"}\n"])
def test_text_is_no_pickle(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(CheckpointError, match="none of the formats"):
        recognise(tmp_path / "file")


_SNAPSHOTS = sorted(FIXTURES.glob("nv_*/*.pkl"))


@needs_fixtures
@pytest.mark.parametrize("path", _SNAPSHOTS, ids=lambda path: path.parent.name)
def test_genuine_snapshots(path: Path) -> None:
    before = set(sys.modules)
    read = read_checkpoint(path)
    assert (read.part, read.foreign) == ("G_ema", ())
    assert {"G", "D", "G_ema"} <= set(read.parts)
    assert read.settings["class_name"] == "Generator"
    assert read.settings["img_resolution"] == int(path.parent.name.split("_r")[-1].split("_")[0])
    assert read.tensors["mapping.w_avg"].shape == (read.settings["w_dim"],)
    raw = read_checkpoint(path, key="G").tensors
    assert list(raw) == list(read.tensors)
    assert not torch.equal(raw["mapping.fc0.weight"], read.tensors["mapping.fc0.weight"])
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & {"torch_utils", "dnnlib"}
    assert importlib.util.find_spec("torch_utils") is None
