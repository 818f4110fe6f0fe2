"""What files say beside their tensors: kept where it matters, refused where it cannot be followed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError, UnknownNameError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.manifest import Json

FAMILY = GENERATORS.load("stylegan2")


def tensors_of(kind: str) -> dict[str, Tensor]:
    """The tensors of a network of 4x4 pixels, random, as a code base names them."""
    conv, rgb = torch.randn(5, 5, 3, 3), torch.randn(3, 5, 1, 1)
    affine, bias, one = torch.randn(5, 6), torch.randn(5), torch.tensor(0.5)
    if kind == "nvidia":
        return {
            "mapping.fc0.weight": torch.randn(6, 7), "mapping.fc0.bias": torch.randn(6),
            "mapping.w_avg": torch.randn(6), "synthesis.b4.const": torch.randn(5, 4, 4),
            "synthesis.b4.conv1.weight": conv, "synthesis.b4.conv1.bias": bias,
            "synthesis.b4.conv1.affine.weight": affine, "synthesis.b4.conv1.affine.bias": bias,
            "synthesis.b4.conv1.noise_const": torch.randn(4, 4), "synthesis.b4.conv1.noise_strength": one,
            "synthesis.b4.torgb.weight": rgb, "synthesis.b4.torgb.bias": torch.randn(3),
            "synthesis.b4.torgb.affine.weight": affine, "synthesis.b4.torgb.affine.bias": bias,
        }  # fmt: skip
    if kind == "tensorflow":
        root = "G_synthesis/4x4/"
        return {
            "G_mapping/Dense0/weight": torch.randn(7, 6), "G_mapping/Dense0/bias": torch.randn(6),
            "dlatent_avg": torch.randn(6), f"{root}Const/const": torch.randn(1, 5, 4, 4),
            f"{root}Conv/weight": conv.permute(2, 3, 1, 0), f"{root}Conv/bias": bias,
            f"{root}Conv/mod_weight": affine.T, f"{root}Conv/mod_bias": bias,
            "G_synthesis/noise0": torch.randn(1, 1, 4, 4), f"{root}Conv/noise_strength": one,
            f"{root}ToRGB/weight": rgb.permute(2, 3, 1, 0), f"{root}ToRGB/bias": torch.randn(3),
            f"{root}ToRGB/mod_weight": affine.T, f"{root}ToRGB/mod_bias": bias,
        }  # fmt: skip
    if kind == "genforce":
        return {
            "mapping.dense0.weight": torch.randn(6, 7), "mapping.dense0.bias": torch.randn(6),
            "truncation.w_avg": torch.randn(6), "synthesis.early_layer.const": torch.randn(1, 5, 4, 4),
            "synthesis.layer0.weight": conv, "synthesis.layer0.bias": bias,
            "synthesis.layer0.style.weight": affine, "synthesis.layer0.style.bias": bias,
            "synthesis.layer0.noise": torch.randn(1, 1, 4, 4), "synthesis.layer0.noise_strength": one,
            "synthesis.output0.weight": rgb, "synthesis.output0.bias": torch.randn(3),
            "synthesis.output0.style.weight": affine, "synthesis.output0.style.bias": bias,
        }  # fmt: skip
    return {
        "style.1.weight": torch.randn(6, 7), "style.1.bias": torch.randn(6),
        "input.input": torch.randn(1, 5, 4, 4), "noises.noise_0": torch.randn(1, 1, 4, 4),
        "conv1.conv.weight": conv[None], "conv1.activate.bias": bias, "conv1.noise.weight": one[None],
        "conv1.conv.modulation.weight": affine, "conv1.conv.modulation.bias": bias,
        "to_rgb1.conv.weight": rgb[None], "to_rgb1.bias": torch.randn(1, 3, 1, 1),
        "to_rgb1.conv.modulation.weight": affine, "to_rgb1.conv.modulation.bias": bias,
    }  # fmt: skip


def read(kind: str, settings: Json | None = None, **options: str) -> Generator:
    checkpoint = Checkpoint(
        path=Path("some.pkl"),
        format="pickle_file",
        tensors=tensors_of(kind),
        settings=settings or {},
        sha256="",
    )
    assert FAMILY.infer
    return FAMILY.infer(checkpoint, options)


def nvidia(synthesis: Json | None = None, mapping: Json | None = None, **top: object) -> Json:
    nested = {} if synthesis is None else {"synthesis_kwargs": synthesis}
    return {"class_name": "Generator", "mapping_kwargs": mapping or {"num_layers": 1}, **nested, **top}


@pytest.mark.parametrize(
    ("kind", "settings", "clamp"),
    [
        ("nvidia", nvidia({"conv_clamp": 0.9}), 0.9),
        ("nvidia", nvidia({"conv_clamp": None}), None),
        ("nvidia", nvidia({"channel_base": 512}), None),
        ("nvidia", nvidia(channel_base=512, fused_modconv_default="inference_only"), 256.0),
        ("nvidia", nvidia(channel_base=512, conv_clamp=64), 64.0),
        ("nvidia", {"class_name": "Generator", "init_args": [7, 0, 6, 4, 3, {}, {"conv_clamp": 2}]}, 2.0),
        ("tensorflow", {"conv_clamp": 256}, 256.0),
        ("tensorflow", {"resolution": 4}, None),
    ],
)
def test_the_clamp_is_the_one_that_the_file_means(kind: str, settings: Json, clamp: float | None) -> None:
    generator = read(kind, settings)
    assert generator.config["conv_clamp"] == clamp
    assert not any(note.startswith("conv_clamp") for note in generator.provenance.assumed)
    with pytest.raises(CheckpointError, match="says itself that conv_clamp"):
        read(kind, settings, conv_clamp="3")


def test_a_clamp_that_nobody_names_is_an_option() -> None:
    assert read("nvidia").config["conv_clamp"] == 256
    assert "conv_clamp=256" in read("nvidia").provenance.assumed
    assert read("nvidia", conv_clamp="2.5").config["conv_clamp"] == 2.5
    assert read("nvidia", conv_clamp="none").config["conv_clamp"] is None
    assert read("tensorflow", conv_clamp="2").config["conv_clamp"] == 2
    assert "conv_clamp=none" in read("tensorflow").provenance.assumed
    for kind in ("nvidia", "tensorflow"):
        settled = read(kind, conv_clamp="none")
        assert settled.config["conv_clamp"] is None
        assert not any(note.startswith("conv_clamp") for note in settled.provenance.assumed)
    with pytest.raises(CheckpointError, match="conv_clamp='-1' is out of range"):
        read("nvidia", conv_clamp="-1")


@pytest.mark.parametrize("kind", ["rosinality", "genforce"])
@pytest.mark.parametrize("clamp", ["2", "none"])
def test_networks_that_never_clamp_take_no_such_option(kind: str, clamp: str) -> None:
    with pytest.raises(CheckpointError, match=f"{kind} file.*never clipped.*Leave the option conv_clamp out"):
        read(kind, conv_clamp=clamp)


def test_what_a_bare_state_dict_does_not_say_is_recorded() -> None:
    assert set(read("nvidia").provenance.assumed) == {
        "conv_clamp=256", "activation=lrelu", "lr_multiplier=0.01"
    }  # fmt: skip
    assert {"nonlinearity=lrelu", "mapping_lrmul=0.01"} <= set(read("tensorflow").provenance.assumed)
    assert read("nvidia", nvidia({"conv_clamp": 1})).provenance.assumed == ()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("nvidia", nvidia({"activation": "relu"}), "activation='relu'.*Expected 'lrelu'"),
        ("nvidia", nvidia({}, {"activation": "swish"}), "activation='swish'"),
        ("nvidia", nvidia({}, {"lr_multiplier": 0.1}), "lr_multiplier=0.1"),
        ("nvidia", nvidia({"kernel_size": 5}), "kernel_size=5"),
        ("nvidia", nvidia({"architecture": "resnet"}), "architecture='resnet'.*Expected 'skip'"),
        ("nvidia", nvidia({"attention": True}), "attention=True.*does not know"),
        ("nvidia", nvidia(mapping_kwargs=3), "mapping_kwargs=3.*does not know"),
        ("nvidia", nvidia({"conv_clamp": "big"}), "conv_clamp='big'.*above 0"),
        ("nvidia", nvidia({"conv_clamp": -1}), "conv_clamp=-1.*above 0"),
        ("tensorflow", {"nonlinearity": "relu"}, "nonlinearity='relu'"),
        ("tensorflow", {"mapping_lrmul": 1}, "mapping_lrmul=1"),
        ("tensorflow", {"architecture": "orig"}, "architecture='orig'"),
        ("tensorflow", {"attention": 1}, "attention=1.*does not know"),
        ("tensorflow", {"resample_kernel": "wide"}, "resample_kernel='wide'"),
        ("tensorflow", {"resample_kernel": [1, -1]}, "resample_kernel"),
    ],
)
def test_what_would_change_the_picture_is_refused_by_name(kind: str, settings: Json, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"{message}.*(--generator|[Dd]ownload)"):
        read(kind, settings)


def test_settings_of_other_files_are_not_taken_for_the_networks() -> None:
    assert read("rosinality", {"ada_aug_p": 0.1, "conv_clamp": 3}).config["conv_clamp"] is None


def test_the_filter_of_a_tensorflow_file_is_the_one_it_names() -> None:
    assert read("tensorflow", {"resample_kernel": [1, 2, 1]}).config["resample_kernel"] == [1.0, 2.0, 1.0]
    assert read("tensorflow", {"resample_kernel": None}).config["resample_kernel"] == [1.0, 3.0, 3.0, 1.0]


def test_what_the_file_cannot_know_is_recorded() -> None:
    assert read("genforce").provenance.assumed == ("output=linear",)
    assert read("genforce", output="tanh").provenance.assumed == ()
    assert read("rosinality").provenance.assumed == ("latent_mean=of 4096 samples",)
    assert "tensorflow=not checked against an original file" in read("tensorflow").provenance.assumed
    assert read("nvidia").provenance.source == "some.pkl"


def test_tanh_belongs_to_genforce() -> None:
    latents = torch.randn(1, 2, 6)
    torch.manual_seed(0)
    linear = read("genforce")
    torch.manual_seed(0)
    bent = read("genforce", output="tanh")
    torch.testing.assert_close(bent.synthesis(latents), torch.tanh(linear.synthesis(latents)))
    with pytest.raises(UnknownNameError, match="tann"):
        read("genforce", output="tann")
    with pytest.raises(CheckpointError, match=r"NVIDIA file.*always linear"):
        read("nvidia", output="tanh")


def test_noise_is_an_option() -> None:
    assert read("nvidia", noise="none").config["noise"] == "none"
    assert not read("nvidia", noise="random").exportable
    with pytest.raises(UnknownNameError, match="loud"):
        read("nvidia", noise="loud")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"synthesis.b4.torgb.weight": torch.ones(4, 5, 1, 1), "synthesis.b4.torgb.bias": torch.ones(4)},
            "4 channels",
        ),
        ({"mapping.fc0.weight": torch.ones(9, 7), "mapping.fc0.bias": torch.ones(9)}, "Expected one to 6"),
        ({"mapping.fc0.weight": None, "mapping.fc0.bias": None}, "'mapping.fc0.weight' is missing"),
        (
            {
                "synthesis.b4.conv1.bias": torch.ones(9000),
                "synthesis.b4.conv1.affine.bias": torch.ones(9000),
                "synthesis.b4.torgb.affine.bias": torch.ones(9000),
            },
            "the shapes of its tensors ask for",
        ),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Tensor | None], message: str) -> None:
    tensors = {**tensors_of("nvidia"), **changes}
    checkpoint = Checkpoint(
        path=Path("some.pkl"), format="pickle_file", sha256="",
        tensors={name: tensor for name, tensor in tensors.items() if tensor is not None},
    )  # fmt: skip
    assert FAMILY.infer
    with pytest.raises(CheckpointError, match=message):
        FAMILY.infer(checkpoint, {})
