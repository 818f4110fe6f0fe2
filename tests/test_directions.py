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
    names = ("labels", "layers", "generator", "method", "settings")
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
