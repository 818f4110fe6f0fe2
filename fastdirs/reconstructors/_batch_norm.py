"""Batch normalisation that also trains where a batch holds one value of each channel."""

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class _OfAnyBatch(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if self.training and input.numel() == self.num_features:
            # One value has no variance, and torch refuses it: the running statistics stand in.
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class BatchNorm1d(_OfAnyBatch, nn.BatchNorm1d):
    """Of features `[batch, channels]`, float; a batch of one is normalised with the running statistics."""


class BatchNorm2d(_OfAnyBatch, nn.BatchNorm2d):
    """Of pictures `[batch, channels, height, width]`, float; one pixel alone with the running statistics."""
