from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.directions import DirectionBank
from fastdirs.errors import BankError, SelectionError
from fastdirs.generators import Generator
from fastdirs.interchange import export_bank, import_bank


def save(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ">f4"])
def test_one_boundary(
    shape: tuple[int, ...], dtype: str, layered: Generator, vectors: Tensor, tmp_path: Path
) -> None:
    path = save(tmp_path / "ffhq_age_w_boundary.npy", vectors[0].numpy().reshape(shape).astype(dtype))
    bank = import_bank(path, layered)
    assert bank.labels == ("ffhq_age_w_boundary",)
    unit = vectors[0] / vectors[0].norm()
    torch.testing.assert_close(bank.directions[0], unit.expand(3, -1), atol=2e-3, rtol=0)


def test_a_row_for_each_layer_keeps_their_proportions(layered: Generator, tmp_path: Path) -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1.0], [0.0], [3.0]])
    bank = import_bank(save(tmp_path / "smile.npy", rows.numpy()), layered)
    assert bank.labels == ("smile",)
    torch.testing.assert_close(bank.directions[0] * bank.settings["lengths"][0], rows)
    # Over the layers that it touches: two of three.
    torch.testing.assert_close(bank.directions[0].square().sum(), torch.tensor(2.0))


def test_rows_may_be_directions_all_the_same(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    path = save(tmp_path / "three.npy", vectors[:3].numpy())
    assert len(import_bank(path, layered)) == 1
    assert len(import_bank(path, layered, options={"rows": "directions"})) == 3
    assert len(import_bank(path, layered, options={"rows": "layers"})) == 1
    with pytest.raises(SelectionError, match="rows='columns' is unknown"):
        import_bank(path, layered, options={"rows": "columns"})


def test_several_directions_with_a_row_for_each_layer(layered: Generator, tmp_path: Path) -> None:
    many = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    bank = import_bank(save(tmp_path / "many.npy", np.asfortranarray(many.numpy())), layered)
    lengths = torch.tensor(bank.settings["lengths"])
    torch.testing.assert_close(bank.directions * lengths[:, None, None], many)


def test_a_name_that_says_w(toy: Generator, tmp_path: Path) -> None:
    vector = np.ones((1, toy.dim))
    assert len(import_bank(save(tmp_path / "pggan_age_boundary.npy", vector), toy)) == 1
    with pytest.raises(BankError, match="directions in w, but the latents of toy are z"):
        import_bank(save(tmp_path / "stylegan_age_w_boundary.npy", vector), toy)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.float32(3.0), r"has shape \[\]"),
        (np.ones((2, 3, 5, 1)), r"has shape \[2, 3, 5, 1\]"),
        (np.ones((18, 512)), r"of 512 numbers, but the latents of layered have 5, in 3 layers \(space w\+\)"),
        (np.ones((4, 2, 5)), "directions of 2 layers of 5 numbers, but"),
        (np.ones((0, 5)), "holds no directions"),
        (np.ones((1, 5), dtype=np.complex64), "array of complex64, not of real numbers"),
        (np.array(["a"]), "not of real numbers"),
    ],
)
def test_arrays_of_something_else(array: Any, message: str, layered: Generator, tmp_path: Path) -> None:
    with pytest.raises(BankError, match=message):
        import_bank(save(tmp_path / "a.npy", array), layered)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_lengths_beyond_all_numbers(size: float, layered: Generator, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="length is beyond all numbers"):
        import_bank(save(tmp_path / "a.npy", np.full((1, 5), size)), layered)


def _with_header(text: str, data: bytes = b"\0" * 64) -> bytes:
    header = text.encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


BROKEN = {
    "huge": _with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 5)}"),
    "longer": _with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 5)}"),
    "negative": _with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 5)}"),
    "both negative": _with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -5)}"),
    "python 2": _with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (5L, 5L)}", b""),
    "dtype": _with_header("{'descr': 'what', 'fortran_order': False, 'shape': (5,)}"),
    "deep": _with_header("(" * 5000),
    "keys": _with_header("{[]: 1}"),
    "code": _with_header("__import__('os').mkdir('PWNED_fastdirs')"),
    "open": _with_header('"""'),
    "version": b"\x93NUMPY\x07\x00",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_headers_that_are_not_true(content: bytes, layered: Generator, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(BankError, match=r"is truncated or broken|more than 1 GiB"):
        import_bank(tmp_path / "a.npy", layered)


def test_export(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    bank = import_bank(save(tmp_path / "a.npy", vectors.numpy()), layered)
    export_bank(bank, tmp_path / "all.npy")
    found = np.load(tmp_path / "all.npy", allow_pickle=False)
    assert found.dtype == np.float32
    assert np.array_equal(found, bank.directions.numpy())
    one = import_bank(save(tmp_path / "b.npy", vectors[:1].numpy()), layered)
    export_bank(one, tmp_path / "one.npy")
    assert np.load(tmp_path / "one.npy", allow_pickle=False).shape == (3, 5)
    torch.testing.assert_close(import_bank(tmp_path / "one.npy", layered).directions, one.directions)


def test_paths_are_no_arrays_of_directions(toy_bank: DirectionBank, tmp_path: Path) -> None:
    knots = torch.tensor([-1.0, 0.0, 2.0])
    paths = toy_bank.directions[:, None] * knots[:, None, None]
    with pytest.raises(BankError, match=r"these are curved. Export them as \.npz"):
        export_bank(replace(toy_bank, knots=knots, directions=paths), tmp_path / "a.npy")
    assert not (tmp_path / "a.npy").exists()
