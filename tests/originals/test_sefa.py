"""SeFa finds in an original's checkpoint the directions that the authors' code found."""

import re

import torch

from fastdirs.discovery import discover
from fastdirs.loading import load_generator
from tests.originals.conftest import Original, every_original

# Of neighbouring eigenvalues, relative to the larger: what is closer shares a plane, not directions.
SEPARATED = 1e-3


def tags(original: Original) -> list[str]:
    """What the authors' code factorised: "all" layers, or a selection."""
    return [m[1] for m in (re.fullmatch(r"sefa_(\w+)_boundaries", name) for name in original.names) if m]


@every_original(having=lambda original: bool(tags(original)))
def test_directions_are_the_published_ones(original: Original) -> None:
    generator = load_generator(original.source)
    for tag in tags(original):
        layers = [int(layer) for layer in original.expected[f"sefa_{tag}_layers"]]
        bank = discover(generator, "sefa", num_directions=8, layers=layers)
        eigenvalues = original.expected[f"sefa_{tag}_eigenvalues"].double().sort(descending=True).values
        torch.testing.assert_close(bank.scores.double(), eigenvalues[:8], rtol=1e-4, atol=0)
        apart = (-eigenvalues.diff() / eigenvalues[:-1] > SEPARATED)[:8]
        apart[1:] &= apart[:-1].clone()
        assert apart.sum() >= 4
        wanted = original.expected[f"sefa_{tag}_top8_sorted_signfixed"]
        found = bank.directions[:, layers]
        assert torch.equal(found, found[:, :1].expand_as(found))
        found = found[:, 0] * (found[:, 0] * wanted).sum(1, keepdim=True).sign()
        torch.testing.assert_close(found[apart], wanted[apart].float(), rtol=0, atol=1e-4)
        others = [layer for layer in range(generator.num_layers) if layer not in layers]
        assert not bank.directions[:, others].any()
