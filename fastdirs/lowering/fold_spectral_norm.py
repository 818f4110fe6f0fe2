"""Spectral norms are fixed once weights are loaded: divide the weights by them, and keep plain layers."""

from typing import Protocol, runtime_checkable

from torch import nn

from fastdirs.generators import Generator
from fastdirs.lowering import copied


@runtime_checkable
class Foldable(Protocol):
    """A layer that knows the plain layer which it equals."""

    def folded(self) -> nn.Module:
        """The plain layer, with weights of its own."""
        ...


def fold_spectral_norm(generator: Generator) -> Generator:
    """A copy whose normalised layers are plain ones."""
    lowered = copied(generator)
    for parent in list(lowered.stages.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Foldable):
                setattr(parent, name, child.folded())
    return lowered.eval().requires_grad_(False)


LOWERING = fold_spectral_norm
