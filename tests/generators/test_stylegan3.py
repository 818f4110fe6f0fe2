"""StyleGAN3: what it computes, against the paper's formulas written plainly, and how it moves pictures."""

import math
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdirs.backends import BACKENDS
from fastdirs.discovery import discover
from fastdirs.errors import CheckpointError, FastdirsError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.generators._stylegan3_settings import factors_between, samplings
from fastdirs.generators.stylegan3 import published
from fastdirs.graphs import SynthesisGraph
from fastdirs.loading import load_generator, save_generator
from fastdirs.manifest import Json
from fastdirs.tracing import trace

BATCH = 3
R: Json = {"conv_kernel": 1, "use_radial_filters": True}
# Each takes another way through the code.
VARIANTS: dict[str, Json] = {
    "T": {},
    "R": R,
    "classes": {"c_dim": 4},
    "grey": {"img_channels": 1, "channels": [8, 8, 6, 5, 1]},
    "no-clamp": {"conv_clamp": None},
    "clamp": {"conv_clamp": 0.4},
    "no-upsampling": {"lrelu_upsampling": 1},
    "upsampling-4": {"lrelu_upsampling": 4, "filter_size": 4},
    "large": {"img_resolution": 128, "channels": [4, 4, 4, 3, 3], "num_critical": 2},
    "deep": {"num_layers": 6, "channels": [5, 5, 5, 5, 4, 4, 3], "mapping_layers": 4, "z_dim": 6},
}


def small(**settings: object) -> Generator:
    """A tiny network of four layers and ToRGB, all of whose weights do something."""
    config = {
        **published("T", 32), "z_dim": 8, "w_dim": 8, "num_layers": 4, "num_critical": 1, "margin_size": 2,
        "channels": [8, 8, 6, 5, 3], **settings,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load("stylegan3").build(config)
        state = generator.state_dict()
        for name, tensor in state.items():
            if name.endswith(("bias", "latent_mean")):
                state[name] = tensor + torch.randn(tensor.shape) * 0.2
            if name.endswith("magnitude_ema"):
                state[name] = torch.rand(()) + 0.5
            if name.endswith("transform"):
                state[name] = tensor + torch.tensor([[0.1, 0.2, 0.1], [-0.2, 0.1, 0.05], [0.0, 0.0, 0.0]])
        generator.load_state_dict(state)
    return generator


def some_latents(generator: Generator) -> Tensor:
    """Another w for every layer: `[batch, layers, dim]`."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, generator.num_layers, generator.dim, generator=random)


class Plain:
    """The network as the paper and its authors write it: weights modulated for each image, in float64."""

    def __init__(self, generator: Generator) -> None:
        self.config = generator.config
        self.state = {name: tensor.double() for name, tensor in generator.state_dict().items()}

    def affine(self, stage: int, w: Tensor) -> Tensor:
        weight = self.state[f"stages.{stage}.affine.weight"]
        return w @ weight.T / math.sqrt(weight.shape[1]) + self.state[f"stages.{stage}.affine.bias"]

    def features(self, w: Tensor) -> Tensor:
        step = samplings(self.config)[0]
        pose = self.affine(0, w)
        pose = pose / pose[:, :2].norm(dim=1, keepdim=True)
        pictures = []
        for cos, sin, right, down in pose:
            turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
            shift = torch.tensor([[1, 0, -right], [0, 1, -down], [0, 0, 1]], dtype=torch.float64)
            plane = turn @ shift @ self.state["stages.0.transform"]
            axis = (torch.arange(step.size, dtype=torch.float64) + 0.5 - step.size / 2) / step.rate
            y, x = torch.meshgrid(axis, axis, indexing="ij")
            places = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ plane.T
            freqs = self.state["stages.0.freqs"]
            waves = torch.sin(2 * math.pi * (places[..., :2] @ freqs.T + self.state["stages.0.phases"]))
            radii = (freqs @ plane[:2, :2]).norm(dim=1)
            waves = waves * (1 - (radii - step.cutoff) / (step.rate / 2 - step.cutoff)).clamp(0, 1)
            weight = self.state["stages.0.weight"]
            pictures.append((waves @ weight.T / math.sqrt(len(weight))).permute(2, 0, 1))
        return torch.stack(pictures)

    def layer(self, stage: int, x: Tensor, w: Tensor) -> Tensor:
        rgb = stage == self.config["num_layers"] + 1
        weight, styles = self.state[f"stages.{stage}.weight"], self.affine(stage, w)
        if rgb:
            weights = weight * (styles / math.sqrt(weight.shape[1]))[:, None, :, None, None]
        else:
            weight = weight / weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            styles = styles / styles.square().mean().sqrt()
            weights = weight * styles[:, None, :, None, None]
            weights = weights / (weights.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).sqrt()
        weights = weights / self.state[f"stages.{stage}.magnitude_ema"].sqrt()
        pad = weight.shape[-1] - 1
        x = torch.cat([F.conv2d(row[None], each, padding=pad) for row, each in zip(x, weights, strict=True)])
        x = x + self.state[f"stages.{stage}.bias"][:, None, None]
        if not rgb:
            x = self.activated(stage, x)
        clamp = self.config["conv_clamp"] or math.inf
        return x.clamp(-clamp, clamp) * self.config["output_scale"] if rgb else x

    def activated(self, stage: int, x: Tensor) -> Tensor:
        steps = samplings(self.config)
        before, after = steps[max(stage - 2, 0)], steps[stage - 1]
        by = factors_between(before, after, self.config)
        high = (after.size - 1) * by.down + by.down_taps
        spread = x.new_zeros(*x.shape[:2], x.shape[2] * by.up, x.shape[3] * by.up)
        spread[:, :, :: by.up, :: by.up] = x * by.up**2
        total = high + by.up_taps - 1 - spread.shape[2]
        low = (total + by.up) // 2
        x = self.filtered(f"stages.{stage}.up.taps", F.pad(spread, (low, total - low, low, total - low)))
        clamp = self.config["conv_clamp"] or math.inf
        x = (F.leaky_relu(x, 0.2) * math.sqrt(2)).clamp(-clamp, clamp)
        return self.filtered(f"stages.{stage}.down.taps", x)[:, :, :: by.down, :: by.down]

    def filtered(self, name: str, x: Tensor) -> Tensor:
        if name not in self.state:
            return x
        taps, channels = self.state[name], x.shape[1]
        if taps.ndim == 1:
            for kernel in (taps.flip(0)[:, None], taps.flip(0)[None]):
                x = F.conv2d(x, kernel.expand(channels, 1, -1, -1), groups=channels)
            return x
        return F.conv2d(x, taps.flip(0, 1).expand(channels, 1, -1, -1), groups=channels)

    def images(self, latents: Tensor) -> Tensor:
        x = self.features(latents[:, 0].double())
        for stage in range(1, latents.shape[1]):
            x = self.layer(stage, x, latents[:, stage].double())
        return x.float()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_images_are_those_of_the_formulas(variant: str) -> None:
    generator = small(**VARIANTS[variant])
    latents = some_latents(generator)
    images = generator.synthesis(latents)
    torch.testing.assert_close(images, Plain(generator).images(latents), rtol=0, atol=2e-5)
    size = generator.img_resolution
    assert images.shape == (BATCH, generator.img_channels, size, size)
    assert (images[0] - images[1]).abs().max() > 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_generator_comes_back(variant: str, tmp_path: Path) -> None:
    generator = small(**VARIANTS[variant])
    save_generator(generator, tmp_path / "small.safetensors")
    again = load_generator(tmp_path / "small.safetensors")
    assert again.weights_sha256 == generator.weights_sha256
    assert again.config == generator.config
    latents = some_latents(generator)
    assert torch.equal(again.synthesis(latents), generator.synthesis(latents))


def test_mapping_gives_all_layers_the_same_w() -> None:
    generator = small(c_dim=4)
    z = generator.sample(range(BATCH))
    latents = generator.mapping(z, torch.tensor([0, 1, 2]))
    assert latents.shape == (BATCH, 6, 8)
    torch.testing.assert_close(latents, latents[:, :1].expand_as(latents))
    assert not torch.allclose(latents, generator.mapping(z, torch.tensor([1, 2, 3])))


def test_an_image_does_not_depend_on_its_batch() -> None:
    """The original divides the styles by a mean over the batch."""
    generator = small()
    latents = some_latents(generator)
    latents[0] *= 100
    alone = generator.synthesis(latents[1:2])
    torch.testing.assert_close(generator.synthesis(latents)[1:2], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, R], ids=["T", "R"])
def test_every_stage_reads_its_own_layer(settings: Json) -> None:
    generator = small(**settings)
    latents = some_latents(generator)
    state: object = None
    for layer, (stage, reads) in enumerate(zip(generator.stages, generator.reads, strict=True)):
        assert reads == (layer,)
        poisoned = torch.full_like(latents, float("nan"))
        poisoned[:, layer] = latents[:, layer]
        state = stage(state, poisoned)
        moved = latents.clone()
        moved[:, layer] += 1
        assert not torch.allclose(generator.synthesis(moved), generator.synthesis(latents), atol=1e-4)
    assert isinstance(state, Tensor)
    assert torch.equal(state, generator.synthesis(latents))


def test_neither_weights_nor_latents_are_changed() -> None:
    generator = small()
    latents = some_latents(generator)
    before, state = latents.clone(), {k: v.clone() for k, v in generator.state_dict().items()}
    features = generator.stages[0](None, latents)
    kept = features.clone()
    generator.stages[1](features, latents)
    generator.synthesis(latents)
    assert torch.equal(features, kept), "a prefix is shared by many suffixes"
    assert torch.equal(latents, before)
    assert all(torch.equal(v, state[k]) for k, v in generator.state_dict().items())


def test_gradients_reach_every_layer() -> None:
    generator = small(conv_clamp=0.3)
    latents = some_latents(generator).requires_grad_()
    generator.synthesis(latents).square().sum().backward()
    assert latents.grad is not None
    step, direction = 1e-2, torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    values = [
        Plain(generator).images((latents + sign * step * direction).detach()).square().sum()
        for sign in (1, -1)
    ]
    slope = float((latents.grad * direction).sum())
    assert slope == pytest.approx(float(values[0] - values[1]) / (2 * step), rel=0.02)
    assert (latents.grad.abs().amax(dim=(0, 2)) > 0).all()


def test_factors_are_the_styles_of_every_convolution() -> None:
    generator = small()
    factors = generator.factors()
    assert [factor.layer for factor in factors] == [1, 2, 3, 4, 5]
    assert [tuple(factor.weight.shape) for factor in factors] == [(8, 8), (8, 8), (8, 8), (6, 8), (5, 8)]
    assert [factor.role for factor in factors] == ["features"] * 4 + ["image"]
    for factor in factors:
        assert torch.equal(factor.weight, generator.get_parameter(f"{factor.name}.weight"))
    assert discover(generator, "sefa", num_directions=3).shift(0, 1.0).shape == (6, 8)


def test_translate_and_rotate_move_the_picture() -> None:
    settings = {**R, "img_resolution": 64, "num_layers": 8, "margin_size": 10, "channels": [6] * 8 + [3]}
    still = small(**settings)
    latents = some_latents(still)
    images = still.synthesis(latents)
    right = small(**settings, translate="0.125,0").synthesis(latents)
    down = small(**settings, translate="0,-0.25").synthesis(latents)
    half = small(**settings, rotate="180").synthesis(latents)
    quarter = small(**settings, rotate="90").synthesis(latents)
    inner = slice(12, 52)
    for moved, expected in (
        (right[..., 8 + 12 : 8 + 40], images[..., 12:40]),
        (down[..., 12:36, :], images[..., 16 + 12 : 16 + 36, :]),
        (half[..., inner, inner], images.flip(2, 3)[..., inner, inner]),
        (quarter[..., inner, inner], images.rot90(1, (2, 3))[..., inner, inner]),
    ):
        assert (moved - expected).abs().mean() < 0.1 * images.std()


def test_moving_changes_no_weight_and_applies_to_saved_files(tmp_path: Path) -> None:
    generator = small()
    save_generator(generator, tmp_path / "small.safetensors")
    options = {"translate": "0.125,0.25", "rotate": "30"}
    moved = load_generator(tmp_path / "small.safetensors", options=options)
    assert moved.weights_sha256 == generator.weights_sha256
    assert moved.config == {**generator.config, **options}
    latents = some_latents(generator)
    assert torch.equal(moved.synthesis(latents), small(**options).synthesis(latents))
    with pytest.raises(FastdirsError, match="translate, rotate"):
        load_generator(tmp_path / "small.safetensors", options={"output_scale": "1"})


@pytest.mark.parametrize(
    "options", [{"translate": "1"}, {"translate": "a,b"}, {"rotate": "left"}, {"rotate": "nan"},
                {"translate": "1,2,3"}, {"translate": "inf,0"}, {"translate": ""}],
)  # fmt: skip
def test_no_movement(options: Json) -> None:
    with pytest.raises(CheckpointError, match="Expected two parts of the picture's size"):
        small(**options)


@pytest.mark.parametrize("variant", ["R", "large"])
def test_graphs_compute_the_same_at_any_batch(variant: str, tmp_path: Path) -> None:
    generator = small(**VARIANTS[variant])
    latents, path = some_latents(generator), tmp_path / "small.onnx"
    images = generator.synthesis(latents)
    trace(SynthesisGraph(generator), (latents[:2],), path, ["latents"], "images", 18, generator.identity())
    nodes = {node.op_type for node in onnx.load(path).graph.node}
    assert not nodes & {"ScatterND", "ScatterElements"}, "a change in place to a view copies whole pictures"
    for backend in ("ort", "openvino_cpu"):
        session = BACKENDS.load(backend).open(path, "f32", False)
        for batch in (1, BATCH):
            made = torch.from_numpy(session.run([latents[:batch].numpy()])).float()
            pixels = (images[:batch].permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255)
            expected = pixels if made.shape[-1] == generator.img_channels else images[:batch]
            torch.testing.assert_close(made, expected, rtol=0, atol=1.0 if expected is pixels else 1e-4)
        session.close()


def names(config: Json) -> list[str]:
    steps = enumerate(zip(samplings(config), config["channels"], strict=True))
    return [f"L{index}_{step.size}_{channels}" for index, (step, channels) in steps]


def test_published_networks_have_their_published_layers() -> None:
    large = names(published("R", 1024))
    assert large[6:10] == ["L6_148_1024", "L7_276_645", "L8_276_406", "L9_532_256"]
    assert large[-3:] == ["L12_1044_64", "L13_1024_64", "L14_1024_3"]
    middle = names(published("T", 256, channel_base=16384))
    assert middle[0] == "L0_36_512"
    assert middle[-2:] == ["L13_256_64", "L14_256_3"]
    assert published("R")["use_radial_filters"]
    assert published(c_dim=10)["c_dim"] == 10


def test_random_weights_give_pictures() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load("stylegan3").build(published("T", 32, channel_base=512, channel_max=32))
    images = generator.synthesis(generator.mapping(generator.sample(range(4))))
    assert 0.02 < float(images.std()) < 1
    assert (images[0] - images[1]).abs().max() > 0.02
