import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdirs.directions import DirectionBank
from fastdirs.errors import BankError
from fastdirs.generators import Generator
from fastdirs.interchange import export_bank, import_bank


@pytest.fixture
def judged(toy_bank: DirectionBank) -> DirectionBank:
    """With everything that a person may say of directions."""
    return replace(
        toy_bank,
        labels=("smile", "höhe", "", "a, b", "x"),
        tags=(("face",), (), ("light", "day, night"), (), ()),
        judges=("Ada", "", "Grace", "", ""),
        ranges=torch.tensor([[-4.0, 6.0]]).expand(5, 2).contiguous(),
    )


@pytest.fixture
def curved(judged: DirectionBank) -> DirectionBank:
    knots = torch.tensor([-6.0, -1.0, 0.0, 2.0, 6.0])
    straight = judged.directions[:, None] * knots[:, None, None]
    return replace(judged, knots=knots, directions=straight + 0.05 * knots.square()[:, None, None])


@pytest.mark.parametrize("which", ["judged", "curved"])
def test_everything_comes_back(
    which: str, toy: Generator, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bank: DirectionBank = request.getfixturevalue(which)
    export_bank(bank, tmp_path / "bank.npz")
    again = import_bank(tmp_path / "bank.npz", toy)
    for name in ("directions", "scores", "ranges"):
        torch.testing.assert_close(getattr(again, name), getattr(bank, name))
    assert (again.labels, again.tags, again.judges) == (bank.labels, bank.tags, bank.judges)
    assert (again.layers, again.generator, again.curved) == (bank.layers, bank.generator, bank.curved)
    assert again.settings["method"] == bank.method
    for epsilon in (-7.0, 0.5, 3.0):
        torch.testing.assert_close(again.shift(1, epsilon), bank.shift(1, epsilon))


def test_numpy_reads_it_without_pickle(curved: DirectionBank, tmp_path: Path) -> None:
    export_bank(curved, tmp_path / "bank.npz")
    with np.load(tmp_path / "bank.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert all(array.dtype.kind in "fiU" for array in arrays.values())
    assert arrays["directions"].shape == (5, 5, 1, 16)
    assert list(arrays["labels"]) == list(curved.labels)
    assert json.loads(str(arrays["tags"][2])) == ["light", "day, night"]
    assert json.loads(str(arrays["generator"])) == curved.generator
    assert set(arrays) == {
        "directions", "knots", "scales", "scores", "ranges", "labels", "tags", "judges", "layers", "method",
        "space", "generator",
    }  # fmt: skip


def changed(path: Path, **arrays: Any) -> Path:
    with np.load(path, allow_pickle=False) as file:
        before = {name: file[name] for name in file.files}
    np.savez(path, **{**before, **arrays})
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.array(["a", "b"])}, "do not fit each other"),
        ({"labels": np.zeros(5)}, "where names should be"),
        ({"scores": np.zeros(3)}, "do not fit each other"),
        ({"tags": np.array(["[", "", "", "", ""])}, "which are no JSON list"),
        ({"tags": np.array(["[]"])}, "do not fit each other"),
        ({"space": np.array("w+")}, "directions in w, but the latents of toy are z"),
        ({"directions": np.full((5, 1, 16), np.nan)}, "NaN"),
        ({"ranges": np.full((5, 2), np.inf)}, "NaN or infinite"),
        ({"ranges": np.zeros((5, 3))}, "do not fit each other"),
        ({"ranges": np.zeros((7, 2))}, "do not fit each other"),
        ({"ranges": np.zeros(2)}, "do not fit each other"),
        ({"ranges": np.float32(1.0)}, "do not fit each other"),
        ({"ranges": np.array([[-5.0, 5.0]] * 4 + [[5.0, -5.0]])}, "range from 5 to -5 for direction 4"),
        ({"ranges": np.array([[-1e300, 1.0]] * 5)}, "beyond all of float32"),
        ({"scores": np.full(5, 1e300)}, "beyond all of float32"),
        ({"layers": np.array([np.nan])}, "names a layer nan. Expected whole numbers"),
        ({"layers": np.array([np.inf])}, "names a layer inf"),
        ({"layers": np.array([0.5])}, "names a layer 0.5"),
        ({"directions": np.float32(1.0)}, r"directions of shape \[\]. Expected \[K, size\]"),
        ({"directions": np.ones(16)}, r"directions of shape \[16\]"),
        ({"directions": np.ones((5, 1, 16, 1))}, r"directions of shape \[5, 1, 16, 1\]"),
        ({"tags": np.array(['{"face": 1}'] * 5)}, "tags '{\"face\": 1}', which are no JSON list"),
        ({"tags": np.array(['"face"'] * 5)}, "which are no JSON list"),
        ({"tags": np.array(["[1]"] * 5)}, "which are no JSON list"),
    ],
)
def test_arrays_that_were_changed(
    arrays: dict[str, Any], message: str, judged: DirectionBank, toy: Generator, tmp_path: Path
) -> None:
    export_bank(judged, tmp_path / "bank.npz")
    path = changed(tmp_path / "bank.npz", **arrays)
    with pytest.raises(BankError, match=message):
        import_bank(path, toy)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"directions": np.ones((5, 5, 1, 16))}, "does not begin at zero"),
        ({"knots": np.array([-6.0, -7.0, 0.0, 2.0, 6.0])}, "no ascending list"),
        ({"knots": np.array([1.0, 2.0])}, "do not fit each other"),
        ({"knots": np.array([])}, "do not fit each other"),
        ({"knots": np.float32(3.0)}, "do not fit each other"),
        ({"knots": np.float32(3.0), "directions": np.float32(3.0)}, r"Expected \[K, knots, size\]"),
        ({"directions": np.ones((5, 5))}, r"directions of shape \[5, 5\]. Expected \[K, knots, size\]"),
        ({"directions": np.full((5, 5, 1, 16), 1e300)}, "NaN or infinite"),
    ],
)
def test_paths_that_are_none(
    arrays: dict[str, Any], message: str, curved: DirectionBank, toy: Generator, tmp_path: Path
) -> None:
    export_bank(curved, tmp_path / "bank.npz")
    path = changed(tmp_path / "bank.npz", **arrays)
    with pytest.raises(BankError, match=message):
        import_bank(path, toy)
