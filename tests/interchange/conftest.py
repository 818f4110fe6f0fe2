"""Files as the programs that we import from write them, of vectors that a test knows."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.generators import GENERATORS, Generator

CONFIGS = Path(__file__).parents[1] / "generators" / "configs.json"


def _ganlatentdiscovery(folder: Path, vectors: Tensor) -> Path:
    run = folder / "run"
    (run / "models").mkdir(parents=True)
    args = {
        "deformator": "linear",
        "gan_type": "SN_MNIST",
        "directions_count": len(vectors),
        "out": "/home/me",
    }
    (run / "args.json").write_text(json.dumps(args))
    state = {"linear.weight": vectors.T.contiguous(), "linear.bias": torch.ones(vectors.shape[1])}
    torch.save(state, run / "models" / "deformator_90000.pt")
    return run


def _ganspace(folder: Path, vectors: Tensor) -> Path:
    path = folder / "components.npz"
    values = vectors.numpy()
    deviations = np.linspace(2, 1, len(values), dtype=np.float32)
    shares = np.linspace(0.4, 0.1, len(values), dtype=np.float32)
    np.savez_compressed(
        path, lat_comp=values[:, None], lat_stdev=deviations, var_ratio=shares, act_comp=values
    )
    return path


def ganspace_export(folder: Path, vectors: Tensor, **changes: Any) -> Path:
    """What GANSpace's window exports of the first vector; `changes` are other entries."""
    params = {
        "name": "hair", "sigma_range": np.float32(-3.0), "component_index": 7,
        "act_comp": vectors[:1].numpy(), "lat_comp": vectors[:1].numpy(),
        "latent_space": "W", "act_stdev": 1.5, "lat_stdev": 0.5,
        "model_name": "StyleGAN2", "output_class": "ffhq", "edit_type": "latent", "truncation": 0.7,
        "decomposition": {"name": "ipca", "components": 80, "samples": 10**6, "layer": "style"},
        "edit_start": 0, "edit_end": 2, "example_seed": 42,
    }  # fmt: skip
    path = folder / "hair.pkl"
    path.write_bytes(pickle.dumps({**params, **changes}))
    return path


def _higan(folder: Path, vectors: Tensor) -> Path:
    path = folder / "lighting_boundary.npy"
    content = {"boundary": vectors[:1].numpy(), "meta_data": {"manipulate_layers": "0-1"}}
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def _latentclr(folder: Path, vectors: Tensor) -> Path:
    path = folder / "best_model.pt"
    state = {"iteration": 100, "optimizer": {"state": {}}, "model": {"params": vectors}, "projector": {}}
    torch.save(state, path)
    return path


def _numpy_archive(folder: Path, vectors: Tensor) -> Path:
    path = folder / "bank.npz"
    labels = np.array([f"name {index}" for index in range(len(vectors))])
    np.savez(path, directions=vectors.numpy(), labels=labels, layers=np.arange(3))
    return path


def _numpy_array(folder: Path, vectors: Tensor) -> Path:
    path = folder / "directions.npy"
    np.save(path, vectors.numpy().astype(np.float64))
    return path


def _rosinality(folder: Path, vectors: Tensor) -> Path:
    path = folder / "factor.pt"
    torch.save({"ckpt": "/home/me/ffhq.pt", "eigvec": vectors.T.contiguous()}, path)
    return path


def _warpedganspace(folder: Path, vectors: Tensor) -> Path:
    path = folder / "support_sets.pt"
    pairs = torch.stack([vectors, -vectors], dim=1).flatten(1)
    alphas = torch.tensor([1.0, -1.0]).expand(len(vectors), 2).contiguous()
    state = {"SUPPORT_SETS": pairs, "ALPHAS": alphas, "LOGGAMMA": torch.full((len(vectors), 1), -2.0)}
    torch.save(state, path)
    return path


WRITERS: dict[str, Callable[[Path, Tensor], Path]] = {
    "ganlatentdiscovery": _ganlatentdiscovery,
    "ganspace": _ganspace,
    "ganspace_export": ganspace_export,
    "higan": _higan,
    "latentclr": _latentclr,
    "numpy_archive": _numpy_archive,
    "numpy_array": _numpy_array,
    "rosinality": _rosinality,
    "warpedganspace": _warpedganspace,
}
OPTIONS = {"warpedganspace": {"at": "mean"}}


@pytest.fixture
def vectors() -> Tensor:
    """Four vectors of the latents of `layered`, none of unit length, the first with a negative largest."""
    random = torch.Generator().manual_seed(3)
    vectors = torch.randn(4, 5, generator=random) * torch.tensor([[0.5], [1.0], [2.0], [3.0]])
    vectors[0, 2] = -4.0
    return vectors


@pytest.fixture(scope="session")
def chunked() -> Generator:
    """A BigGAN whose layers are parts of z, four numbers each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load("biggan").build(json.loads(CONFIGS.read_text())["biggan"])
    assert generator.chunked
    return generator.eval()
