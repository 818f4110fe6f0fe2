"""What every lowering promises: equal images, the original left alone, the identity kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastdirs.errors import UnknownNameError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.latents import sample_z
from fastdirs.loading import load_generator
from fastdirs.lowering import FORMS, LOWERINGS, lower
from fastdirs.manifest import Json
from fastdirs.module_generator import ModuleGenerator

# In [-1, 1]: a 400th of a grey level.
TOLERANCE = 2e-5

DCGANS: dict[str, dict[str, object]] = {
    "usual": {"widths": (16, 32, 24, 8)},
    "grey": {"widths": (8, 20, 6), "channels": 1},
    "bias": {"widths": (16, 32, 24, 8), "bias": True},
    "bias without norms": {"widths": (8, 20, 6), "bias": True, "norm_after": ()},
    "norm after the last": {"widths": (8, 20, 6), "norm_after": (0, 1, 2)},
    "other kernels": {"widths": (8, 20, 18, 6), "kernels": (7, 4, 5, 6), "strides": (1, 2, 1, 2)},
}
# Small ones of families with layers of their own.
CONFIGS: dict[str, Json] = {
    "biggan": {
        "widths": [24, 24, 16, 16], "bottom": 4, "channels": 3, "attention": [1], "classes": 5,
        "shared_dim": 8, "dim": 4, "hier": True, "sn_eps": 1e-6, "bn_eps": 1e-5,
    },
    "sngan": {"z_dim": 8, "widths": [8, 8, 6], "img_channels": 3, "eps": 1e-5},
    "proggan": {"z_dim": 8, "widths": [8, 8, 6, 6], "img_channels": 3, "output": "tanh"},
}  # fmt: skip


@pytest.fixture(scope="module", params=[*DCGANS, *CONFIGS, "toy", "module"])
def generator(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    random_dcgan: Callable[..., nn.Sequential],
    toy: Generator,
) -> Generator:
    if request.param == "toy":
        return toy
    if request.param == "module":
        return ModuleGenerator(random_dcgan(), z_dim=8)
    if request.param in CONFIGS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return GENERATORS.load(request.param).build(CONFIGS[request.param])
    arguments = DCGANS[request.param]
    path = tmp_path_factory.mktemp("dcgan") / "model.pt"
    torch.save(random_dcgan(**arguments).state_dict(), path)
    strides = arguments.get("strides")
    options = {"strides": ",".join(map(str, strides))} if isinstance(strides, tuple) else {}
    return load_generator(path, options=options)


@pytest.fixture(scope="module")
def latents(generator: Generator) -> Tensor:
    # Larger than samples are, as edited latents may be; but not where attention with random weights makes
    # float32 itself differ from float64 by more than is tolerated here.
    scale = 1 if generator.family == "biggan" else 3
    return scale * generator.mapping(sample_z(range(4), generator.z_dim))


@pytest.fixture(scope="module")
def c(generator: Generator) -> Tensor | None:
    return generator.sample_classes(range(4))


SINGLE = {name: (name,) for name in LOWERINGS.names()}


@pytest.mark.parametrize(
    "names", [*SINGLE.values(), *FORMS.values()], ids=[*SINGLE, *(f"form {f}" for f in FORMS)]
)
def test_equal_images_and_the_original_left_alone(
    generator: Generator, latents: Tensor, c: Tensor | None, names: tuple[str, ...]
) -> None:
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    layers = [type(module) for module in generator.modules()]
    expected = generator.synthesis(latents, c)

    lowered = lower(generator, names)

    difference = (lowered.synthesis(latents, c) - expected).abs().max()
    assert difference < TOLERANCE
    after = generator.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [type(module) for module in generator.modules()] == layers
    assert lowered.identity() == generator.identity()
    assert (lowered.reads, lowered.provenance) == (generator.reads, generator.provenance)
    assert len(lowered.stages) == len(generator.stages)
    assert not [parameter for parameter in lowered.parameters() if parameter.requires_grad]
    assert not [module for module in lowered.modules() if module.training]


@pytest.mark.parametrize("name", LOWERINGS.names())
def test_twice_is_as_good_as_once(generator: Generator, latents: Tensor, c: Tensor | None, name: str) -> None:
    twice = lower(generator, (name, name))
    assert (twice.synthesis(latents, c) - generator.synthesis(latents, c)).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", LOWERINGS.names())
def test_a_copy_shares_no_weights_that_could_be_changed_through_it(generator: Generator, name: str) -> None:
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    for parameter in lower(generator, (name,)).parameters():
        parameter.data.fill_(7)
    after = generator.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_forms_name_lowerings_that_exist() -> None:
    assert FORMS["plain"] == ()
    for names in FORMS.values():
        assert set(names) <= set(LOWERINGS.names())


def test_every_lowering_belongs_to_a_form() -> None:
    assert {name for names in FORMS.values() for name in names} == set(LOWERINGS.names())


def test_unknown_lowering_gets_the_nearest_spelling(toy: Generator) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'fold_batch_norm'"):
        lower(toy, ("fold_batchnorm",))
