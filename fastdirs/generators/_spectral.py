"""Layers whose weights are divided by their spectral norm, and what both BigGAN families build from them."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.errors import CheckpointError
from fastdirs.generators import Generator
from fastdirs.generators._layout import Source


def power_step(matrix: Tensor, u: Tensor, eps: float) -> Tensor:
    """The spectral norm that one step of power iteration sees.

    Args:
        matrix: Weights. `[outputs, inputs]`, float32.
        u: Where the iteration stands; need not be of unit length. `[outputs]`, float32.
        eps: Smallest length that a vector is divided by.

    Returns:
        A scalar `[]`, at most the exact norm.

    Source:
        Miyato et al. 2018, algorithm 1; BigGAN-PyTorch takes this step in evaluation mode too, without
        keeping its result.
    """
    v = F.normalize(u[None] @ matrix, eps=eps)
    image = v @ matrix.T
    return (image @ F.normalize(image, eps=eps).T).squeeze()


class _Spectral(nn.Module):
    """Raw weights, the vectors kept from training, and the norm that follows from them.

    The norm is a number, computed when weights are loaded: half precisions round the weights, not the norm.
    """

    bias: nn.Parameter | None
    u: Tensor
    v: Tensor

    def __init__(self, shape: tuple[int, ...], bias: bool, eps: float | None, kept: int | None) -> None:
        super().__init__()
        outputs, inputs = shape[0], math.prod(shape[1:])
        self.eps = eps
        self.kept = kept
        # What is random keeps to a spread of outputs that the norms around it can be set for: `spread`.
        self.spread = inputs / (inputs + outputs)
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.register_buffer("u", F.normalize(torch.randn(outputs), dim=0))
        if eps is None:
            matrix = self.weight.detach().flatten(1)
            self.register_buffer("v", F.normalize(self.u @ matrix, dim=0))
            self.u.copy_(F.normalize(matrix @ self.v, dim=0))
        self.sigma = 1.0
        self.update_sigma()
        self.register_load_state_dict_post_hook(_update)  # type: ignore[no-untyped-call]

    def update_sigma(self) -> None:
        """Compute the norm again, after the weights were changed in place; loading does so by itself."""
        if self.weight.is_meta:
            return
        with torch.no_grad():
            matrix = self.weight.flatten(1)
            if self.eps is None:
                self.sigma = float(torch.dot(self.u, torch.mv(matrix, self.v)))
            else:
                self.sigma = float(power_step(matrix, self.u, self.eps))

    def _raw(self) -> tuple[Tensor, Tensor | None]:
        """Weights and bias of the outputs that are kept."""
        if self.kept is None:
            return self.weight, self.bias
        return self.weight[: self.kept], None if self.bias is None else self.bias[: self.kept]

    def normalised(self) -> Tensor:
        """The kept weights divided by their norm `[outputs, inputs, ...]`, float32."""
        # In float64: they are rounded once.
        return (self._raw()[0].detach().double() / self.sigma).float()

    def _folded_into(self, plain: nn.Conv2d | nn.Linear) -> nn.Module:
        bias = self._raw()[1]
        plain.weight = nn.Parameter(self.normalised(), requires_grad=False)
        plain.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
        return plain.train(self.training)


def _update(module: nn.Module, keys: object) -> None:
    assert isinstance(module, _Spectral)
    module.update_sigma()


def normalised_weight(layer: nn.Module) -> Tensor:
    """What a layer multiplies by, whether it is normalised or its plain copy: `[outputs, inputs, ...]`."""
    return layer.normalised() if isinstance(layer, _Spectral) else layer.get_parameter("weight").detach()


class SpectralLinear(_Spectral):
    """A linear layer, spectrally normalised.

    Args:
        inputs: Size of the input.
        outputs: Size of the output.
        bias: Whether a bias is added, which is not normalised.
        eps: Of `power_step`; None: the norm is `u . W v`, as torch's spectral norm has it in evaluation mode.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True, eps: float | None = None) -> None:
        super().__init__((outputs, inputs), bias, eps, None)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, inputs]` -> `[batch, outputs]`."""
        return F.linear(x / self.sigma, *self._raw())

    def folded(self) -> nn.Module:
        """The same as a plain layer."""
        outputs, inputs = self.weight.shape
        return self._folded_into(nn.Linear(inputs, outputs, device="meta"))


class SpectralConv2d(_Spectral):
    """A convolution that keeps the size of the picture, spectrally normalised.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the weights.
        kernel: Odd size of the kernel, in pixels.
        bias: Whether a bias is added, which is not normalised.
        eps: Of `power_step`; None: the norm is `u . W v`, as torch's spectral norm has it in evaluation mode.
        kept: How many of the first output channels are wanted; None = all.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        bias: bool = True,
        eps: float | None = None,
        kept: int | None = None,
    ) -> None:
        super().__init__((outputs, inputs, kernel, kernel), bias, eps, kept)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, inputs, height, width]` -> `[batch, kept outputs, height, width]`."""
        return F.conv2d(x / self.sigma, *self._raw(), padding=self.weight.shape[-1] // 2)

    def folded(self) -> nn.Module:
        """The same as a plain layer."""
        outputs, inputs, kernel, _ = self._raw()[0].shape
        return self._folded_into(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, device="meta"))


class SelfAttention(nn.Module):
    """Attention of each pixel to the others, at half the resolution; added to the features.

    Args:
        channels: Channels of the features.
        eps: Of the convolutions.

    Source:
        Zhang et al. 2019 (SAGAN), section 3, with pooling as in BigGAN-PyTorch.
    """

    def __init__(self, channels: int, eps: float | None = None) -> None:
        super().__init__()
        self.theta = SpectralConv2d(channels, channels // 8, 1, bias=False, eps=eps)
        self.phi = SpectralConv2d(channels, channels // 8, 1, bias=False, eps=eps)
        self.g = SpectralConv2d(channels, channels // 2, 1, bias=False, eps=eps)
        self.o = SpectralConv2d(channels // 2, channels, 1, bias=False, eps=eps)
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Features `[batch, channels, height, width]` -> the same with what they attend to."""
        height, width = x.shape[2:]
        query = self.theta(x).flatten(2)
        key = F.max_pool2d(self.phi(x), 2).flatten(2)
        value = F.max_pool2d(self.g(x), 2).flatten(2)
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        seen: Tensor = self.o((value @ weights.transpose(1, 2)).reshape(-1, value.shape[1], height, width))
        return x + self.gamma * seen


def scale_and_offset(
    x: Tensor, mean: Tensor, variance: Tensor, gain: Tensor, offset: Tensor, eps: float
) -> Tensor:
    """Batch norm with given statistics, in one pass over the features.

    Args:
        x: Features. `[batch, channels, height, width]`, float32.
        mean: `[channels]` or `[batch, channels]`, float32.
        variance: `[channels]` or `[batch, channels]`, float32.
        gain: `[batch, channels]` or `[1, channels]`, float32.
        offset: `[batch, channels]` or `[1, channels]`, float32.
        eps: Added to the variance.

    Returns:
        `gain * (x - mean) / sqrt(variance + eps) + offset`. `[batch, channels, height, width]`, float32.
    """
    scale = gain * (variance + eps).rsqrt()
    offset = offset - mean * scale
    return torch.addcmul(offset[:, :, None, None], x, scale[:, :, None, None])


def double(x: Tensor) -> Tensor:
    """Twice the size, pixel by pixel: `[batch, channels, height, width]` -> `[..., 2 height, 2 width]`."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def doubled(convolution: SpectralConv2d) -> nn.Sequential:
    """A convolution of twice the size, in the form that lowerings look for."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution)


def check_norms(generator: Generator, sources: Mapping[str, Source], path: Path) -> None:
    """Refuse weights that cannot be normalised.

    Args:
        generator: With its weights.
        sources: Where in the checkpoint each tensor stands, for the message.
        path: The checkpoint.

    Raises:
        CheckpointError: A norm is zero or not finite.
    """
    for name, module in generator.named_modules():
        if isinstance(module, _Spectral) and not 0 < abs(module.sigma) < math.inf:
            source = sources[f"{name}.weight"]
            raise CheckpointError(
                f"{path.name} holds {source if isinstance(source, str) else source[0]!r} whose spectral norm "
                f"is {module.sigma:g}, so that it cannot be divided by it. The file is damaged: download or "
                "save it again."
            )
