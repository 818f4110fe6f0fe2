"""Files of four code bases: each tensor at its place, and every network of theirs read back as it was."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.generators._resample import binomial
from fastdirs.loading import load_generator, save_generator

FIXTURES = Path(os.environ.get("FASTDIRS_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures"))
FAMILY = GENERATORS.load("stylegan2")
Tensors = dict[str, Tensor]


def network(**settings: object) -> Generator:
    """Random weights, biases and filters included."""
    config = {"z_dim": 10, "w_dim": 12, "channels": [9, 8, 7, 6], "mapping_widths": [11, 12], **settings}
    generator = FAMILY.build(config)
    random = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=random) for name, t in generator.state_dict().items()}
    if "latent_mean" in state:
        state["latent_mean"] = state["latent_mean"][:1].repeat(generator.num_layers, 1)
    generator.load_state_dict(state)
    return generator


def parts(generator: Generator) -> tuple[Callable[[str], Tensor], list[int], list[int], list[int]]:
    """Tensors by name, and the numbers of mapping layers, of convolutions, and of blocks with an image."""
    state = generator.state_dict()
    mapping = range(len(generator.config["mapping_widths"]))
    blocks = [b for b in range(generator.num_layers // 2) if f"stages.{2 * b + 1}.rgb.bias" in state]
    return state.__getitem__, list(mapping), list(range(generator.num_layers - 1)), blocks


def nvidia(generator: Generator) -> Tensors:
    get, mapping, layers, blocks = parts(generator)
    state = generator.state_dict()
    made = {"mapping.w_avg": get("latent_mean")[0], "synthesis.b4.const": get("stages.0.const")[0]}
    for i in mapping:
        made |= {
            f"mapping.fc{i}.{leaf}": get(f"mapping_network.layers.{i}.{leaf}") for leaf in ("weight", "bias")
        }
    if "mapping_network.embed.bias" in state:
        made |= {f"mapping.embed.{leaf}": get(f"mapping_network.embed.{leaf}") for leaf in ("weight", "bias")}
    for n in layers:
        old, new = f"stages.{n}.convolution.", f"synthesis.b{4 << (n + 1) // 2}.conv{1 - n % 2}."
        made |= {new + leaf: get(old + leaf) for leaf in ("affine.weight", "affine.bias", "bias")}
        if old + "noise" in state:
            made |= {
                new + "noise_const": get(old + "noise"),
                new + "noise_strength": get(old + "noise_strength"),
            }
        made[new + "weight"] = get(old + "weight").transpose(0, n % 2)
        made[new + "resample_filter"] = get(old + "blur.taps") if n % 2 else torch.rand(4, 4)
    for b in range(generator.num_layers // 2):
        made[f"synthesis.b{4 << b}.resample_filter"] = torch.rand(4, 4)
    for b in blocks:
        old, new = f"stages.{2 * b + 1}.", f"synthesis.b{4 << b}."
        made |= {
            f"{new}torgb.{leaf}": get(f"{old}rgb.{leaf}") for leaf in ("affine.weight", "affine.bias", "bias")
        }
        made[new + "torgb.weight"] = get(old + "rgb.weight")[:, :, None, None]
        if old + "upsample.taps" in state:
            made[new + "resample_filter"] = get(old + "upsample.taps")
    if generator.config["architecture"] == "resnet":
        for b in range(1, generator.num_layers // 2):
            old, new = f"stages.{2 * b - 1}.shortcut.", f"synthesis.b{4 << b}.skip."
            made |= {new + "weight": get(old + "weight"), new + "resample_filter": get(old + "upsample.taps")}
    return made


def rosinality(generator: Generator) -> Tensors:
    get, mapping, layers, blocks = parts(generator)
    made = {"input.input": get("stages.0.const")}
    if "latent_mean" in generator.state_dict():
        made["latent_avg"] = get("latent_mean")[0]
    for i in mapping:
        made |= {
            f"style.{i + 1}.{leaf}": get(f"mapping_network.layers.{i}.{leaf}") for leaf in ("weight", "bias")
        }
    for n in layers:
        old, new = f"stages.{n}.convolution.", f"convs.{n - 1}." if n else "conv1."
        made[new + "conv.modulation.weight"] = get(old + "affine.weight")
        made[new + "conv.modulation.bias"] = get(old + "affine.bias")
        made[new + "conv.weight"] = get(old + "weight").transpose(0, n % 2)[None]
        made[new + "activate.bias"] = get(old + "bias")
        made[new + "noise.weight"] = get(old + "noise_strength").reshape(1)
        made[f"noises.noise_{n}"] = get(old + "noise")[None, None]
        if n % 2:
            made[new + "conv.blur.kernel"] = get(old + "blur.taps")
    for b in blocks:
        old, new = f"stages.{2 * b + 1}.", f"to_rgbs.{b - 1}." if b else "to_rgb1."
        made[new + "conv.modulation.weight"] = get(old + "rgb.affine.weight")
        made[new + "conv.modulation.bias"] = get(old + "rgb.affine.bias")
        made[new + "conv.weight"] = get(old + "rgb.weight")[None, :, :, None, None]
        made[new + "bias"] = get(old + "rgb.bias").reshape(1, -1, 1, 1)
        if b:
            made[new + "upsample.kernel"] = get(old + "upsample.taps")
    return made


def genforce(generator: Generator) -> Tensors:
    get, mapping, layers, blocks = parts(generator)
    mean = get("latent_mean")
    each = generator.config["mapping_widths"][-1] != generator.dim
    made = {
        "truncation.w_avg": mean.flatten() if each else mean[0],
        "synthesis.early_layer.const": get("stages.0.const"),
    }
    for i in mapping:
        made |= {
            f"mapping.dense{i}.{leaf}": get(f"mapping_network.layers.{i}.{leaf}")
            for leaf in ("weight", "bias")
        }
    if generator.c_dim:
        for leaf in ("weight", "bias"):
            made[f"mapping.LabelEmbed.{leaf}"] = get(f"mapping_network.embed.{leaf}")
    for n in layers:
        old, new = f"stages.{n}.convolution.", f"synthesis.layer{n}."
        made |= {new + leaf: get(old + leaf) for leaf in ("bias", "noise_strength")}
        made |= {f"{new}style.{leaf}": get(f"{old}affine.{leaf}") for leaf in ("weight", "bias")}
        made[new + "noise"] = get(old + "noise")[None, None]
        weight = get(old + "weight")
        made[new + "weight"] = weight.transpose(0, 1).flip(2, 3) if n % 2 else weight
        if n % 2:
            made[new + "filter.kernel"] = get(old + "blur.taps").flip(0, 1)[None, None]
    for b in blocks:
        old, new = f"stages.{2 * b + 1}.", f"synthesis.output{b}."
        made |= {f"{new}style.{leaf}": get(f"{old}rgb.affine.{leaf}") for leaf in ("weight", "bias")}
        made |= {
            new + "weight": get(old + "rgb.weight")[:, :, None, None],
            new + "bias": get(old + "rgb.bias"),
        }
        if old + "upsample.taps" in generator.state_dict():
            made["synthesis.upsample.kernel"] = get(old + "upsample.taps").flip(0, 1)[None, None]
    return made


def tensorflow(generator: Generator) -> Tensors:
    get, mapping, layers, blocks = parts(generator)
    made = {"dlatent_avg": get("latent_mean")[0], "G_synthesis/4x4/Const/const": get("stages.0.const")}
    for i in mapping:
        made[f"G_mapping/Dense{i}/weight"] = get(f"mapping_network.layers.{i}.weight").T
        made[f"G_mapping/Dense{i}/bias"] = get(f"mapping_network.layers.{i}.bias")
    if generator.c_dim:
        made["G_mapping/LabelEmbed/weight"] = get("mapping_network.embed.weight").T
        made["G_mapping/LabelEmbed/bias"] = get("mapping_network.embed.bias")
    for n in layers:
        size, kind = 4 << (n + 1) // 2, ("Conv1", "Conv0_up")[n % 2] if n else "Conv"
        old, new = f"stages.{n}.convolution.", f"G_synthesis/{size}x{size}/{kind}/"
        made |= {new + leaf: get(old + leaf) for leaf in ("bias", "noise_strength")}
        made |= {new + "mod_weight": get(old + "affine.weight").T, new + "mod_bias": get(old + "affine.bias")}
        # Height, width, in, out; the doubling ones are flipped.
        weight = get(old + "weight")
        made[new + "weight"] = weight.permute(2, 3, 0, 1).flip(0, 1) if n % 2 else weight.permute(2, 3, 1, 0)
        made[f"G_synthesis/noise{n}"] = get(old + "noise")[None, None]
    for b in blocks:
        old, new = f"stages.{2 * b + 1}.rgb.", f"G_synthesis/{4 << b}x{4 << b}/ToRGB/"
        made |= {new + "mod_weight": get(old + "affine.weight").T, new + "mod_bias": get(old + "affine.bias")}
        made |= {new + "weight": get(old + "weight").T[None, None], new + "bias": get(old + "bias")}
    if generator.config["architecture"] == "resnet":
        for b in range(1, generator.num_layers // 2):
            weight = get(f"stages.{2 * b - 1}.shortcut.weight")
            made[f"G_synthesis/{4 << b}x{4 << b}/Skip/weight"] = weight.permute(2, 3, 1, 0)
    return made


def read(tensors: Mapping[str, Tensor], settings: object = None, **options: str) -> Generator:
    checkpoint = Checkpoint(
        path=Path("some.pkl"), format="pickle_file", tensors=tensors, settings=settings or {}, sha256=""
    )
    assert FAMILY.recognises
    assert FAMILY.infer
    assert FAMILY.recognises(checkpoint)
    return FAMILY.infer(checkpoint, options)


MEANS = ("mapping.w_avg", "latent_avg", "truncation.w_avg", "dlatent_avg")
ADA = {"class_name": "Generator", "synthesis_kwargs": {"channel_base": 512, "num_fp16_res": 4}}
SCALED = {"style_offset": 1.0, "eps_by_fan_in": True}
CASES = {
    "nvidia": (nvidia, {}, ADA),
    "nvidia-classes": (nvidia, {"c_dim": 3, "embed_dim": 5, "img_channels": 1}, ADA),
    "nvidia-resnet": (nvidia, {"architecture": "resnet"}, ADA),
    "nvidia-orig": (nvidia, {"architecture": "orig", "use_noise": False}, ADA),
    "nvidia-4-pixels": (nvidia, {"channels": [5]}, ADA),
    "rosinality": (rosinality, {"eps_by_fan_in": True, "filter_gain": 1.0}, None),
    "genforce": (genforce, {**SCALED, "filter_gain": 1.0, "mapping_widths": [12]}, None),
    "genforce-classes": (genforce, {**SCALED, "filter_gain": 1.0, "c_dim": 3, "embed_dim": 10}, None),
    "genforce-orig": (genforce, {**SCALED, "filter_gain": 1.0, "architecture": "orig"}, None),
    "tensorflow": (tensorflow, SCALED, None),
    "tensorflow-classes": (tensorflow, {**SCALED, "c_dim": 3, "embed_dim": 5}, None),
    "tensorflow-resnet": (tensorflow, {**SCALED, "architecture": "resnet"}, None),
}


@pytest.mark.parametrize(("write", "settings", "said"), CASES.values(), ids=CASES)
def test_a_network_is_read_back(
    write: Callable[[Generator], Tensors], settings: dict[str, object], said: object
) -> None:
    generator = network(**settings)
    if write is genforce:
        # One filter serves all resolutions.
        state = generator.state_dict()
        first = next((t for name, t in state.items() if name.endswith("upsample.taps")), torch.ones(4, 4))
        generator.load_state_dict({n: first if n.endswith("upsample.taps") else t for n, t in state.items()})
    tensors = write(generator)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    back = read(tensors, said)
    assert back.config == generator.config
    for name, tensor in generator.state_dict().items():
        # TensorFlow's files name the filter in their settings instead of holding its taps.
        if write is not tensorflow or not name.endswith("taps"):
            assert torch.equal(back.state_dict()[name], tensor), name
    assert all(torch.equal(tensors[name], tensor) for name, tensor in kept.items())


def test_a_w_for_each_layer_has_a_mean_for_each() -> None:
    generator = network(**SCALED, filter_gain=1.0, mapping_widths=[11, 96], channels=[9, 8, 7, 6])
    state = generator.state_dict()
    state["latent_mean"] = torch.randn(8, 12)
    generator.load_state_dict(state)
    assert torch.equal(read(genforce(generator)).latent_mean, state["latent_mean"])


@pytest.mark.parametrize("write", [nvidia, rosinality, genforce, tensorflow])
def test_every_missing_tensor_is_named(write: Callable[[Generator], Tensors]) -> None:
    tensors = write(network())
    for name in tensors:
        if name in MEANS or (write is nvidia and name.endswith("resample_filter")):
            continue
        with pytest.raises(CheckpointError, match="incomplete") as error:
            read({other: tensor for other, tensor in tensors.items() if other != name})
        assert repr(name) in str(error.value)


@pytest.mark.parametrize("write", [nvidia, rosinality, genforce, tensorflow])
def test_every_misshapen_tensor_is_refused(write: Callable[[Generator], Tensors]) -> None:
    tensors = write(network())
    for name, tensor in tensors.items():
        if write is nvidia and name.endswith("resample_filter"):
            continue
        for wrong in (tensor.new_ones(5, 2, 2), torch.cat([tensor.reshape(1, *tensor.shape)] * 2)):
            with pytest.raises(CheckpointError):
                read({**tensors, name: wrong})


@pytest.mark.parametrize(
    ("write", "c_dim"),
    [(nvidia, 0), (nvidia, 3), (rosinality, 0), (genforce, 0), (genforce, 3), (tensorflow, 3)],
)
def test_a_mean_that_no_file_holds_is_that_of_samples(
    write: Callable[[Generator], Tensors], c_dim: int
) -> None:
    tensors = write(network(c_dim=c_dim, embed_dim=10 if c_dim else 0))
    generator = read({name: tensor for name, tensor in tensors.items() if name not in MEANS})
    assert generator.config["latent_mean"] == "of 4096 samples"
    assert "latent_mean=of 4096 samples" in generator.provenance.assumed
    z = torch.randn(6000, generator.z_dim, generator=torch.Generator().manual_seed(0))
    classes = torch.eye(c_dim).repeat(2000, 1) if c_dim else None
    made = generator.map_z(z, classes)
    error = (generator.latent_mean - made.mean(dim=0)).abs()
    assert (error < 0.1 * made.std(dim=0)).all()


def test_noise_that_no_file_holds_is_that_of_a_seed(tmp_path: Path) -> None:
    whole = rosinality(network())
    tensors = {name: tensor for name, tensor in whole.items() if not name.startswith("noises.")}
    generator = read(tensors)
    assert "noises=of seed 0" in generator.provenance.assumed
    assert "noises=of seed 0" not in read(whole).provenance.assumed
    state, random = generator.state_dict(), np.random.RandomState(0)
    for layer in range(7):
        noise = state[f"stages.{layer}.convolution.noise"]
        assert torch.equal(noise, torch.from_numpy(random.randn(*noise.shape)).float())
    save_generator(generator, tmp_path / "own.safetensors")
    assert load_generator(tmp_path / "own.safetensors").weights_sha256 == generator.weights_sha256
    with pytest.raises(CheckpointError, match=r"'noises\.noise_0' is missing"):
        read({**tensors, "noises.noise_3": whole["noises.noise_3"]})


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (nvidia, {}),
        (nvidia, {"architecture": "resnet"}),
        (rosinality, {"eps_by_fan_in": True, "filter_gain": 1.0}),
        (genforce, {**SCALED, "filter_gain": 1.0}),
    ],
    ids=["nvidia", "nvidia-resnet", "rosinality", "genforce"],
)
def test_filters_that_no_file_holds_are_the_published_ones(
    write: Callable[[Generator], Tensors], settings: dict[str, object]
) -> None:
    generator = network(**settings)
    published = binomial((1, 3, 3, 1)) * (4 / generator.config["filter_gain"])
    state = generator.state_dict()
    generator.load_state_dict({name: published if name.endswith("taps") else t for name, t in state.items()})
    whole = write(generator)
    filters = [name for name in whole if name.endswith(("resample_filter", "kernel"))]
    bare = {name: tensor for name, tensor in whole.items() if name not in filters}
    said = ADA if write is nvidia else None
    found = read(bare, said)
    assert found.config == {**generator.config, "filter_gain": 4.0}
    assert "resample_kernel=1,3,3,1" in found.provenance.assumed
    assert not any(note.startswith("resample_kernel") for note in read(whole, said).provenance.assumed)
    latents = torch.randn(2, generator.num_layers, generator.dim, generator=torch.Generator().manual_seed(0))
    images = read(whole, said).synthesis(latents)
    torch.testing.assert_close(found.synthesis(latents), images, rtol=1e-4, atol=1e-3)
    with pytest.raises(CheckpointError, match=r"(resample_filter|kernel)' is missing"):
        read({**bare, filters[-1]: whole[filters[-1]]})


def test_a_filter_that_the_settings_name_is_taken() -> None:
    bare = {name: tensor for name, tensor in nvidia(network()).items() if "resample_filter" not in name}
    said = {"class_name": "Generator", "synthesis_kwargs": {"resample_filter": [1, 2, 1]}}
    found = read(bare, said)
    assert found.config["resample_kernel"] == [1.0, 2.0, 1.0]
    assert not any(note.startswith("resample_kernel") for note in found.provenance.assumed)


def test_a_superfluous_tensor_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"holds 'synthesis\.b32\.attention'"):
        read({**nvidia(network()), "synthesis.b32.attention": torch.ones(1)})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("G_mapping/LabelConcat/weight", "classes that are joined"),
        ("G_synthesis/ToRGB_lod3/weight", "progressively grown"),
        ("G_synthesis/4x4/Dense/weight", "reads w"),
    ],
)
def test_tensorflow_variants_are_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}'.*{reason}.*not support.*--generator"):
        read({**tensorflow(network()), name: torch.ones(1)})


@pytest.mark.parametrize("name", ["mapping.label_weight", "synthesis.early_layer.weight"])
def test_genforce_variants_are_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}'.*not support.*--generator"):
        read({**genforce(network()), name: torch.ones(1)})


def test_others_are_not_recognised() -> None:
    assert FAMILY.recognises
    for names in (
        ["b4.conv.weight", "b32.fromrgb.weight", "b32.conv0.weight", "mapping.fc0.weight"],
        ["convs.0.0.weight", "convs.1.conv1.0.weight", "final_linear.0.weight"],
        ["synthesis.input.weight", "synthesis.L0_36_512.affine.weight", "mapping.fc0.weight"],
        ["synthesis.layer0.style.weight", "synthesis.layer0.apply_noise.weight", "synthesis.output0.weight"],
        ["G_synthesis/4x4/Const/StyleMod/weight", "G_synthesis/ToRGB_lod0/weight"],
    ):
        tensors = {name: torch.ones(2, 2) for name in names}
        checkpoint = Checkpoint(path=Path("x"), format="torch_file", tensors=tensors, sha256="")
        assert not FAMILY.recognises(checkpoint), names
        assert FAMILY.infer
        with pytest.raises(CheckpointError, match="none of the tensors"):
            FAMILY.infer(checkpoint, {})


@pytest.mark.skipif(not (FIXTURES / "bad").is_dir(), reason=f"no fixtures in {FIXTURES}")
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("ada_missing_key.pkl", r"'synthesis\.b8\.conv1\.weight' is missing"),
        ("ada_wrong_shape.pkl", r"'synthesis\.b8\.conv0\.weight' of shape \[17"),
        ("ada_nan.pkl", r"NaN.*'mapping\.fc1\.weight'"),
        ("rosinality_missing_key.pt", r"'convs\.2\.conv\.weight' is missing"),
        ("rosinality_wrong_shape.pt", r"'convs\.2\.conv\.weight' of shape"),
        ("rosinality_nan.pt", r"NaN.*'convs\.2\.conv\.weight'"),
        ("rosinality_extra_key.pt", r"'something\.extra\.weight'"),
        ("genforce_stylegan2_missing_key.pth", r"'synthesis\.layer3\.weight' is missing"),
        ("genforce_stylegan2_wrong_shape.pth", r"'synthesis\.layer3\.weight' of shape"),
        ("genforce_stylegan2_nan.pth", r"NaN.*'synthesis\.layer3\.weight'"),
        ("genforce_stylegan2_extra_key.pth", r"'something\.extra\.weight'"),
    ],
)
def test_damaged_files_are_refused(file: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_generator(FIXTURES / "bad" / file)
