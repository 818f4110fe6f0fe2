"""What folding spectral norms leaves behind; that images stay equal is the contract's."""

import pytest
import torch
from torch import nn

from fastdirs.generators import GENERATORS, Generator
from fastdirs.lowering.fold_spectral_norm import Foldable, fold_spectral_norm

CONFIGS = {
    "biggan": {
        "widths": [16, 16, 12], "bottom": 2, "channels": 3, "attention": [0], "classes": 4, "shared_dim": 3,
        "dim": 2, "hier": True, "sn_eps": 1e-6, "bn_eps": 1e-5,
    },
    "biggan_deep": {
        "widths": [16, 16, 8], "doubles": [False, True], "attention": 1, "z_dim": 6, "embedding_dim": 3,
        "classes": 4, "rows": 5, "eps": 1e-4,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def generator(request: pytest.FixtureRequest) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GENERATORS.load(request.param).build(CONFIGS[request.param])


def test_every_normalised_layer_becomes_plain(generator: Generator) -> None:
    normalised = {name for name, module in generator.named_modules() if isinstance(module, Foldable)}
    folded = fold_spectral_norm(generator)
    assert len(normalised) > 10
    assert not [module for module in folded.modules() if isinstance(module, Foldable)]
    plain = {n for n, module in folded.named_modules() if type(module) in (nn.Linear, nn.Conv2d)}
    assert normalised <= plain


def test_doublings_before_a_convolution_are_found_by_later_lowerings(generator: Generator) -> None:
    pairs = [list(m) for m in fold_spectral_norm(generator).modules() if isinstance(m, nn.Sequential)]
    assert pairs
    assert all([type(module) for module in pair] == [nn.Upsample, nn.Conv2d] for pair in pairs)


def test_weights_are_divided_in_float64(generator: Generator) -> None:
    folded = fold_spectral_norm(generator)
    for name, module in generator.named_modules():
        if isinstance(module, Foldable):
            exact = module.get_parameter("weight").double() / module.sigma
            found = folded.get_submodule(name).get_parameter("weight")
            assert torch.equal(found, exact.float()[: len(found)])


def test_images_are_equal_with_and_without_a_mixture_of_classes(generator: Generator) -> None:
    latents = generator.mapping(generator.sample(range(3)), psi=0.85)
    folded = fold_spectral_norm(generator)
    for c in (2, torch.tensor([0, 1, 3]), torch.rand(3, 4)):
        torch.testing.assert_close(
            folded.synthesis(latents, c), generator.synthesis(latents, c), rtol=0, atol=1e-5
        )


def test_the_identity_is_that_of_the_raw_weights(generator: Generator) -> None:
    assert fold_spectral_norm(generator).weights_sha256 == generator.weights_sha256


def test_generators_without_such_layers_stay_as_they_are(toy: Generator) -> None:
    folded = fold_spectral_norm(toy)
    assert folded is not toy
    assert str(folded) == str(toy)
