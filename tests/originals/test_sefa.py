"""SeFa finds in an original's checkpoint the directions that the authors' code found."""

import re

import torch

from fastdirs.checkpoints import read_checkpoint
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


@every_original(having=lambda original: "factor_singular_values" in original.names)
def test_the_other_set_of_weights_is_the_one_of_rosinality(original: Original) -> None:
    generator = load_generator(original.source)
    settings = {"weights": "rosinality", "normalize": "none"}
    bank = discover(generator, "sefa", num_directions=10, settings=settings)
    values = original.expected["factor_singular_values"].double()
    torch.testing.assert_close(bank.scores.double(), values[:10] ** 2, rtol=1e-5, atol=0)
    apart = (-values.diff() / values[:-1] > SEPARATED)[:10]
    apart[1:] &= apart[:-1].clone()
    assert apart.sum() >= 4
    found, wanted = bank.directions[:, 0], original.expected["factor_eigvec_top10_signfixed"].T
    found = found * (found * wanted).sum(1, keepdim=True).sign()
    torch.testing.assert_close(found[apart], wanted[apart].float(), rtol=0, atol=1e-4)


def _is_rosinality(original: Original) -> bool:
    return "rosinality" in str(original.meta.get("format"))


@every_original(having=_is_rosinality)
def test_it_is_a_decomposition_of_the_tensors_in_the_file(original: Original) -> None:
    checkpoint = read_checkpoint(original.weights)
    # By the names in the file: every modulation, but of the images only the first.
    pattern = re.compile(r"(.*\.)?(conv1|to_rgb1|convs\.\d+)\.conv\.modulation\.weight")
    rows = [tensor for name, tensor in checkpoint.tensors.items() if pattern.fullmatch(name)]
    generator = load_generator(original.source)
    assert len(rows) == generator.num_layers
    _, values, vectors = torch.linalg.svd(torch.cat(rows).double(), full_matrices=False)
    settings = {"weights": "rosinality", "normalize": "none"}
    bank = discover(generator, "sefa", num_directions=4, settings=settings)
    torch.testing.assert_close(bank.scores.double(), values[:4] ** 2, rtol=1e-5, atol=0)
    cosines = (bank.directions[:, 0].double() * vectors[:4]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
