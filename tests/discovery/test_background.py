import pytest
import torch
from torch import nn

from fastdirs.discovery import discover
from fastdirs.errors import SelectionError, TrainingError
from fastdirs.generators import Generator
from fastdirs.mask_scores import rank_removers
from fastdirs.module_generator import ModuleGenerator
from fastdirs.runtime import open_runtime

QUICK = {"steps": "40", "batch": "8", "lr": "0.1"}


def test_what_becomes_lighter_is_the_object(small_dcgan: Generator) -> None:
    steps: list[tuple[int, int]] = []
    bank = discover(small_dcgan, "background", 2, settings=QUICK, progress=lambda *s: steps.append(s))
    random = discover(small_dcgan, "random", 8)
    assert steps[-1] == (80, 80)
    assert bank.scores[0] >= bank.scores[1]
    with open_runtime(small_dcgan, "eager") as runtime:
        found, chance = (
            rank_removers(runtime, each, epsilon=4.0, rules=["lightening"]).removers[0]
            for each in (bank, random)
        )
    assert found.score > 1.3 * chance.score


def test_directions_are_unit_vectors_at_right_angles(small_dcgan: Generator) -> None:
    vectors = discover(small_dcgan, "background", 3, settings={**QUICK, "steps": "3"}).directions[:, 0]
    assert torch.allclose(vectors @ vectors.T, torch.eye(3), atol=1e-5)


def test_the_same_search_finds_the_same(small_dcgan: Generator) -> None:
    first, again = (
        discover(small_dcgan, "background", 1, settings={**QUICK, "steps": "4"}) for _ in range(2)
    )
    other = discover(small_dcgan, "background", 1, settings={**QUICK, "steps": "4", "seed": "1"})
    assert torch.equal(first.directions, again.directions)
    assert not torch.allclose(first.directions, other.directions, atol=1e-3)


@pytest.mark.parametrize("name", ["classes", "conditional", "layered"])
def test_classes_and_mappings(name: str, request: pytest.FixtureRequest) -> None:
    generator: Generator = request.getfixturevalue(name)
    bank = discover(generator, "background", 1, settings={**QUICK, "steps": "2"})
    assert torch.isfinite(bank.directions).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": "0"}, "steps=0 is out of range"),
        ({"batch": "1"}, "batch=1 is out of range"),
        ({"epsilon": "nan"}, "epsilon=nan is out of range"),
        ({"lr": "0"}, "lr=0 is out of range"),
        ({"seed": "-1"}, "seed=-1 is out of range"),
    ],
)
def test_bad_settings(settings: dict[str, str], message: str, small_dcgan: Generator) -> None:
    with pytest.raises(SelectionError, match=message):
        discover(small_dcgan, "background", 1, settings=settings)


class _NoNumbers(nn.Module):
    z_dim = 4

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (z.sum(dim=1) * float("nan"))[:, None, None, None].expand(-1, 3, 8, 8)


def test_images_that_are_no_numbers() -> None:
    with pytest.raises(TrainingError, match="not finite any more at step 0"):
        discover(ModuleGenerator(_NoNumbers()), "background", 1, settings=QUICK)
