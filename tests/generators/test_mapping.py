"""The mapping network against its formulas written plainly."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdirs.generators._mapping import EqualLinear, MappingNetwork, normalize


def network(
    z_dim: int = 6, c_dim: int = 0, widths: tuple[int, ...] = (7, 5), scaled: bool = True
) -> MappingNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = MappingNetwork(z_dim, c_dim, widths[-1], list(widths), scaled)
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.data = torch.randn(parameter.shape) * 20
    return made.eval().requires_grad_(False)


def some_z(rows: int = 3) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def plain(made: MappingNetwork, z: Tensor, c: Tensor | None, scaled: bool) -> Tensor:
    x = z.double()
    x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
    if made.embed is not None:
        assert c is not None
        weight, bias = made.embed.weight.double(), made.embed.bias.double()
        y = c.double() @ weight.T / math.sqrt(weight.shape[1]) + bias
        x = torch.cat([x, y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt()], dim=1)
    for layer in made.layers:
        weight, bias = layer.get_parameter("weight").double(), layer.get_parameter("bias").double()
        x = x @ (weight * 0.01 / math.sqrt(weight.shape[1])).T
        if scaled:
            x = F.leaky_relu(x + bias * 0.01, 0.2) * math.sqrt(2)
        else:
            x = F.leaky_relu(x * math.sqrt(2) + bias * 0.01, 0.2)
    return x.float()


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("widths", [(7, 5), (5,), (9, 9, 9, 5)])
def test_unconditional(widths: tuple[int, ...], scaled: bool) -> None:
    made = network(widths=widths, scaled=scaled)
    torch.testing.assert_close(made(some_z(), None), plain(made, some_z(), None, scaled), rtol=0, atol=1e-5)


def test_conditional() -> None:
    made, c = network(c_dim=4), torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(made(some_z(), c), plain(made, some_z(), c, True), rtol=0, atol=1e-5)
    assert not torch.allclose(made(some_z(), c), made(some_z(), c.roll(1, 0)))


def test_rows_do_not_know_each_other() -> None:
    made = network()
    torch.testing.assert_close(made(some_z()[1:2], None)[0], made(some_z(), None)[1], rtol=0, atol=1e-6)


def test_the_length_of_z_does_not_matter() -> None:
    made = network()
    torch.testing.assert_close(made(some_z() * 5, None), made(some_z(), None), rtol=0, atol=1e-5)


def test_random_weights_give_w_of_the_size_of_z() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = MappingNetwork(512, 0, 512, [512, 512]).requires_grad_(False)
    w = made(torch.randn(8, 512, generator=torch.Generator().manual_seed(0)), None)
    assert 0.5 < float(w.std()) < 2


def test_normalize_has_a_mean_square_of_one() -> None:
    rows = normalize(some_z() * 100)
    torch.testing.assert_close(rows.square().mean(1), torch.ones(3))
    assert normalize(torch.zeros(1, 6)).isfinite().all()


def test_equal_linear_scales_when_it_runs() -> None:
    linear = EqualLinear(4, 2, gain=3.0, bias_gain=0.5).requires_grad_(False)
    linear.weight.fill_(1.0)
    linear.bias.fill_(1.0)
    torch.testing.assert_close(linear(torch.ones(1, 4)), torch.full((1, 2), 4 * 3 / 2 + 0.5))
