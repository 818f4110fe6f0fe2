"""Edits of some layers: what lies before them is rendered once for a seed, and nothing else changes."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdirs.artifact import Artifact
from fastdirs.bank_editing import restrict
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.errors import SelectionError
from fastdirs.gallery import traverse
from fastdirs.generators import Generator
from fastdirs.images import decode
from fastdirs.traversal import Plan, Portion, portions
from fastdirs.writers import Gallery

SETTINGS: dict[str, Any] = {
    "seeds": (0, 5, 9, 4, 7),
    "epsilons": (-2.0, 0.0, 1.5, 3.0),
    "writers": ("strips",),
    "image_format": "png",
    "batch_size": 3,
    "precision": "f32",
}


@pytest.fixture(scope="module")
def bank(layered: Generator) -> DirectionBank:
    """Directions of all layers, of the last two, of the last, and of the second."""
    found = discover(layered, "random", num_directions=4)
    kept = torch.tensor([[1.0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 1, 0]])
    return replace(found, directions=found.directions * kept[:, :, None])


def _pictures(gallery: Gallery) -> dict[str, np.ndarray]:
    files = sorted((gallery.folder / "strips").rglob("*.png"))
    return {path.relative_to(gallery.folder).as_posix(): decode(path.read_bytes()) for path in files}


def _traverse(
    source: Artifact | Generator, bank: DirectionBank, out: Path, **changes: object
) -> tuple[dict[str, np.ndarray], list[Portion]]:
    planned: list[Portion] = []
    gallery = traverse(
        source, bank, out, opened=lambda runtime, each: planned.extend(each), **{**SETTINGS, **changes}
    )
    return _pictures(gallery), planned


@pytest.mark.parametrize("backend", ["ort", "openvino_cpu"])
def test_pixels_are_those_of_the_whole_graph(
    backend: str, layered_artifact: Artifact, bank: DirectionBank, tmp_path: Path
) -> None:
    # Without an unshifted image, which each portion would render anew, every cut pays.
    steps = {"epsilons": (-2.0, 0.5, 1.5, 3.0), "backend": backend}
    found, planned = _traverse(layered_artifact, bank, tmp_path / "shared", **steps)
    assert [(portion.stage, portion.plan.directions) for portion in planned] == [
        (0, (0,)),
        (1, (1, 3)),
        (2, (2,)),
    ]
    graph = {**layered_artifact.content["graph"], "reads": []}
    uncut = Artifact(layered_artifact.folder, {**layered_artifact.content, "graph": graph})
    wanted, (portion,) = _traverse(uncut, bank, tmp_path / "whole", **steps)
    assert portion.stage == 0
    assert list(found) == list(wanted)
    assert len(found) == 5 * 4
    for name, picture in wanted.items():
        np.testing.assert_array_equal(found[name], picture, err_msg=name)


def test_the_stages_before_are_run_once_for_each_seed(
    layered: Generator, bank: DirectionBank, tmp_path: Path
) -> None:
    rows: list[list[int]] = [[], [], []]
    handles = [
        stage.register_forward_hook(lambda _, inputs, output, at=at: rows[at].append(len(output)))
        for at, stage in enumerate(layered.stages)
    ]
    try:
        _, (portion,) = _traverse(layered, bank, tmp_path / "out", directions=(2,))
    finally:
        for handle in handles:
            handle.remove()
    plan = portion.plan
    # Five seeds of 4 images each, in batches of 3; the stages before the last one, three seeds at a time. Two
    # more rows are the question of what the state is.
    assert rows[2] == [3] * 7
    assert [sum(each) - 2 for each in rows[:2]] == [6, 6]
    # The sixth row fills up the second batch of seeds.
    assert portion.evaluations(3) == plan.num_rendered + 6 * 2


def test_layers_that_are_asked_for(layered_artifact: Artifact, bank: DirectionBank, tmp_path: Path) -> None:
    found, (portion,) = _traverse(layered_artifact, bank, tmp_path / "a", layers=(2,), directions=(0, 1))
    assert portion.stage == 2
    masked = replace(bank, directions=bank.directions * torch.tensor([0.0, 0, 1])[:, None])
    wanted, _ = _traverse(layered_artifact, masked, tmp_path / "b", directions=(0, 1))
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], picture) for name, picture in wanted.items())
    all_layers, _ = _traverse(layered_artifact, bank, tmp_path / "c", directions=(0, 1))
    assert any(not np.array_equal(found[name], picture) for name, picture in all_layers.items())
    with pytest.raises(SelectionError, match="Direction 3 shifts layers 1, none of those asked for"):
        _traverse(layered_artifact, bank, tmp_path / "d", layers=(2,))
    with pytest.raises(SelectionError, match=r"There is no layer 3\. The generator has 3: 0 to 2"):
        restrict(bank, (3,), (0,))


def test_a_run_that_stopped_goes_on_in_every_portion(
    layered_artifact: Artifact, bank: DirectionBank, tmp_path: Path
) -> None:
    _traverse(layered_artifact, bank, tmp_path / "whole", backend="ort")
    files = sorted((tmp_path / "whole" / "strips").rglob("*.png"))
    bytes_of = {path: path.read_bytes() for path in files}
    for gone in (files[:3], files[7:9], files[-1:], files):
        for path in gone:
            path.unlink()
        _traverse(layered_artifact, bank, tmp_path / "whole", backend="ort")
        assert {path: path.read_bytes() for path in files} == bytes_of


def test_progress_reaches_the_end_once(
    layered_artifact: Artifact, bank: DirectionBank, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    _traverse(layered_artifact, bank, tmp_path / "out", progress=lambda *step: seen.append(step))
    done = [step[1] for step in seen]
    assert all(a <= b for a, b in pairwise(done))
    assert seen[-1] == ("rendering", 5 * 4 * 4, 5 * 4 * 4)


def _plan(directions: tuple[int, ...], batch_size: int = 2, seeds: int = 4) -> Plan:
    return Plan(seeds=tuple(range(seeds)), directions=directions, epsilons=(-1.0, 1.0), batch_size=batch_size)


def test_portions_go_from_the_earliest_stage_to_the_last() -> None:
    found = portions(_plan((7, 1, 4, 2)), {7: 7, 1: 0, 4: 7, 2: 4}.__getitem__, 8)
    assert [(each.stage, each.plan.directions) for each in found] == [(0, (1,)), (4, (2,)), (7, (7, 4))]
    assert sum(each.plan.num_images for each in found) == _plan((7, 1, 4, 2)).num_images


def test_a_cut_that_is_not_worth_it_is_not_made() -> None:
    few = _plan((0, 1, 2), seeds=1)
    # Three directions of two images are three batches: nothing is cut.
    assert portions(few, {0: 5, 1: 6, 2: 7}.__getitem__, 8) == [Portion(0, few)]
    # Five directions are five batches; all of them begin where the first of them does.
    some = _plan((0, 1, 2, 3, 4), seeds=1)
    assert portions(some, {0: 2, 1: 3, 2: 4, 3: 5, 4: 6}.__getitem__, 8) == [Portion(2, some)]


def test_portions_never_cost_more_than_the_whole() -> None:
    # Each portion renders the unshifted images anew, which here costs more than the cuts would save.
    plan = Plan(seeds=tuple(range(64)), directions=(0, 1, 2), epsilons=(0.0, 3.0), batch_size=16)
    assert portions(plan, lambda index: index, 8) == [Portion(0, plan)]
    for steps in range(1, 6):
        for count in range(1, 8):
            epsilons = tuple(float(step) for step in range(steps))
            plan = Plan(
                seeds=tuple(range(9)), directions=tuple(range(count)), epsilons=epsilons, batch_size=2
            )
            found = portions(plan, lambda index: index, count)
            assert sum(each.evaluations(count) for each in found) <= Portion(0, plan).evaluations(count)
            assert sorted(d for each in found for d in each.plan.directions) == list(range(count))
            assert all(each.stage <= min(each.plan.directions) for each in found)


@pytest.mark.parametrize(("index", "layers"), [(0, (0, 1, 2)), (1, (1, 2)), (2, (2,)), (3, (1,))])
def test_the_layers_of_a_direction(bank: DirectionBank, index: int, layers: tuple[int, ...]) -> None:
    assert bank.edited_layers(index) == layers


def test_the_layers_of_a_path(curved_bank: DirectionBank) -> None:
    assert curved_bank.edited_layers(0) == (0,)
