import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.errors import BankError, SelectionError
from fastdirs.generators import Generator
from fastdirs.interchange import import_bank


def save(path: Path, content: object) -> Path:
    array = np.empty((), dtype=object)
    array[()] = content
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize(("said", "layers"), [("1-2", (1, 2)), ([0, 2], (0, 2)), ("", (0, 1, 2))])
def test_a_boundary_and_its_layers(
    said: object, layers: tuple[int, ...], layered: Generator, vectors: Tensor, tmp_path: Path
) -> None:
    content = {"boundary": vectors[:1].numpy(), "meta_data": {"manipulate_layers": said}}
    bank = import_bank(save(tmp_path / "view_boundary.npy", content), layered)
    assert (bank.labels, bank.layers) == (("view_boundary",), layers)
    torch.testing.assert_close(bank.directions[0, layers[0]], vectors[0] / vectors[0].norm())


def test_layers_that_the_generator_does_not_have(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    content = {"boundary": vectors[:1].numpy(), "meta_data": {"manipulate_layers": "6-11"}}
    with pytest.raises(SelectionError, match="There is no layer 11"):
        import_bank(save(tmp_path / "b.npy", content), layered)


@pytest.mark.parametrize("content", [{"border": 1}, [1, 2, 3], "text", None])
def test_pickles_of_something_else(content: object, layered: Generator, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="which was not run, and that is no HiGAN boundary"):
        import_bank(save(tmp_path / "b.npy", content), layered)


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("PWNED_fastdirs",)


def test_nothing_in_it_is_run(
    layered: Generator, vectors: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "b.npy", {"boundary": vectors[:1].numpy(), "meta_data": _Hostile()})
    with pytest.raises(BankError, match=r"asks to run \w+\.mkdir .* nothing was run"):
        import_bank(path, layered)
    assert not (tmp_path / "PWNED_fastdirs").exists()
