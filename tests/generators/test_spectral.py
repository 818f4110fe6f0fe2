"""Spectral norms by hand, against torch's own, and the layers that are built from them."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.errors import CheckpointError
from fastdirs.generators import GENERATORS
from fastdirs.generators._spectral import (
    SelfAttention,
    SpectralConv2d,
    SpectralLinear,
    check_norms,
    double,
    normalised_weight,
    power_step,
    scale_and_offset,
)

Layer = SpectralLinear | SpectralConv2d
LAYERS = {
    "linear": lambda eps: SpectralLinear(5, 7, eps=eps),
    "linear without bias": lambda eps: SpectralLinear(5, 7, bias=False, eps=eps),
    "3x3": lambda eps: SpectralConv2d(5, 7, 3, eps=eps),
    "1x1 without bias": lambda eps: SpectralConv2d(5, 7, 1, bias=False, eps=eps),
    "some outputs kept": lambda eps: SpectralConv2d(5, 7, 3, eps=eps, kept=3),
}
layers = pytest.mark.parametrize("name", LAYERS)
kinds = pytest.mark.parametrize("eps", [None, 1e-6], ids=["stored", "one step"])


def made(name: str, eps: float | None) -> Layer:
    """A layer after some training: vectors that are not of unit length, a bias."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layer: Layer = LAYERS[name](eps)
        state = {key: torch.randn_like(tensor) for key, tensor in layer.state_dict().items()}
        layer.load_state_dict(state)
    return layer.eval().requires_grad_(False)


def inputs(layer: Layer) -> Tensor:
    shape = (2, 5) if isinstance(layer, SpectralLinear) else (2, 5, 6, 4)
    return torch.from_numpy(np.random.RandomState(0).randn(*shape)).float()


def divided(layer: Layer, x: Tensor, sigma: float) -> Tensor:
    weight = layer.weight / sigma
    if isinstance(layer, SpectralLinear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias, padding=weight.shape[-1] // 2)[:, : layer.kept]


def test_one_power_step_by_hand() -> None:
    random = np.random.RandomState(1)
    matrix, u = random.randn(6, 9), 3 * random.randn(6)
    v = u @ matrix
    v /= np.linalg.norm(v)
    expected = np.linalg.norm(matrix @ v)
    found = power_step(torch.from_numpy(matrix), torch.from_numpy(u), 1e-12)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert found < np.linalg.svd(matrix)[1][0]


def test_epsilon_bounds_what_is_divided_by() -> None:
    # v = u W / eps and the second direction is W v / eps, since both are shorter than eps.
    matrix, u = torch.tensor([[1e-3]]), torch.tensor([1e-3])
    assert power_step(matrix, u, 0.1).item() == pytest.approx((1e-6 / 0.1 * 1e-3) ** 2 / 0.1)


@layers
def test_the_norm_is_exactly_that_of_the_step(name: str) -> None:
    layer = made(name, 1e-6)
    matrix = layer.weight.flatten(1)
    v = F.normalize(layer.u[None] @ matrix, eps=1e-6)
    u = F.normalize(v @ matrix.T, eps=1e-6)
    assert layer.sigma == (v @ matrix.T @ u.T).item()


@layers
@kinds
def test_weights_are_divided_by_the_norm(name: str, eps: float | None) -> None:
    layer = made(name, eps)
    x = inputs(layer)
    torch.testing.assert_close(layer(x), divided(layer, x, layer.sigma), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "3x3"])
def test_stored_vectors_give_what_torch_makes_of_them(name: str) -> None:
    layer = made(name, None)
    plain = nn.Linear(5, 7) if name == "linear" else nn.Conv2d(5, 7, 3, padding=1)
    original = nn.utils.spectral_norm(plain)
    names = {"weight_orig": "weight", "weight_u": "u", "weight_v": "v", "bias": "bias"}
    original.load_state_dict({theirs: layer.state_dict()[ours] for theirs, ours in names.items()})
    x = inputs(layer)
    torch.testing.assert_close(layer(x), original.eval()(x), rtol=1e-5, atol=1e-5)


@kinds
def test_files_hold_raw_weights_and_no_norm(eps: float | None) -> None:
    layer = made("3x3", eps)
    expected = {"weight", "bias", "u"} | ({"v"} if eps is None else set())
    assert set(layer.state_dict()) == expected
    before = layer.weight.clone()
    layer(inputs(layer))
    assert torch.equal(layer.weight, before)


@kinds
def test_loading_computes_the_norm_again(eps: float | None) -> None:
    layer = made("linear", eps)
    sigma = layer.sigma
    state = layer.state_dict()
    nn.Sequential(layer).load_state_dict({"0." + k: 2 * v if k == "weight" else v for k, v in state.items()})
    assert layer.sigma == pytest.approx(2 * sigma)


def test_weights_changed_in_place_need_a_word() -> None:
    layer = made("linear", 1e-6)
    sigma = layer.sigma
    layer.weight.mul_(3)
    layer.update_sigma()
    assert layer.sigma == pytest.approx(3 * sigma)


@kinds
def test_random_weights_are_normalised_already(eps: float | None) -> None:
    layer = SpectralLinear(40, 30, eps=eps)
    exact = torch.linalg.matrix_norm(layer.weight, 2).item()
    assert 0.5 * exact < layer.sigma <= exact * (1 + 1e-6)
    assert layer.spread == pytest.approx(40 / 70)


def test_copies_are_independent_and_half_precision_keeps_the_norm() -> None:
    layer = made("linear", 1e-6)
    sigma = layer.sigma
    copied = copy.deepcopy(layer).to(torch.bfloat16)
    assert copied.sigma == sigma
    copied.load_state_dict({name: 2 * tensor for name, tensor in layer.state_dict().items()})
    assert copied.sigma != sigma
    assert layer.sigma == sigma


@layers
@kinds
def test_folded_layers_are_plain_equal_and_rounded_once(name: str, eps: float | None) -> None:
    layer = made(name, eps)
    plain, x = layer.folded(), inputs(layer)
    assert type(plain) in (nn.Linear, nn.Conv2d)
    assert not [p for p in plain.parameters() if p.requires_grad or p.is_meta]
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-5, atol=1e-5)
    kept = getattr(layer, "kept", None)
    exact = (layer.weight.double() / layer.sigma)[:kept]
    assert torch.equal(plain.get_parameter("weight"), exact.float())
    if layer.bias is None:
        assert plain.bias is None
    else:
        assert torch.equal(plain.get_parameter("bias"), layer.bias[:kept])
        plain.get_parameter("bias").zero_()
        assert layer.bias.abs().min() > 0, "the bias is a copy"


def test_attention_pixel_by_pixel() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        attention = SelfAttention(16).eval().requires_grad_(False)
        attention.gamma.fill_(0.7)
        x = torch.randn(2, 16, 4, 6)
    theta, phi, g = (getattr(attention, name)(x) for name in ("theta", "phi", "g"))
    expected = x.clone()
    seen = torch.zeros(2, 8, 4, 6)
    for image in range(2):
        keys = [
            phi[image, :, i : i + 2, j : j + 2].amax((1, 2)) for i in range(0, 4, 2) for j in range(0, 6, 2)
        ]
        values = [
            g[image, :, i : i + 2, j : j + 2].amax((1, 2)) for i in range(0, 4, 2) for j in range(0, 6, 2)
        ]
        for row in range(4):
            for column in range(6):
                scores = torch.stack([theta[image, :, row, column] @ key for key in keys]).softmax(0)
                seen[image, :, row, column] = sum(s * v for s, v in zip(scores, values, strict=True))
    expected += 0.7 * attention.o(seen)
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_image", [False, True])
def test_one_pass_is_batch_norm(per_image: bool) -> None:
    random = np.random.RandomState(2)
    x = torch.from_numpy(random.randn(3, 5, 4, 4)).float()
    mean, variance, gain, offset = torch.from_numpy(random.rand(4, 3, 5)).float()
    if not per_image:
        mean, variance = mean[0], variance[0]
    found = scale_and_offset(x, mean, variance, gain, offset, 1e-3)
    for image in range(3):
        m, v = (mean[image], variance[image]) if per_image else (mean, variance)
        one = x[image : image + 1]
        expected = F.batch_norm(one, m, v, gain[image], offset[image], training=False, eps=1e-3)
        torch.testing.assert_close(found[image : image + 1], expected, rtol=1e-5, atol=1e-5)


def test_doubling_repeats_pixels() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert torch.equal(double(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_weights_of_zero_cannot_be_normalised() -> None:
    config = {
        "widths": [8, 8], "bottom": 2, "channels": 3, "attention": [], "classes": 2, "shared_dim": 3,
        "dim": 2, "hier": True, "sn_eps": 1e-6, "bn_eps": 1e-5,
    }  # fmt: skip
    generator = GENERATORS.load("biggan").build(config)
    name = "stages.1.before.block.conv2"
    sources = {f"{name}.weight": "blocks.0.0.conv2.weight"}
    check_norms(generator, sources, Path("G_ema.pth"))
    generator.load_state_dict({f"{name}.weight": torch.zeros(8, 8, 3, 3)}, strict=False)
    with pytest.raises(
        CheckpointError, match=r"G_ema.pth holds 'blocks.0.0.conv2.weight' whose .* norm is 0"
    ):
        check_norms(generator, sources, Path("G_ema.pth"))


@layers
@kinds
def test_the_folded_layer_multiplies_by_the_same(name: str, eps: float | None) -> None:
    layer = made(name, eps)
    weight = normalised_weight(layer)
    assert torch.equal(weight, normalised_weight(layer.folded()))
    assert torch.equal(weight, (layer.weight.double() / layer.sigma).float()[: layer.kept])
