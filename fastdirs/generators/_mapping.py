"""The mapping network that the StyleGAN families share: z, and perhaps a class, to w."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LR_MULTIPLIER = 0.01
SLOPE = 0.2


def normalize(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Each row scaled to a mean square of one: `[batch, features, ...]`, float32, over the second axis."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


class EqualLinear(nn.Module):
    """A linear layer whose raw weights are scaled when it runs.

    Args:
        inputs: Size of the input.
        outputs: Size of the output.
        gain: Factor of the product, besides `1 / sqrt(inputs)`.
        bias_gain: Factor of the bias.

    Source:
        Karras et al. 2018 (ProgGAN), section 4.1, "equalized learning rate".
    """

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0, bias_gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain = gain / math.sqrt(inputs)
        self.bias_gain = bias_gain

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, inputs]` -> `[batch, outputs]`."""
        return F.linear(x * self.gain, self.weight, self.bias * self.bias_gain)


class MappingNetwork(nn.Module):
    """z and the class to w.

    Args:
        z_dim: Size of z.
        c_dim: Number of classes, 0 if unconditional.
        w_dim: Size of w.
        widths: Outputs of each layer; the last is `w_dim`.
        scaled_bias: True: the activation's gain of sqrt(2) acts on the bias too (StyleGAN2 and 3); False: on
            the product alone (StyleGAN).

    Source:
        Karras et al. 2019 (StyleGAN), figure 1b; Karras et al. 2020 (StyleGAN2-ADA) for the class.
    """

    def __init__(
        self, z_dim: int, c_dim: int, w_dim: int, widths: list[int], scaled_bias: bool = True
    ) -> None:
        super().__init__()
        self.embed = EqualLinear(c_dim, w_dim) if c_dim else None
        bias_gain = LR_MULTIPLIER * (math.sqrt(2) if scaled_bias else 1.0)
        inputs = [z_dim + (w_dim if c_dim else 0), *widths[:-1]]
        self.layers = nn.ModuleList(
            # The raw weights were drawn with a standard deviation of 1 / LR_MULTIPLIER.
            EqualLinear(size, width, LR_MULTIPLIER * math.sqrt(2), bias_gain)
            for size, width in zip(inputs, widths, strict=True)
        )
        for layer in self.layers:
            assert isinstance(layer, EqualLinear)
            nn.init.normal_(layer.weight, std=1 / LR_MULTIPLIER)

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z `[batch, z_dim]` and weights of the classes `[batch, c_dim]` -> w `[batch, w_dim]`, float32."""
        x = normalize(z)
        if self.embed is not None:
            assert c is not None
            x = torch.cat([x, normalize(self.embed(c))], dim=1)
        for layer in self.layers:
            # Positively homogeneous: the gain of sqrt(2) after the activation is in the layer's factors.
            x = F.leaky_relu(layer(x), SLOPE)
        return x
