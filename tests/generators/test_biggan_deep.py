"""BigGAN-deep from folders as pytorch-pretrained-BigGAN reads them, against a plain computation."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdirs.backends import BACKENDS
from fastdirs.discovery import discover
from fastdirs.errors import CheckpointError, ContractError, SelectionError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.graphs import MappingGraph, SynthesisGraph
from fastdirs.latents import psi_per_layer
from fastdirs.loading import load_generator, save_generator
from fastdirs.lowering import FORMS, lower
from fastdirs.tracing import trace

State = dict[str, Tensor]
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Net:
    """What config.json says, and the sizes that the original takes from it."""

    layers: tuple[tuple[bool, int, int], ...] = ((False, 4, 4), (True, 4, 2), (True, 2, 1), (False, 1, 1))
    width: int = 16
    attention: int | None = 2
    z_dim: int = 6
    embedding_dim: int = 6
    classes: int = 5
    rows: int = 11
    eps: float = 1e-4

    def config(self) -> dict[str, object]:
        return {
            "output_dim": 4 * 2 ** sum(layer[0] for layer in self.layers), "z_dim": self.z_dim,
            "class_embed_dim": self.embedding_dim, "channel_width": self.width, "num_classes": self.classes,
            "layers": [list(layer) for layer in self.layers], "attention_layer_position": self.attention,
            "eps": self.eps, "n_stats": self.rows,
        }  # fmt: skip

    def names(self) -> list[tuple[str, tuple[bool, int, int] | None]]:
        """Every layer's name, with its entry, None for attention."""
        found: list[tuple[bool, int, int] | None] = list(self.layers)
        if self.attention is not None:
            found.insert(self.attention, None)
        return [(f"generator.layers.{number}", layer) for number, layer in enumerate(found)]


NETS = {
    "usual": Net(),
    "no attention": Net(attention=None),
    "attention first": Net(attention=0),
    "attention last": Net(attention=3),
    "nothing doubles": Net(layers=((False, 2, 2), (False, 2, 1)), attention=None),
    "one block": Net(layers=((True, 1, 1),), attention=None),
    "another embedding": Net(z_dim=7, embedding_dim=3, classes=1),
    "two rows": Net(rows=2, eps=0.01),
}
nets = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


def state_of(net: Net) -> State:
    """A trained generator: every tensor random, statistics that differ from row to row."""
    random = np.random.RandomState(11)
    state: State = {}

    def put(name: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> None:
        state[name] = torch.from_numpy(random.randn(*shape) * scale + offset).float()

    def spectral(name: str, *shape: int, bias: bool = True) -> None:
        put(f"{name}.weight_orig", *shape)
        matrix = state[f"{name}.weight_orig"].flatten(1)
        # Not quite the first singular vectors.
        u = torch.linalg.svd(matrix)[0][:, 0] + 0.1 * torch.from_numpy(random.randn(shape[0])).float()
        state[f"{name}.weight_v"] = F.normalize(u @ matrix, dim=0)
        state[f"{name}.weight_u"] = F.normalize(matrix @ state[f"{name}.weight_v"], dim=0)
        if bias:
            put(f"{name}.bias", shape[0], scale=0.1)

    def norm(name: str, channels: int) -> None:
        put(f"{name}.running_means", net.rows, channels, scale=0.2)
        state[f"{name}.running_vars"] = torch.from_numpy(random.rand(net.rows, channels) + 0.3).float()

    condition = net.z_dim + net.embedding_dim
    put("embeddings.weight", net.embedding_dim, net.classes)
    first = net.layers[0][1] * net.width
    spectral("generator.gen_z", 16 * first, condition)
    width = first
    for name, layer in net.names():
        if layer is None:
            state[f"{name}.gamma"] = torch.tensor([0.8])
            for part, to, of in (("theta", 8, 1), ("phi", 8, 1), ("g", 2, 1), ("o_conv", 1, 2)):
                spectral(f"{name}.snconv1x1_{part}", width // to, width // of, 1, 1, bias=False)
            continue
        inputs, outputs = layer[1] * net.width, layer[2] * net.width
        middle, width = inputs // 4, outputs
        sizes = ((inputs, middle, 1), (middle, middle, 3), (middle, middle, 3), (middle, outputs, 1))
        for i, (before, after, kernel) in enumerate(sizes):
            norm(f"{name}.bn_{i}", before)
            for part in ("scale", "offset"):
                spectral(f"{name}.bn_{i}.{part}", before, condition, bias=False)
            spectral(f"{name}.conv_{i}", after, before, kernel, kernel)
    norm("generator.bn", width)
    put("generator.bn.weight", width, scale=0.1, offset=1)
    put("generator.bn.bias", width, scale=0.1)
    spectral("generator.conv_to_rgb", width, width, 3, 3)
    return state


def used(state: State, name: str) -> Tensor:
    """The weights divided by their norm, as the stored vectors have it."""
    raw = state[f"{name}.weight_orig"]
    return raw / (state[f"{name}.weight_u"] @ raw.flatten(1) @ state[f"{name}.weight_v"])


def pictures(net: Net, state: State, z: Tensor, weights: Tensor, truncation: float) -> Tensor:
    """The paper's figure 16, with the statistics' shares as the original's code deals them."""
    share, first = math.modf(truncation / (1.0 / (net.rows - 1)))

    def rows(name: str) -> Tensor:
        table = state[name]
        row = table[int(first)]
        return share * row + (1 - share) * table[int(first) + 1] if share else row

    def weight(name: str) -> Tensor:
        return used(state, name)

    def conv(name: str, x: Tensor) -> Tensor:
        w = weight(name)
        return F.conv2d(x, w, state.get(f"{name}.bias"), padding=w.shape[-1] // 2)

    def norm(name: str, x: Tensor, *affine: Tensor) -> Tensor:
        statistics = rows(f"{name}.running_means"), rows(f"{name}.running_vars")
        return F.batch_norm(x, *statistics, *affine, training=False, eps=net.eps)

    def attention(name: str, x: Tensor) -> Tensor:
        theta, phi, g = (conv(f"{name}.snconv1x1_{part}", x) for part in ("theta", "phi", "g"))
        phi, g = F.max_pool2d(phi, 2).flatten(2), F.max_pool2d(g, 2).flatten(2)
        beta = torch.einsum("nci,ncj->nij", theta.flatten(2), phi).softmax(2)
        o = torch.einsum("ncj,nij->nci", g, beta).reshape(len(x), -1, *x.shape[2:])
        return x + state[f"{name}.gamma"] * conv(f"{name}.snconv1x1_o_conv", o)

    condition = torch.cat([z, weights @ state["embeddings.weight"].T], 1)
    h = condition @ weight("generator.gen_z").T + state["generator.gen_z.bias"]
    h = h.reshape(len(z), 4, 4, -1).permute(0, 3, 1, 2)
    for name, layer in net.names():
        if layer is None:
            h = attention(name, h)
            continue
        x = h
        for i in range(4):
            gain = 1 + condition @ weight(f"{name}.bn_{i}.scale").T
            offset = condition @ weight(f"{name}.bn_{i}.offset").T
            x = norm(f"{name}.bn_{i}", x) * gain[:, :, None, None] + offset[:, :, None, None]
            x = F.relu(x)
            if i == 1 and layer[0]:
                x, h = F.interpolate(x, scale_factor=2), F.interpolate(h, scale_factor=2)
            x = conv(f"{name}.conv_{i}", x)
        h = x + h[:, : x.shape[1]]
    h = F.relu(norm("generator.bn", h, state["generator.bn.weight"], state["generator.bn.bias"]))
    return torch.tanh(conv("generator.conv_to_rgb", h)[:, :3])


def saved(folder: Path, state: State, config: object = None) -> Path:
    torch.save(state, folder / "pytorch_model.bin")
    if config is None:
        return folder / "pytorch_model.bin"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def loaded(folder: Path, net: Net) -> Generator:
    return load_generator(saved(folder, state_of(net), net.config()))


def z_of(net: Net, count: int = 3) -> Tensor:
    return torch.from_numpy(np.random.RandomState(1).randn(count, net.z_dim)).float()


def mixtures(net: Net, count: int = 3) -> Tensor:
    return torch.from_numpy(np.random.RandomState(2).rand(count, net.classes)).float()


@nets
@pytest.mark.parametrize("psi", [1.0, 0.5, 0.413, 0.7, 0.05])
def test_pictures_of_every_architecture_and_truncation(net: Net, psi: float, tmp_path: Path) -> None:
    generator = loaded(tmp_path, net)
    z, weights = z_of(net), mixtures(net)
    expected = pictures(net, state_of(net), psi * z, weights, psi)
    found = generator.synthesis(generator.mapping(z, psi=psi), weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=3 * TOLERANCE)
    assert expected.std() > 0.05
    one = generator.synthesis(generator.mapping(z, psi=psi), 0)
    torch.testing.assert_close(
        one, pictures(net, state_of(net), psi * z, torch.eye(net.classes)[[0, 0, 0]], psi), rtol=0,
        atol=3 * TOLERANCE,
    )  # fmt: skip


@nets
def test_layers_are_copies_of_z_and_the_place(net: Net, tmp_path: Path) -> None:
    generator = loaded(tmp_path, net)
    blocks = len(net.layers)
    assert (generator.num_layers, generator.dim) == (blocks + 2, net.z_dim)
    assert generator.truncation_rows == net.rows
    assert generator.editable == tuple(range(blocks + 1))
    assert generator.reads == ((0,), *((i, blocks + 1) for i in range(1, blocks + 1)))
    assert generator.img_resolution == net.config()["output_dim"]
    assert generator.has_mapping
    z = z_of(net)
    latents = generator.mapping(z)
    assert torch.equal(latents[:, :-1], z[:, None].expand(-1, blocks + 1, -1))
    assert bool((latents[:, -1] == net.rows - 1).all())
    halved = generator.mapping(z, psi=0.5, cutoff=1)
    assert torch.equal(halved[:, 0], z / 2)
    assert torch.equal(halved[:, 1:-1], latents[:, 1:-1])
    assert bool((halved[:, -1] == (net.rows - 1) / 2).all())


@nets
def test_stages_read_what_they_say_and_images_not_their_batch(net: Net, tmp_path: Path) -> None:
    generator = loaded(tmp_path, net)
    latents, c = generator.mapping(z_of(net)), mixtures(net)
    # Each image at a truncation of its own.
    latents[:, -1] = torch.linspace(0, net.rows - 1, 3)[:, None]
    images, state = generator.run_stages(latents, c), c
    for stage, reads in zip(generator.stages, generator.reads, strict=True):
        poisoned = torch.full_like(latents, float("nan"))
        poisoned[:, list(reads)] = latents[:, list(reads)]
        state = stage(state, poisoned)
    torch.testing.assert_close(state, images, rtol=0, atol=TOLERANCE)
    alone = torch.cat([generator.run_stages(latents[i : i + 1], c[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, images, rtol=0, atol=TOLERANCE)


@nets
def test_a_saved_copy_is_the_same(net: Net, tmp_path: Path) -> None:
    generator = loaded(tmp_path, net)
    save_generator(generator, tmp_path / "copy.safetensors")
    copied = load_generator(tmp_path / "copy.safetensors")
    assert copied.identity() == generator.identity()
    latents = generator.mapping(z_of(net), psi=0.3)
    assert torch.equal(copied.synthesis(latents, 0), generator.synthesis(latents, 0))


@pytest.mark.parametrize("psi", [-0.1, 1.1, float("nan")])
def test_statistics_cover_truncations_from_0_to_1(psi: float, tmp_path: Path) -> None:
    with pytest.raises(SelectionError):
        loaded(tmp_path, Net()).mapping(z_of(Net()), psi=psi)


def test_z_is_cut_at_two_and_classes_are_asked_for(tmp_path: Path) -> None:
    generator = loaded(tmp_path, Net())
    assert generator.z_bound == 2
    assert generator.sample(range(64)).abs().max() <= 2
    with pytest.raises(ContractError, match="class from 0 to 4"):
        generator.synthesis(generator.mapping(z_of(Net())))


def test_factors_are_the_columns_of_z(tmp_path: Path) -> None:
    generator, state = loaded(tmp_path, Net()), state_of(Net())
    factors = generator.factors()
    assert [factor.layer for factor in factors] == [0] + [i for i in (1, 2, 3, 4) for _ in range(8)]
    torch.testing.assert_close(factors[0].weight, used(state, "generator.gen_z")[:, :6], rtol=1e-5, atol=0)
    found = next(f for f in factors if f.name.endswith("stages.3.block.norms.2.offset"))
    # Attention counts as a layer of its own in the file.
    expected = used(state, "generator.layers.3.bn_2.offset")[:, :6]
    torch.testing.assert_close(found.weight, expected, rtol=1e-5, atol=0)
    folded = lower(generator, FORMS["folded"]).factors()
    assert [factor.name for factor in factors] == [factor.name for factor in folded]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(factors, folded, strict=True))
    bank = discover(generator, "sefa", num_directions=3)
    assert bank.shift(0, 1.0)[-1].abs().max() == 0, "the place among the statistics is not edited"


PUBLISHED = {
    "biggan-deep-128": [16, 16, 16, 16, 8, 8, 4, 4, 2, 2, 1],
    "biggan-deep-256": [16, 16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1],
    "biggan-deep-512": [16, 16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1, 1, 1],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_known_by_their_weights_alone(name: str, tmp_path: Path) -> None:
    widths = PUBLISHED[name]
    layers = tuple((i % 2 == 1, *pair) for i, pair in enumerate(pairwise(widths)))
    net = Net(layers=layers, width=4, attention=8, rows=2)
    generator = load_generator(saved(tmp_path, state_of(net)))
    assert generator.provenance.assumed == ("eps=0.0001", f"layers={name}")
    assert generator.img_resolution == int(name.rpartition("-")[2])
    assert generator.config == load_generator(saved(tmp_path, state_of(net), net.config())).config


def _without(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(name)


def _with(name: str, *shape: int, value: float = 1.0) -> Callable[[State], None]:
    return lambda state: state.__setitem__(name, torch.full(shape, value))


REFUSALS: dict[str, tuple[Callable[[State], None], str]] = {
    "a weight": (_without("generator.layers.1.conv_1.weight_orig"), "layers.1.conv_1.weight_orig' is"),
    "a vector": (_without("generator.gen_z.weight_u"), "'generator.gen_z.weight_u' is missing"),
    "gamma": (_without("generator.layers.2.gamma"), "'generator.layers.2.gamma' is missing"),
    "means": (_without("generator.layers.3.bn_0.running_means"), "layers.3.bn_0.running_means' is missing"),
    "embeddings": (_without("embeddings.weight"), "'embeddings.weight' is missing"),
    "rows": (_with("generator.layers.1.bn_1.running_vars", 12, 16), "'generator.layers.1.bn_1.running_vars'"),
    "no z": (_with("generator.gen_z.weight_orig", 1024, 6), "Expected more than the 6"),
    "widths": (_with("generator.layers.3.bn_0.running_means", 11, 31), r"\[64, 64, 31, 16, 16\] channels"),
    "channels": (_with("generator.bn.running_means", 11, 2), "to 3 or more"),
    "layer numbers": (_with("generator.layers.99999999999.gamma", 1), "layers.99999999999|is missing"),
    "NaN": (_with("generator.bn.bias", 16, value=math.nan), "NaN or infinite values in 'generator.bn.bias'"),
    "zeros": (_with("generator.gen_z.weight_orig", 1024, 12, value=0), "gen_z.weight_orig.*norm is 0"),
    "a variance": (_with("generator.bn.running_vars", 11, 16, value=-1), "negative values in 'generator.bn."),
    "attention twice": (_with("generator.layers.4.snconv1x1_g.weight_orig", 2), r"layers \[2, 4\] of 5"),
    "something else": (_with("generator.layers.1.conv_9.bias", 3), "conv_9.bias', which is no part"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_does_not_fit_is_refused(change: Callable[[State], None], message: str, tmp_path: Path) -> None:
    state = state_of(Net())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_generator(saved(tmp_path, state, Net().config()))


def test_graphs_equal_torch_at_any_batch_and_truncation(tmp_path: Path) -> None:
    net = Net(layers=((True, 2, 1), (False, 1, 1)), attention=1)
    generator = loaded(tmp_path, net)
    modules = {
        "latents": MappingGraph(generator),
        "images": SynthesisGraph(lower(generator, FORMS["folded"])),
    }
    for output, module in modules.items():
        path = tmp_path / f"{output}.onnx"
        trace(module, module.example(), path, module.inputs, output, 18, generator.identity())
    z, c = z_of(net), mixtures(net)
    psi = psi_per_layer(0.63, None, generator.num_layers, net.rows)
    for backend in ("ort", "openvino_cpu"):
        mapping, synthesis = (
            BACKENDS.load(backend).open(tmp_path / f"{output}.onnx", "f32", False) for output in modules
        )
        for batch in (1, 3):
            latents = mapping.run([z[:batch].numpy(), psi.numpy()])
            expected = generator.mapping(z[:batch], psi=0.63)
            np.testing.assert_allclose(latents, expected.numpy(), rtol=0, atol=1e-6)
            images = synthesis.run([latents, c[:batch].numpy()])
            wanted = generator.synthesis(expected, c[:batch]).numpy()
            np.testing.assert_allclose(images, wanted, rtol=0, atol=TOLERANCE)
        mapping.close()
        synthesis.close()


def test_full_depth_with_random_weights_shows_something() -> None:
    """The network of 128 pixels, narrower: neither flat nor saturated, unlike from seed to seed."""
    config = {
        "widths": [32 * width for width in PUBLISHED["biggan-deep-128"]], "doubles": [False, True] * 5,
        "attention": 8, "z_dim": 128, "embedding_dim": 128, "classes": 1000, "rows": 51, "eps": 1e-4,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load("biggan_deep").build(config)
    images = generator.synthesis(generator.mapping(generator.sample(range(3))), torch.tensor([0, 1, 2]))
    assert images.shape == (3, 3, 128, 128)
    assert 0.2 < images.std() < 0.8
    assert images.std((2, 3)).mean() > 0.05
    assert images.std(0).mean() > 0.1
