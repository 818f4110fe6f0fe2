"""StyleGAN2: what it computes, against the same formulas written plainly, in every architecture."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdirs.backends import BACKENDS
from fastdirs.discovery import discover
from fastdirs.errors import UnknownNameError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.generators.stylegan2 import published
from fastdirs.graphs import SynthesisGraph
from fastdirs.loading import load_generator, save_generator
from fastdirs.tracing import trace

BATCH = 3


def small(**settings: object) -> Generator:
    """A tiny network of four resolutions, all of whose weights do something."""
    config = {"z_dim": 10, "w_dim": 12, "channels": [9, 8, 7, 6], "mapping_widths": [11, 12], **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load("stylegan2").build(config)
        state = generator.state_dict()
        for name, tensor in state.items():
            if name.endswith(("bias", "latent_mean")) and "affine" not in name:
                state[name] = torch.randn(tensor.shape) * 0.3
            if name.endswith("noise_strength"):
                state[name] = torch.rand(()) * 0.5
        generator.load_state_dict(state)
    return generator


def with_latents(generator: Generator) -> Tensor:
    """Another w for every layer: `[batch, layers, dim]`."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, generator.num_layers, generator.dim, generator=random)


def upfirdn(x: Tensor, taps: Tensor, up: int, left: int, right: int) -> Tensor:
    """Zeros between pixels and around, then the filter: the definition."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, height * up, width * up)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, (left, right, left, right))
    return F.conv2d(spread, taps.flip(0, 1).expand(channels, 1, -1, -1), groups=channels)


class Plain:
    """The network as the papers write it: weights modulated for each image, in float64."""

    def __init__(self, generator: Generator) -> None:
        self.config = generator.config
        self.state = {name: tensor.double() for name, tensor in generator.state_dict().items()}
        row = torch.tensor(self.config["resample_kernel"], dtype=torch.float64)
        self.taps = torch.outer(row, row) / row.sum() ** 2 * self.config["filter_gain"]
        self.size = len(row)

    def style(self, name: str, w: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.affine.weight"], self.state[f"{name}.affine.bias"]
        return w @ weight.T / weight.shape[1] ** 0.5 + bias + self.config["style_offset"]

    def doubled(self, x: Tensor) -> Tensor:
        return upfirdn(x, self.taps, 2, (self.size + 1) // 2, (self.size - 2) // 2)

    def clamped(self, x: Tensor, gain: float = 1.0) -> Tensor:
        clamp = self.config["conv_clamp"]
        return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)

    def convolved(self, layer: int, x: Tensor, latents: Tensor, gain: float = 1.0) -> Tensor:
        name = f"stages.{layer}.convolution"
        style = self.style(name, latents[:, layer])
        weight = self.state[f"{name}.weight"]
        if layer % 2:
            # A transposed convolution is one of the spread picture with flipped weights.
            weight = weight.transpose(0, 1).flip(2, 3)
            x = upfirdn(x, self.taps, 2, 1 + (self.size + 1) // 2, 1 + (self.size - 2) // 2)
        else:
            x = F.pad(x, (1, 1, 1, 1))
        scale = (9 * weight.shape[1]) ** -0.5 if self.config["eps_by_fan_in"] else 1.0
        modulated = weight[None] * scale * style[:, None, :, None, None]
        modulated = modulated / (modulated.square().sum((2, 3, 4), keepdim=True) + self.config["eps"]).sqrt()
        y = torch.cat([F.conv2d(x[i : i + 1], modulated[i]) for i in range(len(x))])
        if self.config["use_noise"] and self.config["noise"] == "const":
            y = y + self.state[f"{name}.noise"] * self.state[f"{name}.noise_strength"]
        y = F.leaky_relu(y + self.state[f"{name}.bias"][:, None, None], 0.2) * 2**0.5 * gain
        return self.clamped(y, gain)

    def rgb(self, block: int, x: Tensor, latents: Tensor) -> Tensor:
        name = f"stages.{2 * block + 1}.rgb"
        style = self.style(name, latents[:, 2 * block + 1]) / x.shape[1] ** 0.5
        weight = self.state[f"{name}.weight"]
        image = torch.einsum("oc,bc,bchw->bohw", weight, style, x)
        return self.clamped(image + self.state[f"{name}.bias"][:, None, None])

    def images(self, latents: Tensor) -> Tensor:
        latents, kind = latents.double(), self.config["architecture"]
        x = self.state["stages.0.const"].expand(len(latents), -1, -1, -1)
        x = self.convolved(0, x, latents)
        image = self.rgb(0, x, latents) if kind == "skip" else None
        blocks = len(self.config["channels"])
        for block in range(1, blocks):
            before = x
            x = self.convolved(2 * block - 1, x, latents)
            gain = 0.5**0.5 if kind == "resnet" else 1.0
            x = self.convolved(2 * block, x, latents, gain)
            if kind == "resnet":
                weight = self.state[f"stages.{2 * block - 1}.shortcut.weight"] / before.shape[1] ** 0.5
                x = x + gain * self.doubled(F.conv2d(before, weight))
            if kind == "skip":
                image = self.rgb(block, x, latents) + self.doubled(image)
        image = self.rgb(blocks - 1, x, latents) if image is None else image
        return torch.tanh(image) if self.config["output"] == "tanh" else image


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"conv_clamp": 0.6},
        {"style_offset": 1.0, "eps_by_fan_in": True, "eps": 1e-2, "filter_gain": 4.0},
        {"eps": 0.5, "img_channels": 1, "channels": [5]},
        {"resample_kernel": [1.0, 2.0, 1.0], "channels": [3, 5, 4]},
        {"resample_kernel": [1.0, 2.0, 4.0, 3.0, 2.0, 1.0], "output": "tanh"},
        {"use_noise": False},
        {"noise": "none"},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_images_are_those_of_the_plain_formulas(architecture: str, settings: dict[str, object]) -> None:
    generator = small(architecture=architecture, **settings)
    latents = with_latents(generator)
    images = generator.synthesis(latents)
    torch.testing.assert_close(images.double(), Plain(generator).images(latents), rtol=1e-4, atol=1e-5)


def test_the_clamp_and_the_epsilons_matter() -> None:
    plain = small()
    latents = with_latents(plain)
    for settings in ({"conv_clamp": 0.6}, {"eps": 0.5}, {"eps": 0.01, "eps_by_fan_in": True}):
        change = small(**settings).synthesis(latents) - plain.synthesis(latents)
        assert change.abs().max() > 1e-3, settings


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_stages_read_the_layers_that_they_name(architecture: str) -> None:
    generator = small(architecture=architecture)
    latents, state = with_latents(generator), None
    assert generator.reads == tuple((layer,) for layer in range(generator.num_layers))
    for stage, reads in zip(generator.stages, generator.reads, strict=True):
        poisoned = torch.full_like(latents, torch.nan)
        poisoned[:, list(reads)] = latents[:, list(reads)]
        state = stage(state, poisoned)
        for part in state if isinstance(state, tuple) else (state,):
            assert len(part) == BATCH
            assert torch.isfinite(part).all()
    torch.testing.assert_close(state, generator.synthesis(latents), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_stages_leave_what_they_are_given_alone(architecture: str) -> None:
    generator = small(architecture=architecture, conv_clamp=0.6)
    latents, state = with_latents(generator), None
    for stage in generator.stages:
        given = state if isinstance(state, tuple) else ()
        kept = [latents.clone(), *(part.clone() for part in given)]
        state = stage(state, latents)
        for part, before in zip((latents, *given), kept, strict=True):
            assert torch.equal(part, before)


def test_latents_can_be_optimised() -> None:
    generator = small(conv_clamp=0.6, channels=[4, 3])
    latents = with_latents(generator)[:1].requires_grad_(True)
    direction = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    (slope,) = torch.autograd.grad(generator.synthesis(latents).square().sum(), latents)
    with torch.no_grad():
        ends = [Plain(generator).images(latents + step * direction).square().sum() for step in (1e-3, -1e-3)]
    assert float((slope * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-3, rel=1e-2)


def test_factors_are_the_affine_weights_of_each_layer() -> None:
    generator = small()
    factors = generator.factors()
    # A convolution in every layer but the last, an image in every odd one.
    assert [factor.layer for factor in factors] == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7]
    assert [len(factor.weight) for factor in factors] == [9, 9, 9, 8, 8, 8, 7, 7, 7, 6, 6]
    assert [factor.layer for factor in factors if factor.role == "image"] == [1, 3, 5, 7]
    latents = with_latents(generator)
    for factor in factors:
        assert torch.equal(factor.weight, generator.get_parameter(f"{factor.name}.weight"))
    # What a layer's factor does not see leaves the images alone.
    unseen = torch.linalg.svd(factors[-1].weight)[2][-1]
    moved = latents.clone()
    moved[:, -1] += 5 * unseen
    torch.testing.assert_close(generator.synthesis(moved), generator.synthesis(latents), rtol=0, atol=1e-5)
    assert len(discover(generator, "sefa", num_directions=4).labels) == 4


def test_classes_are_read_by_the_mapping() -> None:
    generator = small(c_dim=4, embed_dim=5)
    assert generator.class_in == "mapping"
    z = generator.sample(range(2))
    assert (generator.mapping(z, 0) - generator.mapping(z, 1)).abs().max() > 1e-2
    w = generator.mapping(z, 2)
    torch.testing.assert_close(w[:, 0], w[:, -1], rtol=0, atol=1e-6)


def test_a_mapping_may_make_a_w_for_each_layer() -> None:
    generator = small(mapping_widths=[11, 8 * 12])
    latents = generator.mapping(generator.sample([0]))
    assert latents.shape == (1, 8, 12)
    assert not torch.equal(latents[:, 0], latents[:, 1])


def test_random_noise_is_fresh_and_no_graph(tmp_path: Path) -> None:
    generator = small(noise="random")
    latents = with_latents(generator)
    assert not generator.exportable
    assert not torch.equal(generator.synthesis(latents), generator.synthesis(latents))
    assert small().exportable
    assert small(noise="random", use_noise=False).exportable


def test_unknown_noise_is_named() -> None:
    with pytest.raises(UnknownNameError, match="randon"):
        small(noise="randon")


def test_a_saved_generator_is_the_same_and_its_noise_can_be_chosen(tmp_path: Path) -> None:
    generator = small(conv_clamp=0.6)
    latents = with_latents(generator)
    save_generator(generator, tmp_path / "model.safetensors")
    loaded = load_generator(tmp_path / "model.safetensors")
    assert loaded.config == generator.config
    assert loaded.weights_sha256 == generator.weights_sha256
    assert torch.equal(loaded.synthesis(latents), generator.synthesis(latents))
    assert torch.equal(
        loaded.mapping(loaded.sample([1]), psi=0.5), generator.mapping(loaded.sample([1]), psi=0.5)
    )
    silent = load_generator(tmp_path / "model.safetensors", options={"noise": "none"})
    assert silent.weights_sha256 == generator.weights_sha256
    assert torch.equal(silent.synthesis(latents), small(conv_clamp=0.6, noise="none").synthesis(latents))


def test_a_mean_of_samples_is_made_anew_and_is_no_weight(tmp_path: Path) -> None:
    generator = small(latent_mean="of 4096 samples")
    assert "latent_mean" not in generator.state_dict()
    z = torch.randn(20_000, generator.z_dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(generator.latent_mean, generator.map_z(z, None).mean(0), rtol=0, atol=0.05)
    save_generator(generator, tmp_path / "model.safetensors")
    assert torch.equal(load_generator(tmp_path / "model.safetensors").latent_mean, generator.latent_mean)


@pytest.mark.parametrize("classes", [{}, {"c_dim": 4, "embed_dim": 5}], ids=["plain", "classes"])
def test_a_mean_of_samples_is_made_where_the_generator_lies(classes: dict[str, int]) -> None:
    config = {"z_dim": 10, "w_dim": 12, "channels": [9, 8], "mapping_widths": [11, 12], **classes}
    with torch.device("meta"):
        generator = GENERATORS.load("stylegan2").build({**config, "latent_mean": "of 4096 samples"})
    assert generator.latent_mean.device.type == "meta"
    generator.load_state_dict(generator.state_dict())


def test_options_say_what_they_do() -> None:
    options = GENERATORS.load("stylegan2").options
    assert "key" not in options
    assert "same seed gives different pictures" in options["noise"]


def test_published_networks_are_the_usual_ones() -> None:
    assert published(1024)["channels"] == [512, 512, 512, 512, 512, 256, 128, 64, 32]
    config = published(16, channel_base=64, channel_max=8, w_dim=16, mapping_layers=2)
    generator = GENERATORS.load("stylegan2").build(config)
    images = generator.synthesis(generator.mapping(generator.sample(range(8))))
    assert images.shape == (8, 3, 16, 16)
    assert 0.03 < images.std() < 1


def test_a_graph_gives_the_same_images_at_every_batch_size(tmp_path: Path) -> None:
    # The contract test exports the usual architecture with all that belongs to it.
    generator = small(channels=[6, 5], architecture="resnet", conv_clamp=0.6)
    graph, latents = SynthesisGraph(generator), with_latents(generator)
    path = tmp_path / "synthesis.onnx"
    trace(graph, graph.example(), path, graph.inputs, "images", 18, generator.identity())
    for backend in ("ort", "openvino_cpu"):
        session = BACKENDS.load(backend).open(path, "f32", False)
        for count in (1, BATCH):
            images = torch.from_numpy(session.run([latents[:count].numpy()]))
            torch.testing.assert_close(images, generator.synthesis(latents[:count]), rtol=0, atol=1e-5)
        session.close()
