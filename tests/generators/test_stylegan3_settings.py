"""StyleGAN3 from NVIDIA's files: what is read from names, shapes and settings, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.generators._stylegan3_settings import samplings
from fastdirs.generators.stylegan3 import published
from fastdirs.manifest import Json

FAMILY = GENERATORS.load("stylegan3")
SETTINGS: Json = {"num_layers": 4, "num_critical": 1, "margin_size": 2}
R: Json = {"conv_kernel": 1, "use_radial_filters": True}
Tensors = dict[str, Tensor]


def small(**settings: object) -> Generator:
    config = {
        **published("T", 32),
        "z_dim": 8,
        "w_dim": 8,
        **SETTINGS,
        "channels": [8, 8, 6, 5, 3],
        **settings,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = FAMILY.build(config)
        mean = torch.randn(8)
        generator.load_state_dict({"latent_mean": mean.expand(generator.num_layers, -1)}, strict=False)
    return generator


def tensors_of(generator: Generator) -> Tensors:
    """The tensors as NVIDIA names them."""
    steps = enumerate(zip(samplings(generator.config), generator.config["channels"], strict=True))
    layers = ["input", *(f"L{index}_{step.size}_{channels}" for index, (step, channels) in steps)]
    named = {}
    for name, tensor in generator.state_dict().items():
        stage = re.match(r"stages\.(\d+)\.(.*)", name)
        if stage:
            rest = stage[2].replace("up.taps", "up_filter").replace("down.taps", "down_filter")
            named[f"synthesis.{layers[int(stage[1])]}.{rest}"] = tensor
        elif name == "latent_mean":
            named["mapping.w_avg"] = tensor[0]
        else:
            rest = re.sub(r"layers\.(\d+)", r"fc\1", name.removeprefix("network."))
            named[f"mapping.{rest}"] = tensor
    return named


def checkpoint(tensors: Tensors, **settings: object) -> Checkpoint:
    said = {
        "class_name": "training.networks_stylegan3.Generator",
        "img_resolution": 32,
        **SETTINGS,
        **settings,
    }
    return Checkpoint(path=Path("sg3.pkl"), format="pickle_file", tensors=tensors, settings=said, sha256="")


def infer(held: Checkpoint, **options: str) -> Generator:
    assert FAMILY.infer is not None
    return FAMILY.infer(held, options)


VARIANTS: dict[str, Json] = {
    "T": {}, "R": R, "classes": {"c_dim": 4}, "z": {"z_dim": 5, "c_dim": 3, "mapping_layers": 3},
    "no-clamp": {"conv_clamp": None}, "scale": {"output_scale": 1.0, "conv_clamp": 3},
    "no-upsampling": {"lrelu_upsampling": 1},
}  # fmt: skip
SAID = (
    "conv_kernel",
    "use_radial_filters",
    "conv_clamp",
    "output_scale",
    "lrelu_upsampling",
    "z_dim",
    "c_dim",
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_value_arrives(variant: str) -> None:
    generator = small(**VARIANTS[variant])
    tensors = tensors_of(generator)
    held = checkpoint(tensors, **{k: v for k, v in VARIANTS[variant].items() if k in SAID})
    assert FAMILY.recognises is not None
    assert FAMILY.recognises(held)
    read = infer(held)
    assert read.weights_sha256 == generator.weights_sha256
    assert read.config == generator.config
    assert read.provenance.name == "sg3"
    assert read.provenance.assumed == ()
    latents = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read.synthesis(latents), generator.synthesis(latents))


def test_positional_settings_of_forks_are_read() -> None:
    held = checkpoint(tensors_of(small()), init_args=[8, 0, 8, 32, 3])
    assert infer(held).weights_sha256 == small().weights_sha256
    with pytest.raises(CheckpointError, match="w_dim=9, but its tensors say 8"):
        infer(checkpoint(tensors_of(small()), init_args=[8, 0, 9, 32, 3]))
    with pytest.raises(CheckpointError, match="init_args"):
        infer(checkpoint(tensors_of(small()), init_args=[8, 0, 8, 32, 3, {}]))


def test_a_bare_state_dict_leaves_three_settings_to_options() -> None:
    generator = small(num_critical=2, margin_size=10, num_layers=14, channels=[*[4] * 14, 3], **R)
    held = Checkpoint(path=Path("sg3.pt"), format="torch_file", tensors=tensors_of(generator), sha256="")
    read = infer(held)
    assert read.weights_sha256 == generator.weights_sha256
    assert read.config == generator.config
    usual = (
        "lr_multiplier=0.01", "num_critical=2", "first_stopband=4.28709", "last_stopband_rel=1.23114",
        "margin_size=10", "filter_size=6", "lrelu_upsampling=2",
    )  # fmt: skip
    assert read.provenance.assumed == ("output_scale=0.25", "conv_clamp=256", "first_cutoff=2", *usual)
    settled = infer(held, output_scale="1", conv_clamp="8", first_cutoff="2.5", translate="0.5,0", rotate="9")
    assert settled.provenance.assumed == usual
    assert infer(held, conv_clamp="none").config["conv_clamp"] is None
    values = {
        "output_scale": 1.0,
        "conv_clamp": 8.0,
        "first_cutoff": 2.5,
        "translate": "0.5,0",
        "rotate": "9",
    }
    assert settled.config == {**read.config, **values}
    with pytest.raises(CheckpointError, match="output_scale='loud' is out of range"):
        infer(held, output_scale="loud")


@pytest.mark.parametrize("option", ["output_scale", "conv_clamp", "first_cutoff"])
def test_options_do_not_replace_what_a_file_says(option: str) -> None:
    tensors = tensors_of(small())
    # A file of NVIDIA's leaves out what is usual, which says it too.
    for said in ({}, {"output_scale": 0.5, "conv_clamp": None, "first_cutoff": 2.0}):
        for value in ("1", "none"):
            with pytest.raises(CheckpointError, match=f"says itself that {option} is .*Leave the option out"):
                infer(checkpoint(tensors, **said), **{option: value})


def without(pattern: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t for name, t in tensors.items() if not re.search(pattern, name)}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


def renamed(before: str, after: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(before, after): t for name, t in tensors.items()}


def added(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


DAMAGED: list[tuple[Callable[[Tensors], Tensors], str]] = [
    (without(r"L1_"), "layer L1 is missing"),
    (without(r"L[1-9]_"), "too few"),
    (without(r"w_avg"), "'mapping.w_avg' is missing"),
    (without(r"L2_.*\.bias"), "synthesis.L2_.*bias' is missing"),
    (without(r"L2_.*\.weight"), "weight' is missing"),
    (without(r"fc0"), "'mapping.fc0.weight' is missing"),
    (without(r"input\.freqs"), "'synthesis.input.freqs' is missing"),
    (without(r"L1_.*up_filter"), "up_filter' is missing"),
    (
        changed("synthesis.input.phases", lambda t: t * float("nan")),
        "NaN or infinite values in 'synthesis.input",
    ),
    (changed("synthesis.input.freqs", lambda t: t[:3]), r"'synthesis.input.freqs' of shape \[3, 2\]"),
    (changed("synthesis.input.weight", lambda t: t[:3]), "the name of the first layer ask for"),
    (changed("synthesis.L0_20_8.weight", lambda t: t[:, :2]), "names of layers and conv_kernel ask for"),
    (changed("synthesis.L0_20_8.up_filter", lambda t: t[:8]), "filter_size, lrelu_upsampling and use_radial"),
    (
        changed("synthesis.L0_20_8.down_filter", lambda t: t[None] * t[:, None]),
        "use_radial_filters|down_filter",
    ),
    (changed("mapping.fc1.weight", lambda t: t[:, :2]), "'mapping.fc1.weight' of shape"),
    (changed("mapping.w_avg", lambda t: t.expand(4, -1)), "StyleGAN-XL.*class-wise w_avg"),
    (
        renamed("L0_20_8", "L0_24_8"),
        r"'L0_24_8' of 24 pixels, where its settings \(.*margin_size=2\) make 20",
    ),
    (renamed("L0_20_8", "L0_20_900000"), "of shape"),
    (added("synthesis.L0_20_9.weight", 9), "two layers L0"),
    (added("synthesis.L900000000_20_9.weight", 9), "layer L5 is missing"),
    (added("synthesis.noise", 3), "'synthesis.noise', which is no part"),
    (added("mapping.embed_proj.weight", 3, 3), "StyleGAN-XL.*class embedding.*--generator"),
    (added("mapping.embed.weight", 8, 3), r"StyleGAN-XL.*mapping\.embed\.weight.*no bias.*--generator"),
    (changed("synthesis.L1_20_8.magnitude_ema", lambda t: -t), r"'synthesis\.L1_20_8\.magnitude_ema'"),
    (changed("synthesis.L4_32_3.magnitude_ema", torch.zeros_like), r"'synthesis\.L4_32_3\.magnitude_ema'"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED)
def test_what_is_damaged_is_recognised_and_refused(
    damage: Callable[[Tensors], Tensors], message: str
) -> None:
    held = checkpoint(damage(tensors_of(small())))
    assert FAMILY.recognises is not None
    assert FAMILY.recognises(held)
    with pytest.raises(CheckpointError, match=message):
        infer(held)


REFUSED: list[tuple[Json, str]] = [
    ({"class_name": "training.networks_stylegan3_resetting.SuperresGenerator"}, "XL.*superresolution stages"),
    ({"up_factor": 2}, "setting 'up_factor'"),
    ({"mapping_kwargs": {"rand_embedding": True}}, "setting 'mapping_kwargs.rand_embedding'"),
    ({"mapping_kwargs": {"lr_multiplier": 0.1}}, "lr_multiplier=0.1"),
    ({"mapping_kwargs": {"num_layers": 8}}, "mapping_layers=8, but its tensors say 2"),
    ({"mapping_kwargs": 3}, "mapping_kwargs=3"),
    ({"img_resolution": 64}, "img_resolution=64, but its tensors say 32"),
    ({"conv_kernel": 1}, "conv_kernel=1, but its tensors say 3"),
    ({"use_radial_filters": True}, "use_radial_filters=True, but its tensors say False"),
    ({"num_layers": 14}, "num_layers=14, but its tensors say 4"),
    ({"margin_size": 4}, "margin_size=4"),
    ({"margin_size": 2.5}, "margin_size=2.5"),
    ({"num_critical": 4}, "num_critical=4"),
    ({"first_stopband": 1.0}, "no transition band"),
    ({"filter_size": 4}, "filter_size"),
    ({"lrelu_upsampling": "2"}, "lrelu_upsampling='2'"),
    ({"output_scale": -1.0}, "output_scale=-1.0"),
    ({"output_scale": None}, "output_scale=None"),
    ({"conv_clamp": 0}, "conv_clamp=0"),
    ({"num_layers": [4]}, r"num_layers=\[4\]"),
    ({"init_args": 5}, "init_args=5"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_are_not_supported_or_do_not_agree(settings: Json, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        infer(checkpoint(tensors_of(small()), **settings))


def test_settings_that_no_picture_depends_on() -> None:
    training = {"channel_base": 1, "channel_max": 2, "num_fp16_res": 4, "magnitude_ema_beta": 0.999}
    mapping = {"num_layers": 2, "w_avg_beta": 0.9, "lr_multiplier": 0.01}
    read = infer(checkpoint(tensors_of(small()), **training, mapping_kwargs=mapping))
    assert read.config == small().config


@pytest.mark.parametrize(
    "names", [["b64.fromrgb.weight", "b4.fc.weight"], ["synthesis.b4.const", "synthesis.b4.conv1.weight"],
              ["synthesis.layer0.weight"], ["L0.weight"], []],
)  # fmt: skip
def test_others_are_not_recognised(names: list[str]) -> None:
    assert FAMILY.recognises is not None
    held = {name: torch.zeros(1) for name in names}
    assert not FAMILY.recognises(Checkpoint(path=Path("x"), format="torch_file", tensors=held, sha256=""))
