import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdirs.bank_editing import best, label, label_all, merge, read_names, rename, select, tagged
from fastdirs.directions import DirectionBank, load_bank
from fastdirs.discovery import discover
from fastdirs.errors import BankError, SelectionError, UnknownNameError
from fastdirs.generators import Generator

EPSILONS = [-9.0, -3.0, -0.5, 0.0, 0.25, 2.0, 7.5]


def curved(bank: DirectionBank, *knots: float) -> DirectionBank:
    """Paths that bend to one side."""
    at = torch.tensor(knots)
    straight = bank.directions[:, None] * at[:, None, None]
    return replace(bank, knots=at, directions=straight + 0.1 * at.square()[:, None, None])


# label ---------------------------------------------------------------------------------------------------


def test_everything_that_can_be_said(toy_bank: DirectionBank) -> None:
    bank = label(toy_bank, 3, " smile ", ["face", "mouth", "face"], "Ada", (-4.0, 6.0))
    assert bank.labels[3] == "smile"
    assert bank.tags[3] == ("face", "mouth")
    assert bank.judges[3] == "Ada"
    assert bank.ranges[3].tolist() == [-4.0, 6.0]
    others = [index for index in range(5) if index != 3]
    assert [bank.labels[i] for i in others] == [toy_bank.labels[i] for i in others]
    assert torch.equal(bank.ranges[others], toy_bank.ranges[others])
    assert bank.sha256 == toy_bank.sha256


def test_the_bank_itself_is_left_as_it_was(toy_bank: DirectionBank) -> None:
    before = (toy_bank.labels, toy_bank.tags, toy_bank.ranges.clone())
    label(toy_bank, 0, "x", ["y"], "z", (0.0, 1.0))
    assert (toy_bank.labels, toy_bank.tags) == before[:2]
    assert torch.equal(toy_bank.ranges, before[2])


def test_tags_are_added(toy_bank: DirectionBank) -> None:
    bank = label(label(toy_bank, 1, tags=["face"]), 1, tags=["mouth", "face"])
    assert bank.tags[1] == ("face", "mouth")
    assert bank.labels == toy_bank.labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 5, "name": "x"}, "There is no direction 5"),
        ({"index": 0, "name": " "}, "is no name"),
        ({"index": 0, "name": "x" * 201}, "Expected 1 to 200 characters"),
        ({"index": 0, "tags": ["ok", ""]}, "is no name"),
        ({"index": 0, "limits": (3.0, -3.0)}, "3 to -3 is no range"),
        ({"index": 0, "limits": (0.0, float("nan"))}, "is no range"),
        ({"index": 0, "limits": (-1e9, 1.0)}, "is no range"),
    ],
)
def test_what_cannot_be_said(arguments: dict[str, object], message: str, toy_bank: DirectionBank) -> None:
    with pytest.raises(SelectionError, match=message):
        label(toy_bank, **arguments)


def test_all_of_it_travels_in_the_file(toy_bank: DirectionBank, tmp_path: Path) -> None:
    bank = label(toy_bank, 2, "hair", ["head"], "Grace", (-1.0, 2.0))
    select(bank, [2]).save(tmp_path / "bank.safetensors")
    again = load_bank(tmp_path / "bank.safetensors")
    assert (again.labels, again.tags, again.judges) == (("hair",), (("head",),), ("Grace",))
    assert again.ranges.tolist() == [[-1.0, 2.0]]


# Names from an atlas -------------------------------------------------------------------------------------


def names(bank: DirectionBank, **labels: str) -> dict[str, object]:
    """What the page downloads: every direction that it shows, named anew or not."""
    given = {str(index): name for index, name in enumerate(bank.labels)}
    given.update({key.removeprefix("n"): name for key, name in labels.items()})
    return {"generator_sha256": bank.generator["weights_sha256"], "labels": given}


def test_names_of_an_atlas(toy_bank: DirectionBank) -> None:
    bank, changed = label_all(toy_bank, names(toy_bank, n1="hair", n4="smile"), "Ada")
    assert changed == [1, 4]
    assert bank.labels == ("direction 0", "hair", "direction 2", "direction 3", "smile")
    # Whoever gave the two names did not judge the others.
    assert bank.judges == ("", "Ada", "", "", "Ada")


def test_names_of_another_generator(toy_bank: DirectionBank) -> None:
    wrong = {**names(toy_bank), "generator_sha256": "0" * 64}
    with pytest.raises(BankError, match=r"weights 000000000000, but the bank was made for toy"):
        label_all(toy_bank, wrong)


@pytest.mark.parametrize(
    "content", [{}, {"labels": ["a"]}, {"labels": {"first": "a"}}, {"labels": {"-1": "a"}}]
)
def test_something_else_than_names(content: dict[str, object], toy_bank: DirectionBank) -> None:
    with pytest.raises(BankError, match="no names of directions"):
        label_all(toy_bank, content)


def test_names_of_directions_that_are_not_there(toy_bank: DirectionBank) -> None:
    with pytest.raises(SelectionError, match="There is no direction 9"):
        label_all(toy_bank, names(toy_bank, n9="x"))


def test_reading_names(toy_bank: DirectionBank, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(names(toy_bank, n0="höhe")))
    assert label_all(toy_bank, read_names(path))[0].labels[0] == "höhe"
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(BankError, match="cannot be read as names"):
            read_names(path)
    path.write_text("[1, 2]")
    with pytest.raises(BankError, match="no names of directions"):
        label_all(toy_bank, read_names(path))
    with pytest.raises(BankError, match="cannot be read as names"):
        read_names(tmp_path / "nothing.json")


# rename, select ------------------------------------------------------------------------------------------


def test_every_direction_of_a_name_is_renamed(toy_bank: DirectionBank) -> None:
    twice = replace(toy_bank, labels=("hair", "a", "hair", "b", "c"))
    bank, changed = rename(twice, "hair", "beard")
    assert changed == [0, 2]
    assert bank.labels == ("beard", "a", "beard", "b", "c")
    with pytest.raises(UnknownNameError, match=r"'haor'. Did you mean 'hair'"):
        rename(twice, "haor", "x")


@pytest.mark.parametrize("bend", [False, True])
def test_chosen_directions_keep_everything(bend: bool, toy_bank: DirectionBank) -> None:
    whole = label(curved(toy_bank, -6, 0, 6) if bend else toy_bank, 4, "smile", ["face"], "Ada", (-1.0, 3.0))
    some = select(whole, [4, 1])
    assert len(some) == 2
    for place, index in enumerate([4, 1]):
        assert torch.equal(some.shifts(place, EPSILONS), whole.shifts(index, EPSILONS))
        assert (some.scales[place], some.scores[place]) == (whole.scales[index], whole.scores[index])
    assert (some.labels, some.tags, some.judges) == (("smile", "direction 1"), (("face",), ()), ("Ada", ""))
    assert some.ranges[0].tolist() == [-1.0, 3.0]
    assert some.settings == {**whole.settings, "selected": [4, 1]}
    # Counted in the first bank, however often one chooses.
    assert select(some, [0]).settings["selected"] == [4]


def test_what_was_recorded_of_each_direction_is_chosen_too(toy_bank: DirectionBank) -> None:
    recorded = {"lengths": [1.0, 2.0, 3.0, 4.0, 5.0], "lat_stdev": [5, 4, 3, 2, 1], "layers": [0, 1, 2, 3, 4]}
    some = select(replace(toy_bank, settings=recorded), [4, 1])
    assert some.settings == {
        "lengths": [5.0, 2.0], "lat_stdev": [1, 4], "layers": [0, 1, 2, 3, 4], "selected": [4, 1],
    }  # fmt: skip
    # Of one direction alone, GANSpace records a number.
    alone = {"lengths": "unknown", "lat_stdev": 0.5}
    assert select(replace(toy_bank, settings=alone), [2]).settings == {**alone, "selected": [2]}


def test_what_cannot_be_chosen(toy_bank: DirectionBank) -> None:
    with pytest.raises(SelectionError, match="No direction is chosen"):
        select(toy_bank, [])
    with pytest.raises(SelectionError, match="There is no direction 5"):
        select(toy_bank, [0, 5])


def test_by_tag_and_by_score(toy_bank: DirectionBank) -> None:
    bank = label(label(toy_bank, 3, tags=["light"]), 1, tags=["light", "face"])
    assert tagged(bank, "light") == [1, 3]
    with pytest.raises(UnknownNameError, match=r"'lihgt'. Did you mean 'light'"):
        tagged(bank, "lihgt")
    scored = replace(bank, scores=torch.tensor([1.0, 5.0, 2.0, 5.0, 0.0]))
    assert best(scored, 3) == [1, 3, 2]
    for count in (0, 6):
        with pytest.raises(SelectionError, match="out of range"):
            best(scored, count)


# merge ---------------------------------------------------------------------------------------------------


def test_straight_banks_stay_straight(toy: Generator, toy_bank: DirectionBank) -> None:
    other = replace(label(toy_bank, 0, "hair", ["head"], "Ada"), method="voynov")
    bank = merge([toy_bank, other])
    assert len(bank) == 10
    assert not bank.curved
    assert torch.equal(bank.directions, torch.cat([toy_bank.directions] * 2))
    assert (bank.labels[5], bank.tags[5], bank.judges[5]) == ("hair", ("head",), "Ada")
    assert bank.method == "sefa+voynov"
    assert [each["method"] for each in bank.settings["merged"]] == ["sefa", "voynov"]
    bank.check_generator(toy.identity())


def test_every_shift_stays_what_it_was(toy_bank: DirectionBank) -> None:
    banks = [toy_bank, curved(toy_bank, -6, -1, 0, 2, 6), curved(toy_bank, -2, 0, 3), curved(toy_bank, 0, 5)]
    merged = merge(banks)
    assert merged.curved
    assert merged.knots.tolist() == [-6, -2, -1, 0, 2, 3, 5, 6]
    for number, bank in enumerate(banks):
        for index in range(len(bank)):
            found = merged.shifts(5 * number + index, EPSILONS)
            torch.testing.assert_close(found, bank.shifts(index, EPSILONS), atol=1e-5, rtol=1e-5)


def test_layers_are_those_of_all(layered: Generator) -> None:
    first = discover(layered, "random", num_directions=2, layers=[0])
    bank = merge([first, discover(layered, "random", num_directions=1, layers=[2])])
    assert bank.layers == (0, 2)


def test_what_cannot_be_merged(toy_bank: DirectionBank) -> None:
    with pytest.raises(SelectionError, match="at least two"):
        merge([toy_bank])
    stranger = replace(
        toy_bank, generator={**toy_bank.generator, "weights_sha256": "0" * 64, "name": "other"}
    )
    expected = r"The first bank was made for toy \(weights .*, but bank 3 for other \(weights 000000000000\)"
    with pytest.raises(BankError, match=expected) as refused:
        merge([toy_bank, toy_bank, stranger])
    assert "discover" not in str(refused.value)


def test_settings_stay_with_the_bank_that_they_are_of(toy_bank: DirectionBank) -> None:
    bank = replace(toy_bank, settings={"lengths": [1.0, 2.0, 3.0, 4.0, 5.0]})
    chosen = select(merge([select(bank, [3, 1]), bank]), [1, 0])
    first, second = chosen.settings["merged"]
    assert first["settings"] == {"lengths": [4.0, 2.0], "selected": [3, 1]}
    assert second["settings"] == bank.settings
    assert chosen.settings["selected"] == [1, 0]
