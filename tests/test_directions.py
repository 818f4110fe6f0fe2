import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.directions import DirectionBank, fix_signs, load_bank
from fastdirs.errors import BankError, SelectionError, ShapeError
from fastdirs.generators import Generator


def same(a: DirectionBank, b: DirectionBank) -> bool:
    tensors = all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in ("directions", "scales", "scores", "ranges")
    )
    names = ("labels", "layers", "generator", "method", "settings", "tags", "judges")
    if (a.knots is None) != (b.knots is None) or (a.knots is not None and not torch.equal(a.knots, b.knots)):
        return False
    return tensors and all(getattr(a, name) == getattr(b, name) for name in names)


def rewrite(path: Path, header: dict[str, object] | None, **tensors: Tensor) -> None:
    """Write the bank again with other tensors or another header."""
    old, old_header = read_safetensors(path)
    save_file({**old, **tensors}, path, {HEADER: json.dumps(old_header if header is None else header)})


@pytest.fixture
def bank_file(toy_bank: DirectionBank, tmp_path: Path) -> Path:
    toy_bank.save(tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def test_round_trip_keeps_everything(toy_bank: DirectionBank, bank_file: Path) -> None:
    assert same(load_bank(bank_file), toy_bank)
    assert same(load_bank(str(bank_file)), toy_bank)


def test_equal_banks_give_equal_bytes(bank_file: Path, tmp_path: Path) -> None:
    load_bank(bank_file).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == bank_file.read_bytes()


def test_edited_labels_survive(toy_bank: DirectionBank, tmp_path: Path) -> None:
    labels = ("höhe", *toy_bank.labels[1:])
    replace(toy_bank, labels=labels).save(tmp_path / "bank.safetensors")
    assert load_bank(tmp_path / "bank.safetensors").labels == labels


def test_a_bank_is_plain_safetensors(toy_bank: DirectionBank, bank_file: Path) -> None:
    tensors = load_file(bank_file)
    assert torch.equal(tensors["directions"], toy_bank.directions)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_shift_is_epsilon_times_the_direction(toy_bank: DirectionBank) -> None:
    torch.testing.assert_close(toy_bank.shift(2, 3.5), 3.5 * toy_bank.directions[2])
    assert toy_bank.shift(0, 1.0).shape == toy_bank.directions.shape[1:]


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 6.0, 1000.0])
def test_shift_there_and_back_is_nothing(toy_bank: DirectionBank, epsilon: float) -> None:
    there_and_back = toy_bank.shift(1, epsilon) + toy_bank.shift(1, -epsilon)
    assert torch.equal(there_and_back, torch.zeros_like(there_and_back))


@pytest.mark.parametrize("index", [-1, 5, 10**9])
def test_direction_out_of_range(toy_bank: DirectionBank, index: int) -> None:
    with pytest.raises(SelectionError, match=rf"There is no direction {index}. The bank has 5: 0 to 4"):
        toy_bank.shift(index, 1.0)


@pytest.mark.parametrize("epsilon", [1000.1, -1e9, float("nan"), float("inf"), float("-inf")])
def test_epsilon_out_of_range(toy_bank: DirectionBank, epsilon: float) -> None:
    with pytest.raises(SelectionError, match="out of range"):
        toy_bank.shift(0, epsilon)


def test_the_largest_component_becomes_positive() -> None:
    directions = torch.tensor([[[0.1, -0.9], [0.2, 0.3]], [[0.5, -0.1], [-0.2, 0.4]]])
    fixed = fix_signs(directions)
    torch.testing.assert_close(fixed, torch.stack([-directions[0], directions[1]]))
    torch.testing.assert_close(fix_signs(-directions), fixed)
    assert torch.equal(fix_signs(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2))


def test_the_bank_fits_its_own_generator(toy: Generator, toy_bank: DirectionBank) -> None:
    toy_bank.check_generator(toy.identity())


def test_the_bank_of_another_generator_is_refused(toy: Generator, toy_bank: DirectionBank) -> None:
    other = {**toy.identity(), "name": "somebody-else", "weights_sha256": "0" * 64}
    with pytest.raises(BankError, match=r"was made for toy .*but this is somebody-else"):
        toy_bank.check_generator(other)


@pytest.mark.parametrize("name", ["directions", "scales", "scores", "ranges"])
def test_tensors_must_fit_each_other(toy_bank: DirectionBank, name: str) -> None:
    with pytest.raises(ShapeError, match=name):
        replace(toy_bank, **{name: getattr(toy_bank, name)[:-1]})


@pytest.mark.parametrize("name", ["directions", "scales", "scores", "ranges"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bank_file: Path, name: str, value: float) -> None:
    tensor = read_safetensors(bank_file)[0][name]
    tensor.view(-1)[0] = value
    rewrite(bank_file, None, **{name: tensor})
    with pytest.raises(BankError, match=f"NaN or infinite values in '{name}'"):
        load_bank(bank_file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"does not exist.*fastdirs discover"):
        load_bank(tmp_path / "bank.safetensors")


def test_a_folder_is_no_bank(tmp_path: Path) -> None:
    with pytest.raises(BankError):
        load_bank(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_file(bank_file: Path, share: float) -> None:
    data = bank_file.read_bytes()
    bank_file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BankError, match="no readable safetensors file"):
        load_bank(bank_file)


def test_text_is_no_bank(tmp_path: Path) -> None:
    (tmp_path / "bank.safetensors").write_text("<html>Please log in</html>")
    with pytest.raises(BankError, match="not a direction bank"):
        load_bank(tmp_path / "bank.safetensors")


def test_safetensors_of_another_program(tmp_path: Path) -> None:
    save_file({"directions": torch.zeros(5, 1, 16)}, tmp_path / "other.safetensors")
    with pytest.raises(BankError, match="safetensors file of another program"):
        load_bank(tmp_path / "other.safetensors")


def test_another_kind_of_fastdirs_file(bank_file: Path) -> None:
    rewrite(bank_file, {"kind": "generator"})
    with pytest.raises(BankError, match="is a fastdirs generator, not a direction bank"):
        load_bank(bank_file)


def test_a_header_that_is_not_true(bank_file: Path) -> None:
    header = read_safetensors(bank_file)[1]
    rewrite(bank_file, {"kind": header["kind"]})
    with pytest.raises(BankError, match="does not hold what its header says"):
        load_bank(bank_file)
    rewrite(bank_file, header, scales=torch.zeros(7))
    with pytest.raises(BankError, match=r"does not hold what its header says.*scales"):
        load_bank(bank_file)
    rewrite(bank_file, header, surplus=torch.zeros(7))
    with pytest.raises(BankError, match="does not hold what its header says"):
        load_bank(bank_file)


def test_the_bank_knows_the_licence_of_the_weights(bank_file: Path) -> None:
    assert load_bank(bank_file).generator["licence"] == "Apache-2.0"


def test_names_tags_and_judges_survive(toy_bank: DirectionBank, tmp_path: Path) -> None:
    tags = (("position",), ("position", "höhe"), (), (), ())
    edited = replace(toy_bank, tags=tags, judges=("Anna", "", "", "", "Anna"))
    edited.save(tmp_path / "bank.safetensors")
    assert same(load_bank(tmp_path / "bank.safetensors"), edited)
    assert edited.sha256 == toy_bank.sha256


@pytest.mark.parametrize(("name", "values"), [("tags", ((),) * 4), ("judges", ("Anna",) * 6)])
def test_a_tag_or_judge_for_each_direction(
    toy_bank: DirectionBank, name: str, values: tuple[object, ...]
) -> None:
    with pytest.raises(ShapeError, match=f"{name} are {len(values)}, but there are 5 directions"):
        replace(toy_bank, **{name: values})


def test_a_file_from_before_there_were_tags(toy_bank: DirectionBank, bank_file: Path) -> None:
    header = read_safetensors(bank_file)[1]
    header["bank"] = {key: value for key, value in header["bank"].items() if key not in ("tags", "judges")}
    rewrite(bank_file, header)
    assert same(load_bank(bank_file), toy_bank)
    assert load_bank(bank_file).tags == ((),) * 5


def test_the_hash_follows_shifts_alone(toy_bank: DirectionBank, curved_bank: DirectionBank) -> None:
    assert replace(toy_bank, labels=tuple("abcde"), scores=-toy_bank.scores).sha256 == toy_bank.sha256
    assert replace(toy_bank, directions=-toy_bank.directions).sha256 != toy_bank.sha256
    assert curved_bank.knots is not None
    assert replace(curved_bank, knots=2 * curved_bank.knots).sha256 != curved_bank.sha256


# Curved -------------------------------------------------------------------------------------------------


def test_a_path_passes_through_its_knots(curved_bank: DirectionBank) -> None:
    assert curved_bank.curved
    assert curved_bank.knots is not None
    for index in range(len(curved_bank)):
        shifts = curved_bank.shifts(index, curved_bank.knots.tolist())
        torch.testing.assert_close(shifts, curved_bank.directions[index], rtol=0, atol=1e-6)


def test_a_path_is_straight_between_knots(curved_bank: DirectionBank) -> None:
    path = curved_bank.directions[2]
    torch.testing.assert_close(curved_bank.shift(2, 2.0), path[3] + 0.2 * (path[4] - path[3]))
    torch.testing.assert_close(curved_bank.shift(2, -0.75), path[1] / 2)
    torch.testing.assert_close(curved_bank.shift(2, 0.3), 0.2 * path[3])


def test_a_path_goes_on_beyond_its_ends(curved_bank: DirectionBank) -> None:
    path = curved_bank.directions[1]
    torch.testing.assert_close(curved_bank.shift(1, 9.0), path[4] + 2 * (path[4] - path[3]))
    torch.testing.assert_close(curved_bank.shift(1, -6.5), path[0] + (path[0] - path[1]))
    assert torch.isfinite(curved_bank.shift(1, 1000.0)).all()


def test_a_path_has_no_jumps(curved_bank: DirectionBank) -> None:
    epsilons = torch.linspace(-6, 6, 2401).tolist()
    steps = curved_bank.shifts(3, epsilons).diff(dim=0).flatten(1).norm(dim=1)
    assert float(steps.max()) < 0.012
    assert float(steps.min()) > 0.004


@pytest.mark.parametrize("epsilon", [0.0, -0.0])
def test_no_epsilon_is_no_shift_at_all(
    toy_bank: DirectionBank, curved_bank: DirectionBank, epsilon: float
) -> None:
    for bank in (toy_bank, curved_bank):
        for index in range(len(bank)):
            assert not bank.shift(index, epsilon).any()


@pytest.mark.parametrize("which", ["toy_bank", "curved_bank"])
def test_many_shifts_are_the_single_ones(which: str, request: pytest.FixtureRequest) -> None:
    bank: DirectionBank = request.getfixturevalue(which)
    epsilons = (3.0, -7.0, 0.0, 0.1, -4.0)
    assert bank.shifts(4, epsilons).shape == (5, 1, 16)
    for shift, epsilon in zip(bank.shifts(4, epsilons), epsilons, strict=True):
        assert torch.equal(shift, bank.shift(4, epsilon))
    assert bank.shifts(4, ()).shape == (0, 1, 16)


def test_a_path_without_bends_is_a_straight_direction(toy_bank: DirectionBank) -> None:
    knots = torch.tensor([-3.0, 0.0, 5.0])
    paths = toy_bank.directions[:, None] * knots[:, None, None]
    bank = replace(toy_bank, directions=paths, knots=knots)
    for epsilon in (-20.0, -1.0, 0.0, 2.0, 8.0):
        torch.testing.assert_close(bank.shift(2, epsilon), toy_bank.shift(2, epsilon), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bank.chords(), toy_bank.chords())
    assert torch.equal(toy_bank.chords(), toy_bank.directions)


def test_a_chord_leads_from_end_to_end(toy_bank: DirectionBank) -> None:
    knots = torch.tensor([-1.0, 0.0, 1.0])
    ahead, aside = toy_bank.directions[0], toy_bank.directions[1]
    paths = torch.stack([-ahead, torch.zeros_like(ahead), aside]).expand(5, -1, -1, -1)
    bank = replace(toy_bank, directions=paths, knots=knots)
    torch.testing.assert_close(bank.chords(), ((ahead + aside) / 2).expand(5, -1, -1))


@pytest.mark.parametrize(
    "knots",
    [
        [-4.0, 0.0, -1.5, 1.5, 4.0],
        [-4.0, -1.5, 0.0, 0.0, 4.0],
        [4.0, 1.5, 0.0, -1.5, -4.0],
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [-4.0, -1.5, float("nan"), 1.5, 4.0],
    ],
)
def test_knots_that_do_not_ascend_or_hold_no_zero(curved_bank: DirectionBank, knots: list[float]) -> None:
    with pytest.raises(BankError, match="no ascending list that holds 0"):
        replace(curved_bank, knots=torch.tensor(knots))


def test_one_knot_is_no_path(toy_bank: DirectionBank) -> None:
    with pytest.raises(BankError, match=r"The knots \[0\.0\] of the paths"):
        replace(toy_bank, directions=torch.zeros(5, 1, 1, 16), knots=torch.zeros(1))


def test_a_path_that_does_not_begin_at_zero(curved_bank: DirectionBank) -> None:
    paths = curved_bank.directions.clone()
    paths[3, 2, 0, 5] = 1e-3
    with pytest.raises(BankError, match="its shift at epsilon 0 is not 0"):
        replace(curved_bank, directions=paths)


def test_paths_and_knots_must_fit(curved_bank: DirectionBank, toy_bank: DirectionBank) -> None:
    assert curved_bank.knots is not None
    with pytest.raises(ShapeError, match="directions"):
        replace(curved_bank, knots=curved_bank.knots[1:])
    with pytest.raises(ShapeError, match="directions"):
        replace(curved_bank, knots=None)
    with pytest.raises(ShapeError, match="directions"):
        replace(toy_bank, knots=curved_bank.knots)
    with pytest.raises(ShapeError, match="knots"):
        replace(curved_bank, knots=curved_bank.knots[:, None])


@pytest.fixture
def curved_file(curved_bank: DirectionBank, tmp_path: Path) -> Path:
    curved_bank.save(tmp_path / "curved.safetensors")
    return tmp_path / "curved.safetensors"


def test_paths_survive_a_file(curved_bank: DirectionBank, curved_file: Path, tmp_path: Path) -> None:
    loaded = load_bank(curved_file)
    assert same(loaded, curved_bank)
    assert loaded.curved
    assert torch.equal(loaded.shift(2, 3.3), curved_bank.shift(2, 3.3))
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == curved_file.read_bytes()


@pytest.mark.parametrize("epsilon", [1000.1, float("nan"), float("-inf")])
def test_epsilon_out_of_range_of_a_path(curved_bank: DirectionBank, epsilon: float) -> None:
    with pytest.raises(SelectionError, match="out of range"):
        curved_bank.shift(0, epsilon)


def test_files_with_broken_paths(curved_file: Path) -> None:
    knots = read_safetensors(curved_file)[0]["knots"]
    rewrite(curved_file, None, knots=knots.flip(0).contiguous())
    with pytest.raises(BankError, match="no ascending list"):
        load_bank(curved_file)
    rewrite(curved_file, None, knots=torch.full_like(knots, torch.nan))
    with pytest.raises(BankError, match="NaN or infinite values in 'knots'"):
        load_bank(curved_file)
    rewrite(curved_file, None, knots=knots[:2].contiguous())
    with pytest.raises(BankError, match="does not hold what its header says"):
        load_bank(curved_file)
