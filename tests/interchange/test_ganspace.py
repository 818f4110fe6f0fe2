from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.errors import BankError
from fastdirs.generators import Generator
from fastdirs.interchange import import_bank


def save(path: Path, vectors: Tensor, deviations: list[float], **others: Any) -> Path:
    values = vectors.numpy()
    np.savez(path, lat_comp=values[:, None], lat_stdev=np.array(deviations, np.float32), **others)
    return path


def test_sigmas_are_kept(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    path = save(tmp_path / "c.npz", vectors, [4, 3, 2, 1.5], var_ratio=np.array([0.4, 0.2, 0.1, 0.05]))
    bank = import_bank(path, layered)
    assert bank.settings["lat_stdev"] == [4, 3, 2, 1.5]
    torch.testing.assert_close(bank.scores, torch.tensor([0.4, 0.2, 0.1, 0.05]))
    assert bank.labels == ("component 0", "component 1", "component 2", "component 3")
    # Two sigmas as GANSpace adds them.
    epsilon = 2 * bank.settings["lat_stdev"][1] * bank.settings["lengths"][1]
    torch.testing.assert_close(bank.shift(1, epsilon)[0], 2 * 3 * vectors[1])


def test_components_of_z(layered: Generator, toy: Generator, tmp_path: Path) -> None:
    of_z = save(tmp_path / "z.npz", torch.eye(toy.dim)[:2], [1, 1])
    assert len(import_bank(of_z, toy)) == 2
    with pytest.raises(BankError, match=r"directions in z, but the latents of layered are w\+"):
        import_bank(save(tmp_path / "of_z.npz", torch.eye(5), [1] * 5), layered)
    with pytest.raises(BankError, match="directions in w, but the latents of toy are z"):
        import_bank(save(tmp_path / "w.npz", torch.eye(toy.dim)[:2], [3, 2]), toy)


def test_deviations_of_other_components(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="do not belong together"):
        import_bank(save(tmp_path / "c.npz", vectors, [4, 3]), layered)
    with pytest.raises(BankError, match="do not belong together"):
        import_bank(save(tmp_path / "c.npz", vectors, [4, 3, 2, 1.5], var_ratio=np.float32(1.0)), layered)


def test_deviations_that_are_not_finite(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="NaN or infinite values in 'lat_stdev'"):
        import_bank(save(tmp_path / "c.npz", vectors, [4, 3, float("nan"), 1]), layered)


def test_arrays_of_objects_are_not_unpickled(layered: Generator, tmp_path: Path) -> None:
    components = np.array([None], dtype=object)
    np.savez(tmp_path / "c.npz", allow_pickle=True, lat_comp=components, lat_stdev=np.ones(1))
    with pytest.raises(BankError, match="holds a pickle, which is not run"):
        import_bank(tmp_path / "c.npz", layered)
