from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.directions import DirectionBank
from fastdirs.errors import BankError
from fastdirs.generators import Generator
from fastdirs.interchange import export_bank, import_bank


@pytest.fixture
def bank(layered: Generator, vectors: Tensor, tmp_path: Path) -> DirectionBank:
    torch.save({"ckpt": "/home/me/ffhq.pt", "eigvec": vectors.T}, tmp_path / "factor.pt")
    return import_bank(tmp_path / "factor.pt", layered)


def test_columns_are_directions(bank: DirectionBank, vectors: Tensor) -> None:
    torch.testing.assert_close(bank.directions[:, 2], vectors / vectors.norm(dim=1, keepdim=True))
    assert bank.settings["checkpoint"] == "ffhq.pt"


def test_z_is_not_w(toy: Generator, toy_bank: DirectionBank, tmp_path: Path) -> None:
    torch.save({"ckpt": "", "eigvec": torch.eye(toy.dim)}, tmp_path / "factor.pt")
    with pytest.raises(BankError, match="directions in w, but the latents of toy are z"):
        import_bank(tmp_path / "factor.pt", toy)
    with pytest.raises(BankError, match=r"factor\.pt holds directions in w, but the latents of toy are z"):
        export_bank(toy_bank, tmp_path / "out.pt")


@pytest.mark.parametrize("value", [torch.ones(5), "text", None, torch.ones(2, 5, 5)])
def test_no_matrix(value: object, layered: Generator, tmp_path: Path) -> None:
    torch.save({"ckpt": "", "eigvec": value}, tmp_path / "factor.pt")
    with pytest.raises(BankError, match="no matrix 'eigvec'"):
        import_bank(tmp_path / "factor.pt", layered)


def test_what_the_file_cannot_hold(bank: DirectionBank, tmp_path: Path) -> None:
    some = replace(bank, layers=(0, 1), directions=bank.directions * torch.tensor([1.0, 1, 0])[:, None])
    with pytest.raises(BankError, match=r"not the same in all of them \(it edits layers 0, 1\)"):
        export_bank(some, tmp_path / "out.pt")
    knots = torch.tensor([0.0, 1.0])
    curved = replace(bank, knots=knots, directions=bank.directions[:, None] * knots[:, None, None])
    with pytest.raises(BankError, match="these are curved"):
        export_bank(curved, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_what_is_written(bank: DirectionBank, tmp_path: Path) -> None:
    export_bank(bank, tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(found) == ["ckpt", "eigvec"]
    assert torch.equal(found["eigvec"], bank.directions[:, 0].T)
