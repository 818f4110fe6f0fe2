import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.errors import MaskError
from fastdirs.mask_dataset import SHARDS_FOLDER
from fastdirs.mask_filters import Filters
from fastdirs.mask_pairs import PairSource
from fastdirs.mask_settings import MaskSettings
from fastdirs.mask_shards import ShardPlan, _Filling, fill_shards, shard_name
from fastdirs.runtime import open_runtime
from fastdirs.shards import read_shard

PLAN = ShardPlan(count=25, per_shard=10, first_seed=7, image_format="png")
# About half of the candidates make a pair.
HALF = MaskSettings(direction=3, epsilon=4.0, filters=Filters(min_area=0.05, max_area=0.5))


@pytest.fixture(scope="module")
def source(toy_artifact: Artifact, toy_bank: DirectionBank) -> Iterator[PairSource]:
    with (
        open_runtime(toy_artifact, "ort", "f32", streaming=True) as runtime,
        PairSource(runtime, toy_bank, HALF, 4) as pairs,
    ):
        yield pairs


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / SHARDS_FOLDER).iterdir()}


def test_every_shard_has_seeds_of_its_own() -> None:
    assert PLAN.num_shards == 3
    assert [PLAN.size(shard) for shard in range(3)] == [10, 10, 5]
    assert PLAN.seeds(0) == range(7, 2007)
    assert PLAN.seeds(2) == range(4007, 6007)
    huge = ShardPlan(count=10**9, per_shard=1000, first_seed=0, image_format="jpg")
    assert huge.seeds(huge.num_shards - 1).stop == 2 * 10**11
    assert shard_name(12) == "000012"


def test_the_pairs_are_the_first_ones_that_pass(source: PairSource, tmp_path: Path) -> None:
    added: list[int] = []
    fill_shards(source, PLAN, range(3), tmp_path, added.append)
    assert sum(added) == 25
    for shard in range(3):
        facts = json.loads((tmp_path / SHARDS_FOLDER / f"{shard_name(shard)}.json").read_text())
        seeds = [pair.seed for pair in read_shard(tmp_path / SHARDS_FOLDER / facts["name"])]
        tried = list(PLAN.seeds(shard))[: facts["tried"]]
        tried += [tried[-1]] * (-len(tried) % 4)
        wanted = []
        for first in range(0, len(tried), 4):
            batch = tried[first : first + 4]
            outputs = source.session.run_all(source.inputs(batch))
            wanted += [pair.seed for pair in source.candidates(batch, outputs).pairs()]
        assert seeds == wanted[: PLAN.size(shard)]
        assert seeds[-1] == facts["seeds"][1] == PLAN.seeds(shard)[facts["tried"] - 1]
        assert facts["count"] == len(seeds) == sum(facts["areas"])
        assert facts["tried"] == len(seeds) + sum(facts["rejected"].values())
        assert facts["rejected"], "half of them are"
        # A candidate is rejected for one reason, and may have failed for several.
        assert all(facts["failing"][reason] >= number for reason, number in facts["rejected"].items())


def test_shards_are_the_same_one_by_one_and_together(source: PairSource, tmp_path: Path) -> None:
    fill_shards(source, PLAN, [0, 1, 2], tmp_path / "together")
    for shard in (2, 0, 1):
        fill_shards(source, PLAN, [shard], tmp_path / "alone")
    assert read(tmp_path / "together") == read(tmp_path / "alone")


def test_nothing_to_fill(source: PairSource, tmp_path: Path) -> None:
    fill_shards(source, PLAN, [], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_whose_candidates_run_out(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    none = MaskSettings(direction=3, epsilon=4.0, filters=Filters(min_area=0.97, max_area=0.98))
    plan = ShardPlan(count=2, per_shard=2, first_seed=0, image_format="png")
    many = ShardPlan(count=500, per_shard=500, first_seed=0, image_format="png")
    with (
        open_runtime(toy_artifact, "ort", "f32", streaming=True) as runtime,
        PairSource(runtime, toy_bank, none, 4) as pairs,
    ):
        with pytest.raises(
            MaskError, match=r"Of 1,\d\d\d candidates only 0 make a pair .*small.*At least 1%"
        ):
            fill_shards(pairs, plan, [0], tmp_path)
        # Long before its 100,000 candidates are tried.
        with pytest.raises(MaskError, match=r"Of 1,\d\d\d candidates"):
            fill_shards(pairs, many, [0], tmp_path)
    assert not list(tmp_path.rglob("*.tar"))


def test_what_is_a_little_above_the_lowest_acceptance_does_not_fail_by_chance() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        filling = _Filling(0, 50, range(10_000))
        while not filling.full():
            accepted = random.random() < 0.02
            filling.settle([({} if accepted else None, () if accepted else ("empty",), 0.3)])
            assert not filling.hopeless


def test_what_is_far_below_it_fails_early() -> None:
    filling = _Filling(0, 50, range(10_000))
    while not filling.hopeless:
        accepted = filling.tried % 500 == 0
        filling.settle([({} if accepted else None, () if accepted else ("empty",), 0.3)])
    assert filling.tried < 2500
