"""BigGAN from state dicts under BigGAN-PyTorch's names, against a plain computation from the same tensors."""

import json
from collections.abc import Callable
from dataclasses import dataclass
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
from fastdirs.graphs import SynthesisGraph
from fastdirs.loading import load_generator, save_generator
from fastdirs.lowering import FORMS, lower
from fastdirs.tracing import trace

State = dict[str, Tensor]
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Net:
    """What the original's constructor was told."""

    widths: tuple[int, ...] = (24, 24, 16, 16)
    bottom: int = 4
    classes: int = 5
    shared_dim: int = 6
    dim: int = 4
    hier: bool = True
    attention: tuple[int, ...] = (1,)
    channels: int = 3

    @property
    def z_dim(self) -> int:
        return self.dim * (len(self.widths) if self.hier else 1)


NETS = {
    "usual": Net(),
    "no attention": Net(attention=()),
    "attention twice": Net(attention=(0, 2)),
    "attention at the end": Net(attention=(2,)),
    "z only at the start": Net(hier=False, dim=9),
    "table per norm": Net(shared_dim=0, hier=False, dim=9, attention=()),
    "table per norm, attention": Net(shared_dim=0, hier=False, dim=9),
    "one block": Net(widths=(16, 8), attention=()),
    "grey, from 2 pixels": Net(bottom=2, channels=1),
    "one class": Net(classes=1),
}
nets = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


def state_of(net: Net) -> State:
    """A trained generator: every tensor random, statistics of about the right size, u0 not of unit length."""
    random = np.random.RandomState(7)
    state: State = {}

    def put(name: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> None:
        state[name] = torch.from_numpy(random.randn(*shape) * scale + offset).float()

    def spectral(name: str, *shape: int, bias: bool = True) -> None:
        put(f"{name}.weight", *shape)
        put(f"{name}.u0", 1, shape[0])
        put(f"{name}.sv0", 1)
        if bias:
            put(f"{name}.bias", shape[0], scale=0.1)

    def norm(name: str, channels: int) -> None:
        put(f"{name}.stored_mean", channels, scale=0.1)
        state[f"{name}.stored_var"] = torch.from_numpy(random.rand(channels) + 0.5).float()

    if net.shared_dim:
        put("shared.weight", net.classes, net.shared_dim)
    spectral("linear", net.widths[0] * net.bottom**2, net.dim)
    for i in range(len(net.widths) - 1):
        inputs, outputs = net.widths[i : i + 2]
        spectral(f"blocks.{i}.0.conv1", outputs, inputs, 3, 3)
        spectral(f"blocks.{i}.0.conv2", outputs, outputs, 3, 3)
        spectral(f"blocks.{i}.0.conv_sc", outputs, inputs, 1, 1)
        for bn, channels in (("bn1", inputs), ("bn2", outputs)):
            norm(f"blocks.{i}.0.{bn}", channels)
            for part in ("gain", "bias"):
                name = f"blocks.{i}.0.{bn}.{part}"
                if net.shared_dim:
                    spectral(name, channels, net.shared_dim + net.dim * net.hier, bias=False)
                else:
                    put(f"{name}.weight", net.classes, channels, scale=0.3)
        if i in net.attention:
            state[f"blocks.{i}.1.gamma"] = torch.tensor(0.8)
            for part, to, of in (("theta", 8, 1), ("phi", 8, 1), ("g", 2, 1), ("o", 1, 2)):
                spectral(f"blocks.{i}.1.{part}", outputs // to, outputs // of, 1, 1, bias=False)
    put("output_layer.0.gain", net.widths[-1], scale=0.1, offset=1)
    put("output_layer.0.bias", net.widths[-1], scale=0.1)
    norm("output_layer.0", net.widths[-1])
    spectral("output_layer.2", net.channels, net.widths[-1], 3, 3)
    return state


def used(state: State, name: str, sn_eps: float) -> Tensor:
    """The weights divided by their norm, after one power step."""
    raw = state[f"{name}.weight"]
    matrix, u = raw.flatten(1), state[f"{name}.u0"][0]
    v = matrix.T @ u
    v = v / v.norm().clamp_min(sn_eps)
    image = matrix @ v
    return raw / (image @ (image / image.norm().clamp_min(sn_eps)))


def pictures(net: Net, state: State, z: Tensor, y: list[int], sn_eps: float, bn_eps: float) -> Tensor:
    """The paper's figure 15, one layer after the other, a class index for each image."""

    def weight(name: str) -> Tensor:
        return used(state, name, sn_eps)

    def conv(name: str, x: Tensor) -> Tensor:
        w = weight(name)
        return F.conv2d(x, w, state.get(f"{name}.bias"), padding=w.shape[-1] // 2)

    def norm(name: str, x: Tensor, condition: Tensor) -> Tensor:
        statistics = state[f"{name}.stored_mean"], state[f"{name}.stored_var"]
        x = F.batch_norm(x, *statistics, training=False, eps=bn_eps)
        if net.shared_dim:
            gain, bias = (condition @ weight(f"{name}.{part}").T for part in ("gain", "bias"))
        else:
            gain, bias = (state[f"{name}.{part}.weight"][y] for part in ("gain", "bias"))
        return x * (1 + gain)[:, :, None, None] + bias[:, :, None, None]

    def attention(name: str, x: Tensor) -> Tensor:
        theta, phi, g = (conv(f"{name}.{part}", x) for part in ("theta", "phi", "g"))
        phi, g = F.max_pool2d(phi, 2).flatten(2), F.max_pool2d(g, 2).flatten(2)
        beta = torch.einsum("nci,ncj->nij", theta.flatten(2), phi).softmax(2)
        o = torch.einsum("ncj,nij->nci", g, beta).reshape(len(x), -1, *x.shape[2:])
        return x + state[f"{name}.gamma"] * conv(f"{name}.o", o)

    chunks = z.split(net.dim, 1)
    embedding = state["shared.weight"][y] if net.shared_dim else z[:, :0]
    h = chunks[0] @ weight("linear").T + state["linear.bias"]
    h = h.reshape(len(z), net.widths[0], net.bottom, net.bottom)
    for i in range(len(net.widths) - 1):
        block = f"blocks.{i}.0"
        condition = torch.cat([embedding, chunks[i + 1]], 1) if net.hier else embedding
        up = F.interpolate(F.relu(norm(f"{block}.bn1", h, condition)), scale_factor=2)
        inner = conv(f"{block}.conv2", F.relu(norm(f"{block}.bn2", conv(f"{block}.conv1", up), condition)))
        h = inner + conv(f"{block}.conv_sc", F.interpolate(h, scale_factor=2))
        if i in net.attention:
            h = attention(f"blocks.{i}.1", h)
    last = [state[f"output_layer.0.{part}"] for part in ("stored_mean", "stored_var", "gain", "bias")]
    return torch.tanh(conv("output_layer.2", F.relu(F.batch_norm(h, *last, training=False, eps=1e-5))))


def saved(folder: Path, state: State, settings: object = None) -> Path:
    torch.save(state, folder / "G_ema.pth")
    if settings is None:
        return folder / "G_ema.pth"
    (folder / "generator_config.json").write_text(json.dumps(settings))
    return folder


def z_of(net: Net, count: int = 3) -> Tensor:
    return torch.from_numpy(np.random.RandomState(1).randn(count, net.z_dim)).float()


def assert_same(
    generator: Generator, net: Net, state: State, sn_eps: float = 1e-6, bn_eps: float = 1e-5
) -> None:
    z, y = z_of(net), [i % net.classes for i in (0, 3, 2)]
    expected = pictures(net, state, z, y, sn_eps, bn_eps)
    found = generator.synthesis(generator.mapping(z), torch.tensor(y))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    assert expected.std() > 0.1


@nets
def test_pictures_of_every_architecture(net: Net, tmp_path: Path) -> None:
    state = state_of(net)
    generator = load_generator(saved(tmp_path, state))
    assert (generator.family, generator.z_dim, generator.c_dim) == ("biggan", net.z_dim, net.classes)
    assert generator.num_layers == (len(net.widths) if net.hier else 1)
    assert generator.img_resolution == net.bottom * 2 ** (len(net.widths) - 1)
    assert generator.provenance.assumed == ("sn_eps=1e-06", "bn_eps=1e-05", "z_bound=none")
    assert_same(generator, net, state)


@nets
def test_a_saved_copy_is_the_same(net: Net, tmp_path: Path) -> None:
    generator = load_generator(saved(tmp_path, state_of(net)))
    save_generator(generator, tmp_path / "copy.safetensors")
    copied, z = load_generator(tmp_path / "copy.safetensors"), generator.mapping(z_of(net))
    assert copied.identity() == generator.identity()
    assert torch.equal(copied.synthesis(z, 0), generator.synthesis(z, 0))


@nets
def test_stages_read_what_they_say_and_images_not_their_batch(net: Net, tmp_path: Path) -> None:
    generator = load_generator(saved(tmp_path, state_of(net)))
    assert len(generator.stages) == len(net.widths)
    assert generator.reads == tuple((i,) if net.hier or i == 0 else () for i in range(len(net.widths)))
    latents = generator.mapping(z_of(net))
    c = torch.full((3, net.classes), 1 / net.classes)
    images, state = generator.run_stages(latents, c), c
    for stage, reads in zip(generator.stages, generator.reads, strict=True):
        poisoned = torch.full_like(latents, float("nan"))
        poisoned[:, list(reads)] = latents[:, list(reads)]
        state = stage(state, poisoned)
    torch.testing.assert_close(state, images, rtol=0, atol=TOLERANCE)
    alone = torch.cat([generator.run_stages(latents[i : i + 1], c[:1]) for i in range(3)])
    torch.testing.assert_close(alone, images, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("net", [Net(), NETS["table per norm"]], ids=["shared", "table per norm"])
def test_mixtures_of_classes_mix_their_embeddings(net: Net, tmp_path: Path) -> None:
    """A class made of two others is a new row in each table."""
    state = state_of(net)
    generator = load_generator(saved(tmp_path, state))
    mixed = {
        # No other axis has this length.
        name: torch.cat([t, 0.7 * t[1:2] + 0.3 * t[4:5]]) if len(t.shape) and len(t) == net.classes else t
        for name, t in state.items()
    }
    weights = torch.tensor([[0, 0.7, 0, 0, 0.3]]).expand(3, -1)
    expected = pictures(net, mixed, z_of(net), [5, 5, 5], 1e-6, 1e-5)
    found = generator.synthesis(generator.mapping(z_of(net)), weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_z_is_cut_into_chunks_and_truncated(tmp_path: Path) -> None:
    net = Net()
    generator = load_generator(saved(tmp_path, state_of(net)))
    z = z_of(net)
    assert generator.has_mapping
    assert torch.equal(generator.mapping(z)[:, 2], z[:, 8:12])
    torch.testing.assert_close(generator.mapping(z, psi=0.5), 0.5 * generator.mapping(z))
    with pytest.raises(ContractError, match="class from 0 to 4"):
        generator.synthesis(generator.mapping(z))
    with pytest.raises(SelectionError, match="no class 5"):
        generator.synthesis(generator.mapping(z), 5)


def test_further_singular_values_change_nothing(tmp_path: Path) -> None:
    net = Net()
    state = state_of(net)
    more = {name[:-1] + "1": tensor for name, tensor in state.items() if name.endswith(("u0", "sv0"))}
    assert_same(load_generator(saved(tmp_path, state | more)), net, state)


def test_factors_are_the_columns_of_z(tmp_path: Path) -> None:
    net = Net()
    state = state_of(net)
    factors = load_generator(saved(tmp_path, state)).factors()
    assert [factor.layer for factor in factors] == [0] + [i for i in (1, 2, 3) for _ in range(4)]
    for factor, weight in (
        (factors[0], used(state, "linear", 1e-6)),
        (factors[6], used(state, "blocks.1.0.bn1.bias", 1e-6)[:, 6:]),
    ):
        torch.testing.assert_close(factor.weight, weight, rtol=1e-5, atol=0)
    bank = discover(load_generator(tmp_path / "G_ema.pth"), "sefa", num_directions=3, layers=(1, 2))
    assert bank.shift(0, 1.0)[[0, 3]].abs().max() == 0


@pytest.mark.parametrize("name", ["usual", "z only at the start"])
def test_the_folded_copy_has_the_same_factors(name: str, tmp_path: Path) -> None:
    generator = load_generator(saved(tmp_path, state_of(NETS[name])))
    for factor, folded in zip(generator.factors(), lower(generator, FORMS["folded"]).factors(), strict=True):
        assert (factor.name, factor.layer) == (folded.name, folded.layer)
        assert torch.equal(factor.weight, folded.weight)


def test_z_in_one_piece_needs_no_graph(tmp_path: Path) -> None:
    """What a runtime does without one, as `fastdirs.runtime` does it: z in another shape, times psi."""
    net = NETS["z only at the start"]
    generator, z = load_generator(saved(tmp_path, state_of(net))), z_of(net)
    assert not generator.has_mapping
    assert torch.equal(generator.mapping(z, psi=0.7), 0.7 * z.reshape(3, 1, net.dim))


def _without(end: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        for name in [name for name in state if name.endswith(end)]:
            del state[name]

    return change


def _with(name: str, *shape: int) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name] = torch.ones(shape)

    return change


def _filled(name: str, value: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name].fill_(value)

    return change


REFUSALS: dict[str, tuple[Callable[[State], None], str]] = {
    "a weight is missing": (_without("blocks.1.0.conv1.weight"), "'blocks.1.0.conv1.weight' is missing"),
    "u0 is missing": (_without("linear.u0"), "'linear.u0' is missing"),
    "the class table is missing": (_without("shared.weight"), "'shared.weight' is missing"),
    "the first mean is missing": (_without("blocks.0.0.bn1.stored_mean"), "bn1.stored_mean' is missing"),
    "a shape": (_with("blocks.1.0.conv2.weight", 3, 3, 3, 3), "'blocks.1.0.conv2.weight' of shape"),
    "axes": (_with("linear.weight", 3, 4, 1), "'linear.weight' of shape .* Expected 2 axes"),
    "no square": (_with("linear.weight", 24 * 15, 4), "no square of 24 channels"),
    "columns of a gain": (_with("blocks.0.0.bn1.gain.weight", 24, 8), "Expected 6 columns .* and 4 more"),
    "five channels": (_with("output_layer.2.weight", 5, 16, 3, 3), "makes images of 5 channels"),
    "attention of another size": (_with("blocks.1.1.theta.weight", 4, 16, 1, 1), "'blocks.1.1.theta.weight'"),
    "sizes": (_with("blocks.1.0.bn2.stored_mean", 100_000), "values, but the shapes of its tensors ask for"),
    "two rows of u0": (_with("linear.u0", 2, 24 * 16), "'linear.u0' of shape"),
    "NaN": (_filled("blocks.1.1.o.weight", float("nan")), "NaN or infinite values in 'blocks.1.1.o.weight'"),
    "zeros": (_filled("linear.weight", 0), "'linear.weight' whose .* norm is 0"),
    "something else": (_with("blocks.1.2.gamma", 1), "'blocks.1.2.gamma', which is no part"),
    "a negative variance": (
        _filled("blocks.1.0.bn2.stored_var", -1),
        "negative values in 'blocks.1.0.bn2.st",
    ),
    "no spectral norms": (_without("u0"), "G_param=other than SN"),
    "a deeper network": (
        _with("blocks.0.0.conv3.weight", 6, 6, 1, 1),
        "model=BigGANdeep.*Expected BigGAN: take w",
    ),
    "own batch norm": (_with("blocks.0.0.bn1.bn.stored_mean", 24), "mybn=True.*Expected False"),
    "synchronised batch norm": (
        _with("blocks.0.0.bn1.bn.running_mean", 24),
        "cross_replica=True.* adds the gain",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_does_not_fit_is_refused(change: Callable[[State], None], message: str, tmp_path: Path) -> None:
    state = state_of(Net())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_generator(saved(tmp_path, state))


def test_discriminators_and_other_residual_networks_are_not_taken_for_it(tmp_path: Path) -> None:
    names = ["blocks.0.0.conv1.weight", "blocks.0.0.conv1.u0", "linear.weight", "embed.weight"]
    names += ["blocks.0.0.bn1.weight", "blocks.0.0.bn1.bias", "blocks.0.0.bn1.running_mean"]
    torch.save({name: torch.ones(2, 2) for name in names}, tmp_path / "D.pth")
    with pytest.raises(CheckpointError) as caught:
        load_generator(tmp_path / "D.pth")
    assert "biggan" not in str(caught.value).lower().replace(str(tmp_path).lower(), "")


def test_graphs_equal_torch_at_any_batch(tmp_path: Path) -> None:
    net = Net(widths=(16, 16, 8), attention=(0,))
    generator = load_generator(saved(tmp_path, state_of(net)))
    module, path = SynthesisGraph(lower(generator, FORMS["folded"])), tmp_path / "synthesis.onnx"
    trace(module, module.example(), path, module.inputs, "images", 18, generator.identity())
    latents, c = generator.mapping(z_of(net)), torch.rand(3, net.classes)
    for backend in ("ort", "openvino_cpu"):
        session = BACKENDS.load(backend).open(path, "f32", False)
        for batch in (1, 3):
            images = session.run([latents[:batch].numpy(), c[:batch].numpy()])
            expected = generator.synthesis(latents[:batch], c[:batch]).numpy()
            np.testing.assert_allclose(images, expected, rtol=0, atol=TOLERANCE)
        session.close()


def test_full_size_with_random_weights_shows_something() -> None:
    """The network of 128 pixels, a third as wide: neither flat nor saturated, unlike from seed to seed."""
    config = {
        "widths": [512, 512, 256, 128, 64, 32], "bottom": 4, "channels": 3, "attention": [3], "classes": 1000,
        "shared_dim": 128, "dim": 20, "hier": True, "sn_eps": 1e-6, "bn_eps": 1e-5,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load("biggan").build(config)
    images = generator.synthesis(generator.mapping(generator.sample(range(3))), torch.tensor([0, 1, 2]))
    assert 0.2 < images.std() < 0.8
    assert images.std((2, 3)).mean() > 0.05
    assert images.std(0).mean() > 0.1
