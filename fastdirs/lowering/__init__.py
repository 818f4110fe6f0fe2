"""Rewrites of a generator into an equal one that deploys better: a pure rewrite per file, chosen by name."""

import copy
from collections.abc import Callable, Sequence

from torch import nn

from fastdirs.generators import FeatureStage, Generator, LatentStage
from fastdirs.registry import Registry

Lowering = Callable[[Generator], Generator]
LOWERINGS: Registry[Lowering] = Registry("fastdirs.lowering", "LOWERING", "lowering")

# Which form pays depends on the runtime: an export measures the last two, since "plain" never beats "folded".
FORMS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "folded": ("fold_spectral_norm", "fold_batch_norm", "first_layer_as_product"),
    "subpixel": (
        "fold_spectral_norm",
        "fold_batch_norm",
        "first_layer_as_product",
        "transposed_as_subpixel",
        "nearest_as_subpixel",
    ),
}


def lower(generator: Generator, names: Sequence[str]) -> Generator:
    """A copy of a generator after the named rewrites; the original is left alone and the identity is kept.

    Args:
        generator: Any generator; rewrites that find nothing to do change nothing.
        names: Registered lowerings, in order.

    Raises:
        UnknownNameError: No such lowering.
    """
    for name in names:
        generator = LOWERINGS.load(name)(generator)
    return generator


def copied(generator: Generator) -> Generator:
    """A copy to rewrite, which keeps the identity of the original."""
    # Asked for before anything is rewritten.
    identity = generator.weights_sha256
    copy_of_it = copy.deepcopy(generator)
    assert copy_of_it.weights_sha256 == identity
    return copy_of_it


def rewrite_bodies(
    generator: Generator, rewrite: Callable[[list[nn.Module], bool], list[nn.Module]]
) -> Generator:
    """A copy of a generator with the layer sequence of each stage rewritten.

    Args:
        generator: The generator to copy.
        rewrite: (layers, whether they read a 1x1 picture of latents) -> layers.
    """
    lowered = copied(generator)
    for stage in lowered.stages:
        if isinstance(stage, LatentStage | FeatureStage):
            stage.body = nn.Sequential(*rewrite(list(stage.body), isinstance(stage, LatentStage)))
    return lowered.eval().requires_grad_(False)
