import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastdirs.errors import CheckpointError, UnknownNameError
from fastdirs.export import export_generator
from fastdirs.generators import GENERATORS, Generator
from fastdirs.generators.sngan import published
from fastdirs.latents import sample_z
from fastdirs.loading import load_generator, save_generator
from fastdirs.recipe import Batch, Graph, Recipe

State = dict[str, Tensor]


class Block(nn.Module):
    """As its authors wrote it: the convolutions are attributes, and again members of a list."""

    def __init__(self, inputs: int, outputs: int, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1)
        self.model = nn.Sequential(
            nn.BatchNorm2d(inputs, eps), nn.ReLU(), nn.Upsample(scale_factor=2), self.conv1,
            nn.BatchNorm2d(outputs, eps), nn.ReLU(), self.conv2,
        )  # fmt: skip
        more = [nn.Conv2d(inputs, outputs, 3, 1, padding=1)] if inputs != outputs else []
        self.bypass = nn.Sequential(nn.Upsample(scale_factor=2), *more)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + self.bypass(x)


def original(
    widths: tuple[int, ...] = (10, 8, 8, 6), z_dim: int = 12, channels: int = 3, eps: float = 1e-5
) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(z_dim, 16 * widths[0]),
            nn.Unflatten(1, (widths[0], 4, 4)),
            *(Block(a, b, eps) for a, b in pairwise(widths)),
            nn.BatchNorm2d(widths[-1], eps),
            nn.ReLU(),
            nn.Conv2d(widths[-1], channels, 3, 1, padding=1),
            nn.Tanh(),
        )
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.8, 1.6)
                nn.init.normal_(module.bias, std=0.3)
                module.running_mean = torch.randn(module.num_features) * 0.2
                module.running_var = torch.rand(module.num_features) * 0.3 + 0.05
    return network.eval().requires_grad_(False)


def state_of(network: nn.Module) -> State:
    return {f"model.{name}": tensor for name, tensor in network.state_dict().items()}


def load(folder: Path, state: Mapping[str, Tensor], **options: str) -> Generator:
    torch.save(dict(state), folder / "generator.pt")
    return load_generator(folder / "generator.pt", family="sngan", options=options)


def assert_same_images(generator: Generator, network: nn.Module) -> None:
    z = sample_z(range(3), generator.z_dim)
    images = generator.synthesis(generator.mapping(z))
    torch.testing.assert_close(images, network(z), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        generator.synthesis(generator.mapping(z[:1])), network(z[:1]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("widths", "channels"),
    [((10, 8, 8, 6), 3), ((7, 7, 7, 7), 1), ((16, 12, 8, 6, 4), 3), ((5, 4), 1), ((4, 6, 6, 4, 4, 2), 3)],
)
def test_sizes_are_read_off_the_shapes(widths: tuple[int, ...], channels: int, tmp_path: Path) -> None:
    network = original(widths, channels=channels)
    generator = load(tmp_path, state_of(network))
    assert (generator.family, generator.space, generator.z_dim) == ("sngan", "z", 12)
    assert (generator.num_layers, generator.dim, generator.c_dim) == (1, 12, 0)
    assert (generator.img_resolution, generator.img_channels) == (4 * 2 ** (len(widths) - 1), channels)
    assert generator.reads == ((0,), *[()] * len(widths))
    assert_same_images(generator, network)


def test_found_without_being_named(tmp_path: Path) -> None:
    torch.save(state_of(original()), tmp_path / "any.pt")
    generator = load_generator(tmp_path / "any.pt")
    assert generator.family == "sngan"
    assert (generator.provenance.name, generator.provenance.source) == ("any", "any.pt")


def test_the_part_to_take_is_no_option_of_the_family() -> None:
    """Loading takes "key" before any family sees it."""
    assert "key" not in GENERATORS.load("sngan").options


def test_the_list_of_layers_alone(tmp_path: Path) -> None:
    network = original()
    assert_same_images(load(tmp_path, network.state_dict()), network)


@pytest.mark.parametrize("kept", ["conv", "model"])
def test_files_that_keep_one_copy_of_each_convolution(kept: str, tmp_path: Path) -> None:
    network = original()
    dropped = (".model.3.", ".model.6.") if kept == "conv" else (".conv1.", ".conv2.")
    state = {name: t for name, t in state_of(network).items() if not any(part in name for part in dropped)}
    save_file(state, tmp_path / "model.safetensors")
    assert_same_images(load_generator(tmp_path / "model.safetensors"), network)


def test_eps_is_assumed_or_settled(tmp_path: Path) -> None:
    usual, other = original(), original(eps=1e-2)
    assert load(tmp_path, state_of(usual)).provenance.assumed == ("eps=1e-05",)
    settled = load(tmp_path, state_of(other), eps="1e-2")
    assert settled.provenance.assumed == ()
    assert_same_images(settled, other)
    for eps in ("often", "0", "1e-13"):
        with pytest.raises(CheckpointError, match=f"eps='{eps}' is out of range"):
            load(tmp_path, state_of(other), eps=eps)
    with pytest.raises(UnknownNameError, match="epsilon"):
        load(tmp_path, state_of(other), epsilon="1e-5")


@pytest.mark.parametrize(
    "name",
    ["model.0.weight", "model.0.bias", "model.2.bypass.1.weight", "model.3.model.0.running_var",
     "model.4.conv2.bias", "model.5.running_mean", "model.7.weight"],
)  # fmt: skip
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    state = state_of(original())
    del state[name]
    state.pop("model.4.model.6.bias" if "conv2" in name else "", None)
    with pytest.raises(CheckpointError, match=f"{name}' is missing"):
        load(tmp_path, state)
    with pytest.raises(CheckpointError, match=f"{name}' is missing"):
        load_generator(tmp_path / "generator.pt")


@pytest.mark.parametrize("name", ["model.0.bias", "model.3.model.0.running_var", "model.4.conv2.weight"])
def test_a_tensor_of_another_shape_is_named(name: str, tmp_path: Path) -> None:
    state = state_of(original())
    state[name] = torch.cat([state[name], state[name][:1]])
    with pytest.raises(CheckpointError, match=f"{name}' of shape"):
        load(tmp_path, state)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state = state_of(original())
    state["model.3.model.4.bias"][1] = float("inf")
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in 'model.3.model.4.bias'"):
        load(tmp_path, state)


def test_a_negative_variance(tmp_path: Path) -> None:
    state = state_of(original())
    state["model.3.model.4.running_var"][1] = -0.1
    with pytest.raises(CheckpointError, match=r"negative values in 'model.3.model.4.running_var'"):
        load(tmp_path, state)


def test_a_superfluous_tensor_is_named(tmp_path: Path) -> None:
    state = {**state_of(original()), "model.3.attention.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"holds 'model.3.attention.weight', which is no part"):
        load(tmp_path, state)


def test_copies_of_a_convolution_that_differ(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in state_of(original()).items()}
    state["model.3.model.3.weight"][0, 0, 0, 0] += 1
    with pytest.raises(CheckpointError, match=r"'model.3.conv1.weight' and as 'model.3.model.3.weight'"):
        load(tmp_path, state)


def test_shapes_that_would_fill_the_memory(tmp_path: Path) -> None:
    state = state_of(original())
    state |= {f"model.3.{name}.weight": torch.zeros(300_000, 1, 1, 1) for name in ("conv1", "model.3")}
    with pytest.raises(CheckpointError, match="the shapes of its tensors ask for"):
        load(tmp_path, state)


def test_images_of_two_channels(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="images of 2 channels"):
        load(tmp_path, state_of(original(channels=2)))


def test_other_networks_are_not_taken_for_it(tmp_path: Path) -> None:
    discriminator = {
        "model.0.conv1.weight": torch.zeros(4, 3, 3, 3),
        "model.0.model.1.weight": torch.zeros(4, 3, 3, 3),
    }
    torch.save(discriminator, tmp_path / "d.pt")
    with pytest.raises(CheckpointError, match="no residual blocks"):
        load(tmp_path, {"0.weight": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError):
        load_generator(tmp_path / "d.pt")


def folder_of(folder: Path, network: nn.Module, **settings: object) -> Path:
    folder.mkdir()
    torch.save(state_of(network), folder / "generator.pt")
    (folder / "args.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_with_its_settings(tmp_path: Path) -> None:
    network = original((8, 8, 8, 8), channels=1)
    folder = folder_of(tmp_path / "mnist.v2", network, model="sn_resnet32", latent_dim=12, image_channels=1)
    generator = load_generator(folder)
    assert generator.provenance.name == "mnist.v2"
    assert_same_images(generator, network)


@pytest.mark.parametrize(
    ("setting", "value"), [("model", "sn_resnet64"), ("latent_dim", 128), ("image_channels", 1)]
)
def test_settings_of_another_network(setting: str, value: object, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mixed", original(), **{setting: value})
    with pytest.raises(CheckpointError, match=f"{setting}={value!r}"):
        load_generator(folder)


def test_written_and_read_again(tmp_path: Path) -> None:
    generator = load(tmp_path, state_of(original()))
    save_generator(generator, tmp_path / "own.safetensors")
    again = load_generator(tmp_path / "own.safetensors")
    latents = generator.mapping(sample_z(range(2), 12))
    assert again.weights_sha256 == generator.weights_sha256
    assert torch.equal(again.synthesis(latents), generator.synthesis(latents))


def test_the_first_layer_is_the_factor(tmp_path: Path) -> None:
    network = original()
    (factor,) = load(tmp_path, state_of(network)).factors()
    assert factor.layer == 0
    assert torch.equal(factor.weight, network[0].weight)


def test_exported_at_every_batch_size(tmp_path: Path) -> None:
    generator = load(tmp_path, state_of(original((6, 6, 4))))
    recipe = Recipe(
        generator=generator.provenance.name, graph=Graph(lowering="plain"), batch=Batch(opt=2, max=3)
    )
    artifact = export_generator(generator, tmp_path / "artefact", recipe)
    verified = {(row["backend"], row["precision"]): row["accepted"] for row in artifact.content["verified"]}
    assert verified["ort", "f32"]
    assert verified["openvino_cpu", "f32"]


@pytest.mark.parametrize("resolution", [32, 64])
def test_published_sizes(resolution: int) -> None:
    config = published(resolution)
    small = {**config, "widths": [width // 8 for width in config["widths"]]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load("sngan").build(small)
    assert generator.img_resolution == resolution
    images = generator.synthesis(generator.mapping(sample_z(range(4), 128)))
    assert 0.05 < images.std() < 0.9
    with pytest.raises(CheckpointError, match="128 pixels"):
        published(128)
