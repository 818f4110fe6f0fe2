import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.errors import BankError
from fastdirs.generators import Generator
from fastdirs.interchange import import_bank

COUNT, DIPOLES = 2, 3


def support_sets(size: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(COUNT, DIPOLES, 1, size, generator=random)
    pairs = torch.cat([vectors, -vectors], dim=2).reshape(COUNT, -1)
    alphas = torch.tensor([1.0, -1.0]).repeat(COUNT, DIPOLES)
    return {"SUPPORT_SETS": pairs, "ALPHAS": alphas, "LOGGAMMA": torch.tensor([[-2.0], [-3.0]])}


def gradient(state: dict[str, Tensor], index: int, z: Tensor) -> Tensor:
    """By automatic differentiation of the function that a support set stands for."""
    z = z.clone().requires_grad_()
    supports = state["SUPPORT_SETS"][index].reshape(2 * DIPOLES, -1)
    gamma = state["LOGGAMMA"][index].exp()
    height = (state["ALPHAS"][index] * torch.exp(-gamma * (z - supports).square().sum(dim=1))).sum()
    (slope,) = torch.autograd.grad(height, z)
    return slope / slope.norm()


def save(path: Path, state: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def test_paths_follow_the_gradient(toy: Generator, tmp_path: Path) -> None:
    state = support_sets(toy.dim)
    path = save(tmp_path / "support_sets.pt", {**state})
    bank = import_bank(path, toy, options={"at": "4", "epsilons": "-1,-0.5,0,0.5,1"})
    start = toy.sample([4])[0]
    for index in range(COUNT):
        for sign in (1.0, -1.0):
            z = start
            for length in (0.5, 1.0):
                z = z + sign * 0.5 * gradient(state, index, z)
                found = start + bank.shift(index, sign * length)[0]
                torch.testing.assert_close(found, z, atol=1e-5, rtol=1e-5)


def test_each_latent_has_its_own_path(toy: Generator, tmp_path: Path) -> None:
    path = save(tmp_path / "support_sets.pt", {**support_sets(toy.dim)})
    with pytest.raises(BankError, match=r"depends on the latent that they set out from.*at=mean or at=SEED"):
        import_bank(path, toy)
    mean, seed = (import_bank(path, toy, options={"at": at}) for at in ("mean", "4"))
    assert mean.directions.shape == (COUNT, 33, 1, toy.dim)
    assert not torch.allclose(mean.directions, seed.directions, atol=0.1)


def test_a_run(layered: Generator, tmp_path: Path) -> None:
    save(tmp_path / "models" / "support_sets.pt", {**support_sets(layered.dim)})
    (tmp_path / "args.json").write_text(json.dumps({"gan_type": "StyleGAN2", "shift_in_w_space": True}))
    bank = import_bank(tmp_path, layered, options={"at": "mean"})
    assert (len(bank), bank.settings["gan_type"]) == (COUNT, "StyleGAN2")
    (tmp_path / "args.json").write_text(json.dumps({"gan_type": "StyleGAN2", "shift_in_w_space": False}))
    with pytest.raises(BankError, match=r"directions in z, but the latents of layered are w\+"):
        import_bank(tmp_path, layered, options={"at": "mean"})


def test_parts_that_do_not_belong_together(toy: Generator, tmp_path: Path) -> None:
    state = {**support_sets(toy.dim), "ALPHAS": torch.ones(COUNT, 5)}
    with pytest.raises(BankError, match="do not belong together"):
        import_bank(save(tmp_path / "support_sets.pt", state), toy, options={"at": "mean"})
    for name in ("SUPPORT_SETS", "ALPHAS", "LOGGAMMA"):
        for tensor in (torch.tensor(1.0), torch.ones(1), torch.ones(COUNT, 0)):
            state = {**support_sets(toy.dim), name: tensor}
            with pytest.raises(BankError, match="do not belong together"):
                import_bank(save(tmp_path / "support_sets.pt", state), toy, options={"at": "mean"})
    lost = {**support_sets(toy.dim), "ALPHAS": "gone"}
    with pytest.raises(BankError, match="lacks tensors of its support sets"):
        import_bank(save(tmp_path / "support_sets.pt", lost), toy, options={"at": "mean"})
