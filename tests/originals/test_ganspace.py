"""Principal components of an original's generator are those that GANSpace stored."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.discovery import discover
from fastdirs.generators import Generator
from fastdirs.loading import load_generator
from tests.originals.conftest import FIXTURES

FOLDER = FIXTURES / "ganspace_stylegan2"
CHECKPOINT = FIXTURES / "ros_converted_r64_mlp8" / "stylegan2-fixture-config-f.pt"
SAMPLES = 10_000

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"needs what GANSpace stored in {FOLDER} (or where FASTDIRS_FIXTURES says)"
)


def stored(layer: str, count: int) -> dict[str, Tensor]:
    path = FOLDER / f"stylegan2-cat_{layer}_ipca_c{count}_n{SAMPLES}_w.npz"
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def cosines(bank_directions: Tensor, components: Tensor) -> Tensor:
    """Of each direction with its component: `[count]`."""
    return (bank_directions[: len(components), 0] * components.flatten(1)).sum(dim=1).abs()


@pytest.fixture
def generator() -> Generator:
    return load_generator(CHECKPOINT)


def expected_error(shares: Tensor) -> Tensor:
    """1 - cosine^2 between components of two sets of samples, to first order in 1 / samples.

    The asymptotic variance of principal components of normal data (Anderson 1963): neighbours with nearly
    equal eigenvalues mix.
    """
    apart = (shares[:, None] - shares).square().fill_diagonal_(torch.inf)
    return 2 / SAMPLES * (shares[:, None] * shares / apart).sum(dim=1)


def test_components_of_w(generator: Generator) -> None:
    original = stored("style", 20)
    bank = discover(generator, "ganspace", num_directions=generator.dim)
    assert bank.settings["decomposed"] == "w"
    # Their samples are others. An eigenvalue's own error is sqrt(2 / samples), 1.4 %.
    torch.testing.assert_close(bank.scores[:20], original["var_ratio"], rtol=0.06, atol=0)
    error = 1 - cosines(bank.directions, original["lat_comp"]) ** 2
    allowed = 4 * expected_error(bank.scores.double())[:20]
    certain = allowed < 0.7
    assert certain.sum() >= 8
    assert (error < allowed)[certain].all()
    assert error[0] < 0.01
    # All twenty together are one subspace, however they mix.
    within = original["lat_comp"].flatten(1) @ bank.directions[:24, 0].T
    assert (within.norm(dim=1) > 0.95).all()
    torch.testing.assert_close(bank.scales[:20], original["lat_stdev"], rtol=0.12, atol=0)


def noise_of_seed(resolution: int, seed: int = 0) -> list[Tensor]:
    """What GANSpace puts in place of a generator's noise: one picture for 4x4, two for each size above."""
    random = torch.Generator().manual_seed(seed)
    sizes = [4] + [
        size for size in (2**power for power in range(3, 11)) if size <= resolution for _ in range(2)
    ]
    return [torch.randn(size, size, generator=random) for size in sizes]


def test_components_of_a_stage_led_back_to_w(generator: Generator) -> None:
    original = stored("convs.1", 8)
    for stage, noise in zip(generator.stages, noise_of_seed(generator.img_resolution), strict=False):
        stage.convolution.noise.copy_(noise)
    settings = {"stage": "2", "samples": "2000"}
    bank = discover(generator, "ganspace", num_directions=8, settings=settings)
    assert bank.settings["decomposed"] == "stage 2"
    torch.testing.assert_close(bank.scores, original["var_ratio"], rtol=0.1, atol=0)
    # Besides other samples, theirs is an incremental decomposition; with the file's own noise, not the one
    # that their program sets, two of the cosines would be below 0.65.
    assert (cosines(bank.directions, original["lat_comp"]) > 0.9).all()
