import json
from pathlib import Path

import pytest
import torch

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.errors import BankError, OutputError, SelectionError, UnknownNameError
from fastdirs.generators import Generator
from fastdirs.generators.toy import ATTRIBUTES, Toy
from fastdirs.images import decode
from fastdirs.manifest import is_manifest
from fastdirs.mask_filters import Filters
from fastdirs.mask_scores import KIND, PAGE_FILE, RANKING_FILE, SHEET_FILE, rank_removers, save_ranking
from fastdirs.runtime import open_runtime
from fastdirs.shift_space import ShiftSpace


@pytest.fixture(scope="module")
def true_bank(toy: Generator) -> DirectionBank:
    assert isinstance(toy, Toy)
    vectors = toy.true_directions()[:, 0]
    return ShiftSpace(toy, (0,)).bank(vectors, torch.ones(5), "true", {}, labels=ATTRIBUTES, keep_signs=True)


@pytest.mark.parametrize("known", [True, False])
def test_on_the_toy_the_background_is_found(
    known: bool, toy: Generator, true_bank: DirectionBank, toy_bank: DirectionBank
) -> None:
    bank = true_bank if known else toy_bank
    with open_runtime(toy, "eager") as runtime:
        ranking = rank_removers(runtime, bank)
    best, second = ranking.removers[:2]
    cosine = abs(float(bank.shift(best.direction, 1.0)[0] @ true_bank.shift(4, 1.0)[0]))
    assert cosine > 0.99
    assert best.score > 3 * second.score, "and by far"
    # What it finds is the disc.
    assert isinstance(toy, Toy)
    discs = toy.mask(toy.mapping(toy.sample(range(6)))).numpy()
    masks = ranking.masks[0]
    iou = (masks & discs).sum(axis=(1, 2)) / (masks | discs).sum(axis=(1, 2))
    assert iou.mean() > 0.9


def test_a_score_is_what_its_parts_say(toy_artifact: Artifact, toy_bank: DirectionBank) -> None:
    steps: list[tuple[int, int]] = []
    with open_runtime(toy_artifact, "ort", "f32", streaming=True) as runtime:
        ranking = rank_removers(runtime, toy_bank, num_seeds=10, progress=lambda *step: steps.append(step))
    assert steps == [(done, 5) for done in range(1, 6)]
    assert sorted(remover.direction for remover in ranking.removers) == list(range(5))
    scores = [remover.score for remover in ranking.removers]
    assert scores == sorted(scores, reverse=True)
    for remover in ranking.removers:
        for value in (remover.score, remover.separation, remover.polarity, remover.stability, remover.area):
            assert 0 <= value <= 1
        product = remover.separation * remover.polarity * remover.stability
        assert remover.score == pytest.approx(product, abs=1e-4)
        assert remover.stability * 10 == pytest.approx(round(remover.stability * 10), abs=1e-3)


def test_what_may_be_asked_for(toy: Generator, toy_bank: DirectionBank) -> None:
    with open_runtime(toy, "eager") as runtime:
        ranking = rank_removers(
            runtime, toy_bank, epsilon=-2.5, rules=["lightening"], filters=Filters(min_area=0.01), num_seeds=4
        )
        assert {abs(remover.epsilon) for remover in ranking.removers} == {2.5}
        assert {remover.rule for remover in ranking.removers} == {"lightening"}
        assert ranking.content["filters"]["min_area"] == 0.01
        with pytest.raises(SelectionError, match="1 seeds are out of range"):
            rank_removers(runtime, toy_bank, num_seeds=1)
        with pytest.raises(UnknownNameError, match="no mask rule 'dark'"):
            rank_removers(runtime, toy_bank, rules=["dark"])
        with pytest.raises(SelectionError, match=r"[Ee]psilon"):
            rank_removers(runtime, toy_bank, epsilon=1e9)


def test_a_bank_of_another_generator(small_dcgan: Generator, toy_bank: DirectionBank) -> None:
    with open_runtime(small_dcgan, "eager") as runtime, pytest.raises(BankError):
        rank_removers(runtime, toy_bank)


def test_classes(classes: Generator) -> None:
    bank = discover(classes, "random", num_directions=2)
    with open_runtime(classes, "eager") as runtime:
        ranking = rank_removers(runtime, bank, c=1, num_seeds=4)
    assert ranking.content["class"] == 1
    assert len(ranking.removers) == 2


def test_the_folder(toy: Generator, toy_bank: DirectionBank, tmp_path: Path) -> None:
    with open_runtime(toy, "eager") as runtime:
        ranking = rank_removers(runtime, toy_bank, num_seeds=8)
    page = save_ranking(ranking, tmp_path / "ranking", "fastdirs masks <toy>")
    assert page == tmp_path / "ranking" / PAGE_FILE
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 5
    assert "fastdirs masks &lt;toy&gt;" in text
    assert "{{" not in text
    assert is_manifest(tmp_path / "ranking" / RANKING_FILE, KIND)
    content = json.loads((tmp_path / "ranking" / RANKING_FILE).read_text())
    assert [remover["score"] for remover in content["removers"]] == [r.score for r in ranking.removers]
    sheet = decode((tmp_path / "ranking" / SHEET_FILE).read_bytes())
    assert sheet.shape == (5 * 96, 12 * 96, 3), "a row for each: six images, and what the masks keep"
    with pytest.raises(OutputError, match="exists already"):
        save_ranking(ranking, tmp_path / "ranking", "again")
    save_ranking(ranking, tmp_path / "ranking", "again", force=True)
