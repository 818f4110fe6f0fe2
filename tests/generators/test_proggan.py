from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdirs.errors import CheckpointError, UnknownNameError
from fastdirs.export import export_generator
from fastdirs.generators import GENERATORS, Generator
from fastdirs.generators.proggan import published
from fastdirs.latents import sample_z
from fastdirs.loading import load_generator, save_generator
from fastdirs.recipe import Batch, Graph, Recipe

State = dict[str, Tensor]
WIDTHS = (10, 8, 8, 8, 6, 6)
Z_DIM = 12


def pixel_norm(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + 1e-8)


def random_layers(widths: tuple[int, ...], channels: int) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each layer, the one that makes the image last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = [(widths[0], Z_DIM, 4), *((b, a, 3) for a, b in pairwise(widths))]
        return [
            (torch.randn(outputs, inputs, size, size), torch.randn(outputs) * 0.2)
            for outputs, inputs, size in (*sizes, (channels, widths[-1], 1))
        ]


def features_state(widths: tuple[int, ...] = WIDTHS, channels: int = 3) -> State:
    """As prog_gans_pytorch_inference keeps it, each layer with a scale of its own."""
    state: State = {}
    for index, (weight, bias) in enumerate(random_layers(widths, channels)):
        layer = f"features.{index}" if index < len(widths) else "output"
        scale = (1.9 + 0.1 * index) ** 0.5 / weight[0].numel() ** 0.5
        state |= {
            f"{layer}.conv.weight": weight,
            f"{layer}.wscale.scale": torch.tensor([scale]),
            f"{layer}.wscale.b": bias,
        }
    return state


def features_images(state: State, z: Tensor) -> Tensor:
    count = sum(name.startswith("features") for name in state) // 3
    x = z[:, :, None, None]
    for index in range(count):
        layer = f"features.{index}"
        x = pixel_norm(x)
        if index and index % 2 == 0:
            x = F.interpolate(x, scale_factor=2)
        x = F.conv2d(x, state[f"{layer}.conv.weight"], padding=1 if index else 3)
        x = F.leaky_relu(x * state[f"{layer}.wscale.scale"] + state[f"{layer}.wscale.b"][:, None, None], 0.2)
    x = F.conv2d(pixel_norm(x), state["output.conv.weight"])
    return x * state["output.wscale.scale"] + state["output.wscale.b"][:, None, None]


def genforce_state(widths: tuple[int, ...] = WIDTHS, channels: int = 3, fused: bool = False) -> State:
    """As genforce keeps it: no scales, an output for each resolution, transposed weights where fused."""
    state: State = {"lod": torch.zeros(())}
    *layers, output = random_layers(widths, channels)
    for index, (weight, bias) in enumerate(layers):
        doubles = index > 0 and index % 2 == 0
        state[f"layer{index}.weight"] = weight.transpose(0, 1).clone() if fused and doubles else weight
        state[f"layer{index}.bias"] = bias
        if index % 2:
            state[f"output{index // 2}.weight"] = torch.randn(channels, len(bias), 1, 1)
            state[f"output{index // 2}.bias"] = torch.randn(channels)
    last = f"output{len(layers) // 2 - 1}"
    return {**state, f"{last}.weight": output[0], f"{last}.bias": output[1]}


def genforce_images(state: State, z: Tensor, fused: bool = False) -> Tensor:
    count = sum(name.startswith("layer") for name in state) // 2
    x = pixel_norm(z)[:, :, None, None]
    for index in range(count):
        weight, bias = state[f"layer{index}.weight"], state[f"layer{index}.bias"]
        doubles = index > 0 and index % 2 == 0
        # A transposed weight has its inputs first.
        inputs = weight.shape[0 if fused and doubles else 1]
        weight = weight * (2 / (inputs * weight.shape[2] ** 2)) ** 0.5
        x = pixel_norm(x)
        if fused and doubles:
            wide = F.pad(weight, (1, 1, 1, 1))
            kernel = wide[:, :, 1:, 1:] + wide[:, :, :-1, 1:] + wide[:, :, 1:, :-1] + wide[:, :, :-1, :-1]
            x = F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
        else:
            x = F.interpolate(x, scale_factor=2) if doubles else x
            x = F.conv2d(x, weight, bias, padding=1 if index else 3)
        x = F.leaky_relu(x, 0.2)
    weight = state[f"output{count // 2 - 1}.weight"]
    return F.conv2d(pixel_norm(x), weight / weight.shape[1] ** 0.5, state[f"output{count // 2 - 1}.bias"])


def load(folder: Path, state: Mapping[str, object], **options: str) -> Generator:
    torch.save(dict(state), folder / "model.pth")
    return load_generator(folder / "model.pth", family="proggan", options=options)


def assert_images(generator: Generator, expected: Tensor) -> None:
    # A pixel norm over few channels magnifies rounding where all of them are small.
    latents = generator.mapping(sample_z(range(len(expected)), Z_DIM))
    torch.testing.assert_close(generator.synthesis(latents), expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(generator.synthesis(latents[:1]), expected[:1], rtol=0, atol=2e-4)


SIZES = [(WIDTHS, 3), ((6, 6), 3), ((8, 7, 7, 6, 6, 6, 5, 5), 1), ((8, 8, 8, 8), 3)]


@pytest.mark.parametrize(("widths", "channels"), SIZES)
def test_files_with_a_scale_for_each_layer(widths: tuple[int, ...], channels: int, tmp_path: Path) -> None:
    state = features_state(widths, channels)
    generator = load(tmp_path, state)
    assert (generator.family, generator.space, generator.z_dim) == ("proggan", "z", Z_DIM)
    assert (generator.num_layers, generator.dim, generator.img_channels) == (1, Z_DIM, channels)
    assert generator.img_resolution == 4 * 2 ** (len(widths) // 2 - 1)
    assert generator.reads == ((0,), *[()] * len(widths))
    assert generator.provenance.assumed == ()
    assert_images(generator, features_images(state, sample_z(range(3), Z_DIM)))


@pytest.mark.parametrize(("widths", "channels"), SIZES)
@pytest.mark.parametrize("fused", [False, True])
def test_files_of_genforce(widths: tuple[int, ...], channels: int, fused: bool, tmp_path: Path) -> None:
    state = genforce_state(widths, channels, fused)
    generator = load(tmp_path, state, fused_scale="all" if fused else "none")
    assert generator.provenance.assumed == ("output=linear", "label_size=0")
    assert_images(generator, genforce_images(state, sample_z(range(3), Z_DIM), fused))


@pytest.mark.parametrize("fused", [False, True])
def test_a_doubling_layer_that_changes_the_width_tells_how_it_doubles(fused: bool, tmp_path: Path) -> None:
    state = genforce_state((8, 8, 6, 6), 3, fused)
    generator = load(tmp_path, state)
    assert generator.provenance.assumed == ("output=linear", "label_size=0")
    assert_images(generator, genforce_images(state, sample_z(range(3), Z_DIM), fused))
    with pytest.raises(CheckpointError, match=r"'layer2.weight' of shape"):
        load(tmp_path, state, fused_scale="none" if fused else "all")


def test_what_the_file_cannot_tell_is_assumed(tmp_path: Path) -> None:
    state = genforce_state((8, 8, 8, 8))
    assert load(tmp_path, state).provenance.assumed == ("output=linear", "label_size=0", "fused_scale=none")
    settled = load(tmp_path, state, output="tanh", fused_scale="none")
    assert settled.provenance.assumed == ("label_size=0",)
    assert_images(settled, torch.tanh(genforce_images(state, sample_z(range(3), Z_DIM))))
    with pytest.raises(UnknownNameError, match="'some'"):
        load(tmp_path, state, fused_scale="some")
    for option, value in (("output", "linear"), ("fused_scale", "none")):
        with pytest.raises(CheckpointError, match=f"{option} settles a doubt of genforce files"):
            load(tmp_path, features_state(), **{option: value})


def test_found_without_being_named(tmp_path: Path) -> None:
    networks = {"generator": genforce_state(), "discriminator": {"input0.weight": torch.zeros(2, 3, 1, 1)}}
    for number, state in enumerate((features_state(), {**networks, "generator_smooth": genforce_state()})):
        torch.save(state, tmp_path / f"{number}.pth")
        generator = load_generator(tmp_path / f"{number}.pth")
        assert generator.family == "proggan"
        assert (generator.provenance.name, generator.provenance.source) == (str(number), f"{number}.pth")


def test_a_discriminator_is_not_taken_for_it(tmp_path: Path) -> None:
    state = {name.replace("output0", "input0"): tensor for name, tensor in genforce_state((6, 6)).items()}
    state["output1.weight"] = torch.zeros(1, 4)
    torch.save(state, tmp_path / "d.pth")
    with pytest.raises(CheckpointError):
        load_generator(tmp_path / "d.pth")


@pytest.mark.parametrize(
    "name", ["features.0.conv.weight", "features.3.wscale.scale", "features.5.wscale.b", "output.conv.weight"]
)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    state = features_state()
    del state[name]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"{name}' is missing"):
        load_generator(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["layer0.weight", "layer3.bias", "layer5.weight", "output2.weight"])
def test_a_missing_tensor_of_genforce_is_named(name: str, tmp_path: Path) -> None:
    state = genforce_state()
    del state[name]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"{name}' is missing"):
        load_generator(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["features.2.conv.weight", "features.3.wscale.scale"])
def test_a_tensor_of_another_shape_is_named(name: str, tmp_path: Path) -> None:
    state = features_state()
    state[name] = torch.cat([state[name], state[name][:1]])
    with pytest.raises(CheckpointError, match=f"{name}' of shape"):
        load(tmp_path, state)


def test_a_first_layer_of_another_kind(tmp_path: Path) -> None:
    state = features_state()
    state["features.0.conv.weight"] = state["features.0.conv.weight"].reshape(10, Z_DIM, 2, 8)
    with pytest.raises(CheckpointError, match=r"'features.0.conv.weight' .* Expected a 4x4 kernel"):
        load(tmp_path, state)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state = genforce_state()
    state["layer3.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in 'layer3.weight'"):
        load(tmp_path, state)


def test_superfluous_tensors_are_named(tmp_path: Path) -> None:
    for state in (features_state(), genforce_state()):
        with pytest.raises(CheckpointError, match=r"holds 'label.weight', which is no part"):
            load(tmp_path, {**state, "label.weight": torch.zeros(3)})


def test_training_that_had_not_grown_to_the_end(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lod=1.5: its training ended before"):
        load(tmp_path, {**genforce_state(), "lod": torch.tensor(1.5)})


def test_layers_that_do_not_come_in_pairs(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in features_state().items() if "features.5" not in name}
    with pytest.raises(CheckpointError, match=r"holds 5 layers .* Expected two for each resolution"):
        load(tmp_path, state)
    with pytest.raises(CheckpointError, match="holds 0 layers"):
        load(tmp_path, {"something": torch.zeros(3)})


def test_shapes_that_would_fill_the_memory(tmp_path: Path) -> None:
    wide = torch.zeros(300_000)
    state = {**genforce_state(), "layer2.bias": wide, "layer3.bias": wide}
    with pytest.raises(CheckpointError, match="the shapes of its tensors ask for"):
        load(tmp_path, state, fused_scale="none")


def test_images_of_two_channels(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="images of 2 channels"):
        load(tmp_path, features_state(channels=2))


def test_only_the_direction_of_z_counts(tmp_path: Path) -> None:
    generator = load(tmp_path, features_state())
    z = sample_z(range(2), Z_DIM)
    torch.testing.assert_close(generator.synthesis(generator.mapping(z)), generator.synthesis(z[:, None] * 5))


def test_psi_changes_nothing_and_that_is_said(tmp_path: Path) -> None:
    generator, z = load(tmp_path, features_state()), sample_z(range(2), Z_DIM)
    images = [generator.synthesis(generator.mapping(z, psi=psi)) for psi in (1.0, 0.3)]
    torch.testing.assert_close(*images)
    family = GENERATORS.load("proggan")
    assert "psi changes nothing" in family.summary
    assert "truncation changes nothing" in str(type(generator).__doc__)
    # Loading takes "key" before any family sees it.
    assert "key" not in family.options


def test_a_scale_is_positive(tmp_path: Path) -> None:
    state = {**features_state(), "features.2.wscale.scale": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"values of zero or less in 'features.2.wscale.scale'"):
        load(tmp_path, state)


def test_images_are_not_clipped(tmp_path: Path) -> None:
    state = {**features_state(), "output.wscale.b": torch.tensor([3.0, -3.0, 0.0])}
    images = load(tmp_path, state).synthesis(sample_z([0], Z_DIM)[:, None])
    assert images.max() > 1
    assert images.min() < -1


def test_the_factor_is_the_published_one(tmp_path: Path) -> None:
    state = genforce_state()
    (factor,) = load(tmp_path, state).factors()
    published_rows = state["layer0.weight"].flip(2, 3).permute(1, 0, 2, 3).flatten(1).T
    assert factor.layer == 0
    assert torch.equal(factor.weight, published_rows)


def test_written_and_read_again(tmp_path: Path) -> None:
    latents = sample_z(range(2), Z_DIM)[:, None]
    for state in (features_state(), genforce_state((8, 8, 6, 6), fused=True)):
        generator = load(tmp_path, state)
        save_generator(generator, tmp_path / "own.safetensors")
        again = load_generator(tmp_path / "own.safetensors")
        assert again.weights_sha256 == generator.weights_sha256
        assert torch.equal(again.synthesis(latents), generator.synthesis(latents))


def test_exported_at_every_batch_size(tmp_path: Path) -> None:
    generator = load(tmp_path, features_state((6, 6, 4, 4)))
    recipe = Recipe(
        generator=generator.provenance.name, graph=Graph(lowering="plain"), batch=Batch(opt=2, max=3)
    )
    artifact = export_generator(generator, tmp_path / "artefact", recipe)
    verified = {(row["backend"], row["precision"]): row["accepted"] for row in artifact.content["verified"]}
    assert verified["ort", "f32"]
    assert verified["openvino_cpu", "f32"]


def test_published_sizes() -> None:
    assert published(1024)["widths"] == [512] * 8 + [256, 256, 128, 128, 64, 64, 32, 32, 16, 16]
    small = {**published(64), "widths": [width // 16 for width in published(64)["widths"]]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load("proggan").build(small)
    assert generator.img_resolution == 64
    assert 0.1 < generator.synthesis(generator.mapping(sample_z(range(4), 512))).std() < 2
    with pytest.raises(CheckpointError, match="96 pixels"):
        published(96)
