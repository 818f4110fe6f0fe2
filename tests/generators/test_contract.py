"""What every family promises. A new family is tested the moment its file exists, once it has a maker here."""

import io
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastdirs.errors import ContractError, FastdirsError, SelectionError, ShapeError
from fastdirs.generators import GENERATORS, Generator, State
from fastdirs.loading import load_generator, save_generator
from fastdirs.manifest import Json

BATCH = 3


def _toy(folder: Path, random_dcgan: Callable[..., nn.Sequential]) -> Generator:
    return load_generator("toy", options={"resolution": "16"})


def _dcgan(folder: Path, random_dcgan: Callable[..., nn.Sequential]) -> Generator:
    torch.save(random_dcgan().state_dict(), folder / "dcgan.pt")
    return load_generator(folder / "dcgan.pt", family="dcgan")


class _FromZ(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        return self.generator.run_stages(z[:, None])


def _onnx_graph(folder: Path, random_dcgan: Callable[..., nn.Sequential]) -> Generator:
    toy = _toy(folder, random_dcgan)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        # The exporter itself uses parts of torch and Python that are being replaced.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(
            _FromZ(toy).eval(), (torch.zeros(2, toy.z_dim),), folder / "toy.onnx", dynamo=True,
            external_data=False, dynamic_shapes=({0: "batch"},), verbose=False,
        )  # fmt: skip
    return load_generator(folder / "toy.onnx")


# How to get a small generator of a family: (empty folder, random_dcgan) -> generator.
MAKERS: dict[str, Callable[[Path, Callable[..., nn.Sequential]], Generator]] = {
    "dcgan": _dcgan,
    "onnx_graph": _onnx_graph,
    "toy": _toy,
}
# Or, where random weights give pictures that differ, the config of a small one; variants have a longer name.
CONFIGS: dict[str, Json] = json.loads(Path(__file__).with_name("configs.json").read_text())


@pytest.fixture(scope="module", params=sorted({*GENERATORS.names(), *CONFIGS}))
def generator(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    random_dcgan: Callable[..., nn.Sequential],
) -> Generator:
    if request.param in CONFIGS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = GENERATORS.load(request.param.partition(" ")[0]).build(CONFIGS[request.param])
        # Averages are zero after training only by chance.
        made.latent_mean += 0.1 * torch.randn(made.latent_mean.shape) if made.space != "z" else 0
        return made
    if request.param not in MAKERS:
        pytest.fail(f"family {request.param!r} is not covered: add a maker to MAKERS in {__file__}")
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param), random_dcgan)


@pytest.fixture(scope="module")
def z(generator: Generator) -> Tensor:
    return generator.sample(range(BATCH))


@pytest.fixture(scope="module")
def c(generator: Generator) -> Tensor | None:
    return torch.arange(BATCH) % generator.c_dim if generator.c_dim else None


@pytest.fixture(scope="module")
def latents(generator: Generator, z: Tensor, c: Tensor | None) -> Tensor:
    return generator.mapping(z, c)


@pytest.fixture(scope="module")
def images(generator: Generator, latents: Tensor, c: Tensor | None) -> Tensor:
    return generator.synthesis(latents, c)


def test_the_family_is_the_name_of_its_file(generator: Generator, request: pytest.FixtureRequest) -> None:
    assert generator.family in GENERATORS.names()
    assert f"[{generator.family}" in request.node.name


def test_latents_are_batch_layers_dim(generator: Generator, latents: Tensor) -> None:
    assert latents.shape == (BATCH, generator.num_layers, generator.dim)
    assert latents.dtype == torch.float32


def test_images_are_batch_channels_height_width(generator: Generator, images: Tensor) -> None:
    size = generator.img_resolution
    assert images.shape == (BATCH, generator.img_channels, size, size)
    assert images.dtype == torch.float32
    assert generator.img_channels in (1, 3)


def test_images_lie_in_range_and_differ(generator: Generator, images: Tensor) -> None:
    # Where the last layer is linear, images may leave [-1, 1] a little; everywhere else they may not.
    assert images.abs().max() <= (2 if generator.family in ("stylegan2", "stylegan3") else 1)
    assert (images[0] - images[1]).abs().max() > 1 / 127.5, "two seeds must give two pictures"


def test_an_image_does_not_depend_on_its_batch(
    generator: Generator, latents: Tensor, images: Tensor, c: Tensor | None
) -> None:
    for row in range(BATCH):
        alone = generator.synthesis(latents[row : row + 1], None if c is None else c[row : row + 1])
        torch.testing.assert_close(alone[0], images[row], rtol=0, atol=1e-5)


def test_latents_do_not_depend_on_their_batch(
    generator: Generator, z: Tensor, latents: Tensor, c: Tensor | None
) -> None:
    for row in range(BATCH):
        alone = generator.mapping(z[row : row + 1], None if c is None else c[row : row + 1])
        torch.testing.assert_close(alone[0], latents[row], rtol=0, atol=1e-5)


def test_the_same_latents_give_the_same_images(
    generator: Generator, latents: Tensor, images: Tensor, c: Tensor | None
) -> None:
    torch.testing.assert_close(generator.synthesis(latents, c), images, rtol=0, atol=1e-6)


def test_every_stage_says_which_layers_it_reads(generator: Generator) -> None:
    assert len(generator.reads) == len(generator.stages) > 0
    layers = [layer for read in generator.reads for layer in read]
    assert all(0 <= layer < generator.num_layers for layer in layers)
    assert set(layers) == set(range(generator.num_layers)), "every layer is read by some stage"


def test_stages_read_no_layer_beyond_what_they_say(
    generator: Generator, latents: Tensor, images: Tensor, c: Tensor | None
) -> None:
    state: State = generator.class_weights(c, BATCH, "synthesis")
    for stage, reads in zip(generator.stages, generator.reads, strict=True):
        poisoned = torch.full_like(latents, float("nan"))
        poisoned[:, list(reads)] = latents[:, list(reads)]
        state = stage(state, poisoned)
        assert state is not None
    assert isinstance(state, Tensor)
    torch.testing.assert_close(state, images, rtol=0, atol=1e-5)


def test_run_stages_is_synthesis_without_checks(
    generator: Generator, latents: Tensor, images: Tensor, c: Tensor | None
) -> None:
    weights = generator.class_weights(c, BATCH, "synthesis")
    torch.testing.assert_close(generator.run_stages(latents, weights), images, rtol=0, atol=1e-5)


def test_psi_pulls_towards_the_mean(
    generator: Generator, z: Tensor, latents: Tensor, c: Tensor | None
) -> None:
    mean = generator.latent_mean.expand_as(latents)
    torch.testing.assert_close(generator.mapping(z, c, psi=1.0), latents)
    torch.testing.assert_close(generator.mapping(z, c, psi=0.0), mean)
    untouched, editable = generator.mapping(z, c, psi=0.0, cutoff=0), list(generator.editable)
    torch.testing.assert_close(untouched[:, editable], latents[:, editable])
    torch.testing.assert_close(generator.mapping(z, c, psi=0.5), (latents + mean) / 2)


def test_psi_out_of_range(generator: Generator, z: Tensor, c: Tensor | None) -> None:
    with pytest.raises(SelectionError):
        generator.mapping(z, c, psi=float("nan"))
    with pytest.raises(SelectionError):
        generator.mapping(z, c, cutoff=generator.num_layers + 1)


def test_wrong_shapes(generator: Generator, c: Tensor | None) -> None:
    layers, dim = generator.num_layers, generator.dim
    for shape in ((BATCH, dim), (BATCH, layers + 1, dim), (BATCH, layers, dim + 1), (BATCH, layers, dim, 1)):
        with pytest.raises(ShapeError, match="latents"):
            generator.synthesis(torch.zeros(shape), c)
    for shape in ((generator.z_dim,), (BATCH, generator.z_dim + 1), (BATCH, generator.z_dim, 1)):
        with pytest.raises(ShapeError, match="z has shape"):
            generator.mapping(torch.zeros(shape), c)


def test_a_class_is_asked_for_exactly_where_it_is_read(
    generator: Generator, z: Tensor, latents: Tensor, c: Tensor | None
) -> None:
    halves = {
        "mapping": lambda given: generator.mapping(z, given),
        "synthesis": lambda given: generator.synthesis(latents, given),
    }
    for half, run in halves.items():
        if c is None:
            with pytest.raises(ContractError, match="takes no class"):
                run(0)
        elif half == generator.class_in:
            with pytest.raises(ContractError, match=f"needs a class from 0 to {generator.c_dim - 1}"):
                run(None)
            with pytest.raises(SelectionError, match=f"There is no class {generator.c_dim}"):
                run(generator.c_dim)
        else:
            torch.testing.assert_close(run(None), run(c))


def test_classes_may_be_given_in_any_form(
    generator: Generator, z: Tensor, latents: Tensor, images: Tensor, c: Tensor | None
) -> None:
    if c is None:
        assert generator.class_in == ""
        return
    one_hot = torch.nn.functional.one_hot(c, generator.c_dim)
    for given in (c, c.numpy(), one_hot, one_hot.float(), one_hot.double().numpy()):
        torch.testing.assert_close(generator.mapping(z, given), latents, rtol=0, atol=1e-6)
        torch.testing.assert_close(generator.synthesis(latents, given), images, rtol=0, atol=1e-6)
    other = (c + 1) % generator.c_dim
    changed = generator.synthesis(generator.mapping(z, other), other)
    assert (changed - images).abs().max() > 1 / 127.5, "another class must give another picture"


def test_layers_that_are_not_editable_carry_something_else(generator: Generator) -> None:
    assert generator.editable == tuple(range(len(generator.editable)))
    assert generator.num_layers - len(generator.editable) == bool(generator.truncation_rows)


def test_z_is_what_the_generator_was_trained_on(generator: Generator) -> None:
    z = generator.sample(range(200))
    assert z.shape == (200, generator.z_dim)
    if generator.z_bound is None:
        assert z.abs().max() > 2.5
    else:
        assert z.abs().max() <= generator.z_bound


def test_identity_can_be_written_as_json(generator: Generator) -> None:
    identity = generator.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert json.loads(json.dumps(generator.config)) == generator.config
    for name in ("name", "family", "weights_sha256", "licence", "source", "num_layers", "dim", "space"):
        assert name in identity


def test_the_hash_is_stable(generator: Generator) -> None:
    assert len(generator.weights_sha256) == 64
    assert generator.weights_sha256 == generator.weights_sha256


def test_save_and_load_keep_identity_and_images(
    generator: Generator, latents: Tensor, images: Tensor, c: Tensor | None, tmp_path: Path
) -> None:
    save_generator(generator, tmp_path / "saved.safetensors")
    loaded = load_generator(tmp_path / "saved.safetensors")
    assert loaded.identity() == generator.identity()
    assert loaded.provenance == generator.provenance
    assert loaded.config == generator.config
    torch.testing.assert_close(loaded.synthesis(latents, c), images, rtol=0, atol=1e-5)


def test_the_hash_is_computed_from_the_weights(generator: Generator, tmp_path: Path) -> None:
    save_generator(generator, tmp_path / "saved.safetensors")
    changed = load_generator(tmp_path / "saved.safetensors")
    changed._weights_sha256 = None
    changed.latent_mean += 1
    assert changed.weights_sha256 != generator.weights_sha256


def test_nothing_can_be_trained_by_accident(generator: Generator) -> None:
    assert not [name for name, parameter in generator.named_parameters() if parameter.requires_grad]
    assert not [name for name, module in generator.named_modules() if module.training]


def test_gradients_are_there_where_promised(generator: Generator, latents: Tensor, c: Tensor | None) -> None:
    given = latents.clone().requires_grad_()
    if not generator.differentiable:
        with pytest.raises(ContractError, match="no gradients"):
            generator.synthesis(given, c)
        return
    (slope,) = torch.autograd.grad(generator.synthesis(given, c).square().sum(), given)
    assert torch.isfinite(slope).all()
    assert slope[:, list(generator.editable)].abs().amax(dim=2).all()


def test_factors_multiply_a_layer_that_exists(generator: Generator) -> None:
    for factor in generator.factors():
        assert 0 <= factor.layer < generator.num_layers
        assert factor.weight.ndim == 2
        assert factor.weight.shape[1] == generator.dim
        assert not factor.weight.requires_grad


def test_a_file_of_nonsense_is_refused(generator: Generator, tmp_path: Path) -> None:
    torch.save({"something": torch.zeros(3)}, tmp_path / "nonsense.pt")
    with pytest.raises(FastdirsError):
        load_generator(tmp_path / "nonsense.pt", family=generator.family)


@pytest.mark.parametrize("name", GENERATORS.names())
def test_every_family_has_a_line_for_lists(name: str) -> None:
    family = GENERATORS.load(name)
    assert family.summary
    assert "\n" not in family.summary
    assert all(help_line and "\n" not in help_line for help_line in family.options.values())
