"""What every bank format promises. A new one is tested once it has a writer here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.directions import DirectionBank, load_bank
from fastdirs.errors import BankError, OutputError, SelectionError, UnknownNameError
from fastdirs.generators import Generator
from fastdirs.interchange import BANK_FORMATS, export_bank, import_bank, recognise_bank
from tests.interchange.conftest import OPTIONS, WRITERS

NAMES = BANK_FORMATS.names()
WRITTEN = [name for name in NAMES if BANK_FORMATS.load(name).write]

every_format = pytest.mark.parametrize("name", NAMES)


def imported(name: str, folder: Path, vectors: Tensor, generator: Generator) -> DirectionBank:
    return import_bank(WRITERS[name](folder, vectors), generator, options=OPTIONS.get(name))


def test_every_format_has_a_writer_here() -> None:
    assert list(WRITERS) == NAMES


@every_format
def test_it_says_what_it_is(name: str) -> None:
    plugin = BANK_FORMATS.load(name)
    assert plugin.summary
    assert all(plugin.options.values())


@every_format
def test_it_alone_recognises_its_files(name: str, vectors: Tensor, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path, vectors)
    assert [other for other in NAMES if BANK_FORMATS.load(other).recognises(path)] == [name]
    assert recognise_bank(path) == name


@every_format
def test_directions_keep_sign_and_length(
    name: str, vectors: Tensor, layered: Generator, tmp_path: Path
) -> None:
    bank = imported(name, tmp_path, vectors, layered)
    bank.check_generator(layered.identity())
    assert bank.method == name
    if bank.curved:
        assert bank.directions.shape == (4, len(bank.knots), 3, 5)
        return
    given = vectors[: len(bank)]
    lengths = torch.tensor(bank.settings["lengths"])
    torch.testing.assert_close(lengths, given.norm(dim=1))
    for layer in range(3):
        expected = (
            given / given.norm(dim=1, keepdim=True) if layer in bank.layers else torch.zeros_like(given)
        )
        torch.testing.assert_close(bank.directions[:, layer], expected)


@every_format
def test_the_bank_can_be_kept(name: str, vectors: Tensor, layered: Generator, tmp_path: Path) -> None:
    bank = imported(name, tmp_path, vectors, layered)
    bank.save(tmp_path / "bank.safetensors")
    again = load_bank(tmp_path / "bank.safetensors")
    assert torch.equal(again.directions, bank.directions)
    assert again.settings == bank.settings
    assert "/home/me" not in json.dumps(again.settings)


@every_format
def test_another_size_names_both(name: str, vectors: Tensor, layered: Generator, tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"\b4 numbers, but .*\b5\b"):
        imported(name, tmp_path, vectors[:, :4], layered)


@every_format
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(
    name: str, value: float, vectors: Tensor, layered: Generator, tmp_path: Path
) -> None:
    vectors[0, 1] = value
    with pytest.raises(BankError, match=r"NaN or infinite|nowhere to go"):
        imported(name, tmp_path, vectors, layered)


@every_format
def test_a_direction_that_goes_nowhere(
    name: str, vectors: Tensor, layered: Generator, tmp_path: Path
) -> None:
    vectors[0] = 0
    with pytest.raises(BankError, match=r"Direction 0 of .* goes nowhere|nowhere to go"):
        imported(name, tmp_path, vectors, layered)


@every_format
def test_an_option_that_it_does_not_have(
    name: str, vectors: Tensor, layered: Generator, tmp_path: Path
) -> None:
    with pytest.raises(UnknownNameError, match=f"no option of {name} 'epsilonz'"):
        import_bank(WRITERS[name](tmp_path, vectors), layered, options={"epsilonz": "3"})


@every_format
def test_truncated_files(name: str, vectors: Tensor, layered: Generator, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path, vectors)
    files = [path] if path.is_file() else [path / "models" / "deformator_90000.pt"]
    for file in files:
        data = file.read_bytes()
        for length in range(0, len(data), max(1, len(data) // 60)):
            file.write_bytes(data[:length])
            with pytest.raises(BankError):
                import_bank(path, layered, options=OPTIONS.get(name))


@every_format
def test_files_of_other_kinds(name: str, layered: Generator, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "page").write_text("<html>Please log in</html>")
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    for path in tmp_path.iterdir():
        assert not BANK_FORMATS.load(name).recognises(path)
        with pytest.raises(BankError, match="is in none of the formats"):
            import_bank(path, layered)
        with pytest.raises(BankError, match=f"is not of the format {name}"):
            import_bank(path, layered, format_name=name)


@every_format
def test_a_bank_needs_no_import(name: str, toy: Generator, toy_bank: DirectionBank, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    toy_bank.save(path)
    assert not BANK_FORMATS.load(name).recognises(path)
    for format_name in (None, name):
        with pytest.raises(BankError, match=r"is a direction bank of fastdirs already\. Use it as it is"):
            import_bank(path, toy, format_name=format_name)


def test_a_file_that_is_not_there(layered: Generator, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="does not exist"):
        import_bank(tmp_path / "nothing.npy", layered)


def test_an_unknown_format(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    path = WRITERS["numpy_array"](tmp_path, vectors)
    with pytest.raises(UnknownNameError, match=r"'numpy_aray'. Did you mean 'numpy_array'"):
        import_bank(path, layered, format_name="numpy_aray")


def test_chosen_layers(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    path = WRITERS["numpy_array"](tmp_path, vectors)
    bank = import_bank(path, layered, layers=[2, 1])
    assert bank.layers == (1, 2)
    assert not bank.directions[:, 0].any()
    with pytest.raises(SelectionError, match="There is no layer 7"):
        import_bank(path, layered, layers=[7])


def test_chosen_layers_of_parts_of_z(chunked: Generator, tmp_path: Path) -> None:
    """The file is about all of z; what is left of a vector has unit length again."""
    layers, dim = chunked.num_layers, chunked.dim
    whole = torch.randn(2, layers * dim)
    bank = import_bank(WRITERS["numpy_array"](tmp_path, whole), chunked)
    torch.testing.assert_close(bank.directions.flatten(1), whole / whole.norm(dim=1, keepdim=True))
    some = import_bank(tmp_path / "directions.npy", chunked, layers=[1, 2])
    parts = whole.unflatten(1, (layers, dim))[:, 1:3].flatten(1)
    torch.testing.assert_close(some.directions[:, 1:3].flatten(1), parts / parts.norm(dim=1, keepdim=True))
    assert not some.directions[:, 0].any()
    with pytest.raises(BankError, match=rf"5 numbers, but .* have {layers} layers of {dim}"):
        import_bank(WRITERS["numpy_array"](tmp_path, torch.ones(2, 5)), chunked)


@pytest.mark.parametrize("name", WRITTEN)
def test_there_and_back(name: str, vectors: Tensor, layered: Generator, tmp_path: Path) -> None:
    bank = imported("numpy_array", tmp_path, vectors, layered)
    path = tmp_path / f"out{BANK_FORMATS.load(name).suffix}"
    export_bank(bank, path)
    again = import_bank(path, layered)
    assert again.method == name
    torch.testing.assert_close(again.directions, bank.directions)
    torch.testing.assert_close(again.scales, bank.scales)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_that_exists_is_kept(name: str, vectors: Tensor, layered: Generator, tmp_path: Path) -> None:
    bank = imported("numpy_array", tmp_path, vectors, layered)
    path = tmp_path / f"out{BANK_FORMATS.load(name).suffix}"
    path.write_text("years of work")
    with pytest.raises(OutputError, match="exists already"):
        export_bank(bank, path)
    assert path.read_text() == "years of work"
    export_bank(bank, path, force=True)
    assert recognise_bank(path) == name


def test_a_bank_is_never_replaced_by_an_export(toy_bank: DirectionBank, tmp_path: Path) -> None:
    toy_bank.save(tmp_path / "bank.npz")
    with pytest.raises(OutputError, match="is a direction bank, so it is left alone"):
        export_bank(toy_bank, tmp_path / "bank.npz", force=True)


def test_formats_that_are_not_written(toy_bank: DirectionBank, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"files that end in '.np'"):
        export_bank(toy_bank, tmp_path / "bank.np")
    with pytest.raises(
        BankError, match=r"higan is only read\. Formats that are written: numpy_archive, numpy_arr"
    ):
        export_bank(toy_bank, tmp_path / "bank.npy", format_name="higan")
