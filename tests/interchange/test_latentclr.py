from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.errors import BankError, SelectionError
from fastdirs.generators import Generator
from fastdirs.interchange import import_bank

COUNT, SIZE = 2, 5


def save(path: Path, model: dict[str, Tensor]) -> Path:
    torch.save({"iteration": 7, "optimizer": {}, "model": model, "projector": {}, "scheduler": None}, path)
    return path


@pytest.fixture
def linear() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        f"nets.{index}.linear_1.{name}": torch.randn(*shape, generator=random)
        for index in range(COUNT)
        for name, shape in (("weight", (SIZE, SIZE)), ("bias", (SIZE,)))
    }


def test_global_directions(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    bank = import_bank(save(tmp_path / "best_model.pt", {"params": vectors}), layered)
    assert not bank.curved
    torch.testing.assert_close(bank.directions[:, 1], vectors / vectors.norm(dim=1, keepdim=True))


def test_paths_of_affine_directions_need_a_place(
    layered: Generator, linear: dict[str, Tensor], tmp_path: Path
) -> None:
    path = save(tmp_path / "best_model.pt", linear)
    with pytest.raises(BankError, match=r"depends on the latent that they set out from.*at=mean or at=SEED"):
        import_bank(path, layered)
    with pytest.raises(SelectionError, match="at='middle' is no latent"):
        import_bank(path, layered, options={"at": "middle"})
    with pytest.raises(SelectionError, match="epsilons=0 is one point"):
        import_bank(path, layered, options={"at": "3", "epsilons": "0"})


def test_paths_are_those_of_the_original_at_that_latent(toy: Generator, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(toy.dim, toy.dim, generator=random), torch.randn(toy.dim, generator=random)
    path = save(tmp_path / "best_model.pt", {"nets.0.linear_1.weight": weight, "nets.0.linear_1.bias": bias})
    bank = import_bank(path, toy, options={"at": "5", "epsilons": "-1:2:7"})
    start = toy.sample([5])[0]
    for sign, steps in ((1.0, 4), (-1.0, 2)):
        z = start
        for step in range(1, steps + 1):
            ahead = weight @ z + bias
            z = z + sign * 0.5 * ahead / ahead.norm()
            torch.testing.assert_close(start + bank.shift(0, sign * 0.5 * step)[0], z)
    assert bank.settings["at"] == "5"


def test_a_place_in_w(layered: Generator, linear: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tmp_path / "best_model.pt", linear)
    mean, seed = (import_bank(path, layered, options={"at": at}) for at in ("mean", "1"))
    assert mean.directions.shape == (COUNT, 33, 3, SIZE)
    assert not torch.allclose(mean.directions, seed.directions)


def test_nowhere_to_go(toy: Generator, tmp_path: Path) -> None:
    path = save(tmp_path / "best_model.pt", {"nets.0.linear_1.weight": torch.eye(toy.dim)})
    with pytest.raises(BankError, match="nowhere to go"):
        import_bank(path, toy, options={"at": "mean"})


def test_nonlinear_models(layered: Generator, linear: dict[str, Tensor], tmp_path: Path) -> None:
    deeper = {**linear, "nets.0.batchnorm_1.weight": torch.ones(SIZE)}
    with pytest.raises(BankError, match=r"nonlinear model of LatentCLR.*--method manifolds"):
        import_bank(save(tmp_path / "best_model.pt", deeper), layered, options={"at": "mean"})


def test_missing_networks(layered: Generator, linear: dict[str, Tensor], tmp_path: Path) -> None:
    del linear["nets.0.linear_1.weight"]
    with pytest.raises(BankError, match="lacks tensors of its model"):
        import_bank(save(tmp_path / "best_model.pt", linear), layered, options={"at": "mean"})


def test_another_size(toy: Generator, linear: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tmp_path / "best_model.pt", linear)
    with pytest.raises(BankError, match="latents of 5 numbers, but those of toy have 16"):
        import_bank(path, toy, options={"at": "mean"})


def test_a_model_without_tensors(layered: Generator, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="lacks tensors of its model"):
        import_bank(save(tmp_path / "best_model.pt", {"params": "lost"}), layered)  # type: ignore[dict-item]
    for params in (torch.tensor(1.0), torch.ones(SIZE)):
        with pytest.raises(BankError, match=r"directions of shape .* Expected \[K, size\]"):
            import_bank(save(tmp_path / "best_model.pt", {"params": params}), layered)
    with pytest.raises(BankError, match="complex numbers"):
        import_bank(save(tmp_path / "best_model.pt", {"params": torch.ones(2, SIZE) * 1j}), layered)


@pytest.mark.parametrize(("weight", "bias"), [((), (SIZE,)), ((SIZE,), ()), ((SIZE, SIZE), (1,))])
def test_affine_tensors_of_other_shapes(
    weight: tuple[int, ...], bias: tuple[int, ...], layered: Generator, tmp_path: Path
) -> None:
    model = {"nets.0.linear_1.weight": torch.ones(weight), "nets.0.linear_1.bias": torch.ones(bias)}
    with pytest.raises(BankError, match=r"lacks tensors of its model|do not belong together"):
        import_bank(save(tmp_path / "best_model.pt", model), layered, options={"at": "mean"})
