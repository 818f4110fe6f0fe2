from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.errors import CheckpointError, UnknownNameError
from fastdirs.export import export_generator
from fastdirs.generators import GENERATORS, Generator
from fastdirs.generators.stylegan import published
from fastdirs.latents import sample_z
from fastdirs.loading import load_generator, save_generator
from fastdirs.recipe import Batch, Graph, Recipe

State = dict[str, Tensor]
WIDTHS = (8, 8, 6, 6, 5, 5)
Z_DIM, W_DIM = 10, 7


def state_of(
    widths: tuple[int, ...] = WIDTHS, channels: int = 3, repeat_w: bool = True, depth: int = 3
) -> State:
    """A random network, laid out as genforce keeps it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mapped = W_DIM if repeat_w else W_DIM * len(widths)
        sizes = [Z_DIM, *[9] * (depth - 1), mapped]
        state: State = {}
        for index in range(depth):
            state[f"mapping.dense{index}.weight"] = torch.randn(sizes[index + 1], sizes[index]) * 100
            state[f"mapping.dense{index}.bias"] = torch.randn(sizes[index + 1]) * 30
        state["truncation.w_avg"] = torch.randn(mapped)
        state["synthesis.lod"] = torch.zeros(())
        for index, width in enumerate(widths):
            layer, size = f"synthesis.layer{index}", 4 * 2 ** (index // 2)
            state[f"{layer}.bias"] = torch.randn(width) * 0.3
            if index == 0:
                state[f"{layer}.const"] = torch.randn(1, width, 4, 4)
            else:
                state[f"{layer}.weight"] = torch.randn(width, widths[index - 1], 3, 3)
            state[f"{layer}.apply_noise.weight"] = torch.randn(width) * 0.3
            state[f"{layer}.apply_noise.noise"] = torch.randn(1, 1, size, size)
            state[f"{layer}.style.weight"] = torch.randn(2 * width, W_DIM)
            state[f"{layer}.style.bias"] = torch.randn(2 * width) * 0.3
            if index and index % 2 == 0:
                row = torch.tensor([1.0, 2.0, 1.0]) / 4
                state[f"{layer}.blur.kernel"] = torch.outer(row, row).repeat(width, 1, 1, 1)
            if index % 2:
                state[f"synthesis.output{index // 2}.weight"] = torch.randn(channels, width, 1, 1) * 0.2
                state[f"synthesis.output{index // 2}.bias"] = torch.randn(channels) * 0.1
    return state


def latents_of(state: State, z: Tensor, layers: int = len(WIDTHS)) -> Tensor:
    x = z / torch.sqrt((z**2).mean(dim=1, keepdim=True) + 1e-8)
    for index in range(sum(name.startswith("mapping") for name in state) // 2):
        weight, bias = state[f"mapping.dense{index}.weight"], state[f"mapping.dense{index}.bias"]
        x = F.leaky_relu(F.linear(x, weight * (0.01 * (2 / weight.shape[1]) ** 0.5), bias * 0.01), 0.2)
    return x.reshape(len(z), -1, W_DIM).expand(-1, layers, -1)


def images_of(state: State, latents: Tensor, fused_from: int = 128, noise: float = 1.0) -> Tensor:
    x = state["synthesis.layer0.const"].repeat(len(latents), 1, 1, 1)
    count = latents.shape[1]
    for index in range(count):
        layer = f"synthesis.layer{index}"
        if index:
            weight = state[f"{layer}.weight"]
            weight = weight * (2 / weight[0].numel()) ** 0.5
            if index % 2:
                x = F.conv2d(x, weight, padding=1)
            elif 4 * 2 ** (index // 2) >= fused_from:
                wide = F.pad(weight, (1, 1, 1, 1))
                kernel = wide[:, :, 1:, 1:] + wide[:, :, :-1, 1:] + wide[:, :, 1:, :-1] + wide[:, :, :-1, :-1]
                x = F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2, padding=1)
            else:
                x = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)
            if index % 2 == 0:
                kernel = state[f"{layer}.blur.kernel"]
                x = F.conv2d(x, kernel, padding=1, groups=len(kernel))
        strength = state[f"{layer}.apply_noise.weight"][:, None, None] * noise
        x = x + state[f"{layer}.apply_noise.noise"] * strength
        x = F.leaky_relu(x + state[f"{layer}.bias"][:, None, None], 0.2)
        x = x - x.mean(dim=(2, 3), keepdim=True)
        x = x / torch.sqrt((x**2).mean(dim=(2, 3), keepdim=True) + 1e-8)
        weight = state[f"{layer}.style.weight"] / W_DIM**0.5
        style = F.linear(latents[:, index], weight, state[f"{layer}.style.bias"])
        style = style.reshape(len(latents), 2, -1, 1, 1)
        x = x * (style[:, 0] + 1) + style[:, 1]
    weight = state[f"synthesis.output{count // 2 - 1}.weight"]
    return F.conv2d(x, weight / weight.shape[1] ** 0.5, state[f"synthesis.output{count // 2 - 1}.bias"])


def load(folder: Path, state: Mapping[str, Tensor], **options: str) -> Generator:
    torch.save(dict(state), folder / "model.pth")
    return load_generator(folder / "model.pth", family="stylegan", options=options)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


Z = sample_z(range(3), Z_DIM)


@pytest.mark.parametrize(
    ("widths", "channels", "repeat_w", "depth"),
    [
        (WIDTHS, 3, True, 3),
        (WIDTHS, 1, False, 2),
        ((6, 6), 3, True, 8),
        ((7, 6, 6, 5, 5, 4, 4, 4), 3, True, 1),
    ],
)
def test_sizes_are_read_off_the_shapes(
    widths: tuple[int, ...], channels: int, repeat_w: bool, depth: int, tmp_path: Path
) -> None:
    state = state_of(widths, channels, repeat_w, depth)
    generator = load(tmp_path, state)
    assert (generator.family, generator.space, generator.z_dim) == ("stylegan", "w+", Z_DIM)
    assert (generator.num_layers, generator.dim) == (len(widths), W_DIM)
    assert (generator.img_resolution, generator.img_channels) == (2 * 2 ** (len(widths) // 2), channels)
    latents = generator.mapping(Z)
    assert_close(latents, latents_of(state, Z, len(widths)))
    assert_close(generator.synthesis(latents), images_of(state, latents))
    assert_close(generator.synthesis(latents[1:2]), images_of(state, latents)[1:2])


@pytest.mark.parametrize("repeat_w", [True, False])
def test_truncation_pulls_towards_the_stored_mean(repeat_w: bool, tmp_path: Path) -> None:
    state = state_of(repeat_w=repeat_w)
    generator = load(tmp_path, state)
    mean = state["truncation.w_avg"].reshape(-1, W_DIM).expand(len(WIDTHS), -1)
    assert torch.equal(generator.latent_mean, mean)
    full, cut = latents_of(state, Z), generator.mapping(Z, psi=0.7, cutoff=2)
    assert_close(cut[:, :2], (mean + 0.7 * (full - mean))[:, :2])
    assert_close(cut[:, 2:], full[:, 2:])


def test_each_layer_has_its_own_w(tmp_path: Path) -> None:
    state = state_of()
    latents = torch.randn(3, len(WIDTHS), W_DIM, generator=torch.Generator().manual_seed(0))
    assert_close(load(tmp_path, state).synthesis(latents), images_of(state, latents))


def test_each_stage_reads_its_layer_alone(tmp_path: Path) -> None:
    generator = load(tmp_path, state_of())
    assert generator.reads == (*((layer,) for layer in range(len(WIDTHS))), ())
    latents = generator.mapping(Z)
    features = None
    for stage, reads in zip(generator.stages, generator.reads, strict=True):
        poisoned = torch.full_like(latents, float("nan"))
        poisoned[:, list(reads)] = latents[:, list(reads)]
        before = None if features is None else features.clone()
        following = stage(features, poisoned)
        assert before is None or torch.equal(features, before), "a stage must not change what it is given"
        features = following
    assert_close(features, generator.synthesis(latents))


@pytest.mark.parametrize(("option", "fused_from"), [("auto", 128), ("none", 4096), ("all", 8)])
def test_fused_scale(option: str, fused_from: int, tmp_path: Path) -> None:
    state = state_of((6, 6, 5, 5, 4, 4, 4, 4, 4, 4, 4, 4))
    generator = load(tmp_path, state, fused_scale=option)
    latents = generator.mapping(Z)
    assert_close(generator.synthesis(latents), images_of(state, latents, fused_from))
    assert generator.provenance.assumed == ("output=linear",)


def test_noise_and_output(tmp_path: Path) -> None:
    state = state_of()
    usual = load(tmp_path, state)
    latents = usual.mapping(Z)
    assert usual.provenance.assumed == ("fused_scale=auto", "output=linear")
    assert usual.exportable
    assert_close(load(tmp_path, state, noise="const").synthesis(latents), images_of(state, latents))
    assert_close(load(tmp_path, state, noise="none").synthesis(latents), images_of(state, latents, noise=0))
    squashed = load(tmp_path, state, output="tanh").synthesis(latents)
    assert_close(squashed, images_of(state, latents).tanh())
    for option in ("noise", "fused_scale", "output"):
        with pytest.raises(UnknownNameError, match="'loud'"):
            load(tmp_path, state, **{option: "loud"})


def test_random_noise_is_drawn_for_each_image(tmp_path: Path) -> None:
    generator = load(tmp_path, state_of(), noise="random")
    latents = generator.mapping(Z)[:1].expand(2, -1, -1)
    with torch.random.fork_rng(devices=[]):
        images = [generator.synthesis(latents) for _ in range(2)]
    assert not generator.exportable
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    assert not torch.allclose(images[0][0], images[0][1], atol=1e-3)


def test_options_say_what_they_do() -> None:
    options = GENERATORS.load("stylegan").options
    assert "key" not in options
    assert "same seed gives different pictures" in options["noise"]


def test_blurs_that_no_file_holds_are_the_published_ones(tmp_path: Path) -> None:
    state = state_of()
    bare = load(tmp_path, {name: tensor for name, tensor in state.items() if "blur" not in name})
    whole = load(tmp_path, state)
    assert "blur_kernel=1,2,1" in bare.provenance.assumed
    assert bare.config == whole.config
    assert bare.weights_sha256 == whole.weights_sha256
    small = load(tmp_path, state_of((6, 6)))
    assert not any(note.startswith("blur") for note in (*whole.provenance.assumed, *small.provenance.assumed))


class Mapping(nn.Module):
    """z to latents, as a module."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        return self.generator.map_z(z, None)


@pytest.mark.parametrize("repeat_w", [True, False])
def test_the_mapping_is_exported_with_any_batch(repeat_w: bool, tmp_path: Path) -> None:
    generator = load(tmp_path, state_of(repeat_w=repeat_w))
    batch = torch.export.Dim("batch")
    program = torch.export.export(Mapping(generator), (Z,), dynamic_shapes=({0: batch},))
    for count in (1, 5):
        z = sample_z(range(count), Z_DIM)
        assert_close(program.module()(z), generator.map_z(z, None))


def test_written_and_read_again(tmp_path: Path) -> None:
    generator = load(tmp_path, state_of(), fused_scale="all")
    latents = generator.mapping(Z)
    save_generator(generator, tmp_path / "own.safetensors")
    again = load_generator(tmp_path / "own.safetensors")
    silent = load_generator(tmp_path / "own.safetensors", options={"noise": "none"})
    assert again.weights_sha256 == silent.weights_sha256 == generator.weights_sha256
    assert torch.equal(again.synthesis(latents), generator.synthesis(latents))
    assert silent.config["noise"] == "none"
    assert not torch.allclose(silent.synthesis(latents), generator.synthesis(latents), atol=1e-3)
    with pytest.raises(UnknownNameError, match="'loud'"):
        load_generator(tmp_path / "own.safetensors", options={"noise": "loud"})


def test_found_without_being_named(tmp_path: Path) -> None:
    networks = {"generator": state_of(depth=1), "generator_smooth": state_of()}
    torch.save(networks, tmp_path / "faces.pth")
    generator = load_generator(tmp_path / "faces.pth")
    assert generator.family == "stylegan"
    assert (generator.provenance.name, generator.provenance.source) == ("faces", "faces.pth")
    assert len(generator.config["mapping_widths"]) == 3


@pytest.mark.parametrize(
    "name",
    ["mapping.dense1.weight", "truncation.w_avg", "synthesis.layer0.const", "synthesis.layer2.weight",
     "synthesis.layer3.apply_noise.noise", "synthesis.layer4.blur.kernel", "synthesis.layer5.style.bias",
     "synthesis.output2.weight"],
)  # fmt: skip
def test_a_missing_or_mis_shaped_tensor_is_named(name: str, tmp_path: Path) -> None:
    state = state_of()
    whole = state.pop(name)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"{name}' is missing"):
        load_generator(tmp_path / "model.pth")
    if "kernel" not in name:
        with pytest.raises(CheckpointError, match=f"{name}' of shape"):
            load(tmp_path, {**state, name: torch.cat([whole, whole[:1]])})
    with pytest.raises(CheckpointError, match=rf"NaN or infinite values in '{name}'"):
        load(tmp_path, {**state, name: torch.full_like(whole, float("inf"))})


def test_a_superfluous_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds 'synthesis.extra', which is no part"):
        load(tmp_path, {**state_of(), "synthesis.extra": torch.zeros(3)})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("mapping.label_weight", torch.zeros(4, Z_DIM), "label_size > 0.*--generator"),
        ("synthesis.layer0.weight", torch.zeros(8, W_DIM, 4, 4), "const_input=False.*--generator"),
        ("synthesis.layer1.apply_noise.weight", torch.zeros(4, 4), "noise_type='channel'.*--generator"),
        ("synthesis.lod", torch.tensor(2.0), "synthesis.lod=2: its training ended before"),
        (
            "synthesis.layer2.blur.kernel",
            torch.randn(6, 1, 3, 3),
            "blurs each channel in another way.*Download",
        ),
        ("synthesis.layer6.bias", torch.zeros(4), "holds 7 layers"),
        ("synthesis.layer99.bias", torch.zeros(4), "'synthesis.layer99.bias', which is no part"),
    ],
)
def test_variants_are_refused_by_name(name: str, tensor: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, {**state_of(), name: tensor})


def test_shapes_that_would_fill_the_memory(tmp_path: Path) -> None:
    wide = torch.zeros(300_000)
    with pytest.raises(CheckpointError, match="the shapes of its tensors ask for"):
        load(tmp_path, {**state_of(), "synthesis.layer2.bias": wide, "synthesis.layer3.bias": wide})


def test_files_that_are_no_stylegan(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="images of 2 channels"):
        load(tmp_path, state_of(channels=2))
    deep = {f"synthesis.layer{index}.bias": torch.zeros(1) for index in range(40)}
    with pytest.raises(CheckpointError, match=r"holds 40 layers .* at most 22.*Download"):
        load(tmp_path, {**state_of(), **deep})
    with pytest.raises(CheckpointError, match="holds 0 layers"):
        load(tmp_path, {"something": torch.zeros(3)})


def test_factors_are_the_styles(tmp_path: Path) -> None:
    state = state_of()
    factors = load(tmp_path, state).factors()
    assert [factor.layer for factor in factors] == list(range(len(WIDTHS)))
    for factor in factors:
        assert torch.equal(factor.weight, state[f"synthesis.layer{factor.layer}.style.weight"])


def test_exported_at_every_batch_size(tmp_path: Path) -> None:
    generator = load(tmp_path, state_of((6, 6, 4, 4)))
    recipe = Recipe(
        generator=generator.provenance.name, graph=Graph(lowering="plain"), batch=Batch(opt=2, max=3)
    )
    artifact = export_generator(generator, tmp_path / "artefact", recipe)
    verified = {(row["backend"], row["precision"]): row["accepted"] for row in artifact.content["verified"]}
    assert verified["ort", "f32"]
    assert verified["openvino_cpu", "f32"]


def test_published_sizes() -> None:
    assert published(256)["widths"] == [512] * 8 + [256, 256, 128, 128, 64, 64]
    small = {**published(32), "widths": [32] * 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load("stylegan").build(small)
    assert generator.img_resolution == 32
    assert 0.1 < generator.synthesis(generator.mapping(sample_z(range(4), 512))).std() < 2
    with pytest.raises(CheckpointError, match="48 pixels"):
        published(48)
