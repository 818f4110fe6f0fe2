"""Banks from and for other programs, and edited, as a user would do it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from fastdirs.directions import DirectionBank, load_bank

SMALL_TOY = ("toy", "--generator-option", "resolution=32")
Run = Callable[..., Result]
RunJson = Callable[..., Any]


def test_there_and_back(run: Run, toy_bank: DirectionBank, bank_file: Path) -> None:
    exported = run("bank", "export", bank_file, "--out", "directions.npy")
    assert (exported.exit_code, exported.stdout) == (0, "directions.npy\n")
    result = run("bank", "import", "directions.npy", *SMALL_TOY, "--out", "again.safetensors")
    assert (result.exit_code, result.stdout) == (0, "again.safetensors\n"), result.output
    assert "5 straight directions of toy from directions.npy (numpy_array)" in result.stderr
    torch.testing.assert_close(load_bank("again.safetensors").directions, toy_bank.directions)


def test_import_says_what_it_made(run_json: RunJson, bank_file: Path, run: Run) -> None:
    assert run("bank", "export", bank_file, "--out", "bank.npz").exit_code == 0
    found = run_json("bank", "import", "bank.npz", *SMALL_TOY, "--out", "again.safetensors")
    assert found == {
        "path": "again.safetensors",
        "method": "numpy_archive",
        "directions": 5,
        "labels": [f"direction {index}" for index in range(5)],
    }


def test_one_direction_alone(run: Run, toy_bank: DirectionBank, bank_file: Path) -> None:
    result = run("bank", "export", bank_file, "--direction", 3, "--out", "smile.npy")
    assert result.exit_code == 0, result.output
    found = np.load("smile.npy", allow_pickle=False)
    assert np.array_equal(found, toy_bank.directions[3].numpy())
    assert run("bank", "export", bank_file, "--direction", 5, "--out", "no.npy").exit_code == 1


def test_options_of_a_format(run: Run, tmp_path: Path) -> None:
    torch.save({"linear.weight": torch.eye(16), "linear.bias": torch.zeros(16)}, tmp_path / "deformator.pt")
    arguments = ("bank", "import", "deformator.pt", *SMALL_TOY, "--out", "bank.safetensors")
    result = run(*arguments)
    assert result.exit_code == 1
    assert "may be a linear or a proj deformator" in result.stderr
    assert run(*arguments, "-o", "deformator=linear").exit_code == 0
    assert len(load_bank("bank.safetensors")) == 16
    assert "exists already" in run(*arguments, "-o", "deformator=linear").stderr
    assert run(*arguments, "-o", "deformator=linear", "--force", "--layers", "all").exit_code == 0


def test_a_bank_of_another_size(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "age.npy", np.ones((1, 512)))
    result = run("bank", "import", "age.npy", *SMALL_TOY, "--out", "bank.safetensors")
    assert result.exit_code == 1
    assert "512 numbers, but the latents of toy have 16 (space z)" in result.stderr
    assert not Path("bank.safetensors").exists()


def test_a_bank_needs_no_import(run: Run, bank_file: Path) -> None:
    result = run("bank", "import", bank_file, *SMALL_TOY, "--out", "again.safetensors")
    assert result.exit_code == 1
    assert "bank.safetensors is a direction bank of fastdirs already" in result.stderr
    assert not Path("again.safetensors").exists()


def test_saying_what_a_direction_does(run: Run, bank_file: Path) -> None:
    result = run(
        "bank", "label", bank_file, "--index", 3, "--name", "smile", "--tag", "face", "--tag", "mouth",
        "--by", "Ada", "--range", "-4:6",
    )  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, "bank.safetensors\n"), result.output
    bank = load_bank(bank_file)
    assert (bank.labels[3], bank.tags[3], bank.judges[3]) == ("smile", ("face", "mouth"), "Ada")
    assert bank.ranges[3].tolist() == [-4.0, 6.0]
    assert [path.name for path in Path().iterdir()] == ["bank.safetensors"]


def test_names_of_an_atlas(run_json: RunJson, bank_file: Path, toy_bank: DirectionBank) -> None:
    labels = {str(index): name for index, name in enumerate(toy_bank.labels)}
    content = {
        "generator_sha256": toy_bank.generator["weights_sha256"],
        "labels": {**labels, "2": "hair", "0": "light"},
    }
    Path("names.json").write_text(json.dumps(content))
    found = run_json("bank", "label", bank_file, "--from", "names.json", "--by", "Ada")
    assert found["changed"] == [0, 2]
    assert found["labels"] == ["light", "direction 1", "hair", "direction 3", "direction 4"]
    assert load_bank(bank_file).judges == ("Ada", "", "Ada", "", "")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ((), 2, "Say --index"),
        (("--index", "1"), 2, "Say what the direction does"),
        (("--index", "1", "--from", "names.json"), 2, "Say --index"),
        (("--from", "names.json", "--name", "x"), 2, "Say --index"),
        (("--index", "1", "--range", "4"), 2, "'4' is not LOW:HIGH"),
        (("--index", "1", "--range", "6:-4"), 1, "6 to -4 is no range"),
        (("--index", "9", "--name", "x"), 1, "There is no direction 9"),
        (("--from", "names.json"), 1, "names.json cannot be read as names"),
    ],
)
def test_labels_that_are_refused(
    arguments: tuple[str, ...], exit_code: int, message: str, run: Run, bank_file: Path
) -> None:
    before = bank_file.read_bytes()
    result = run("bank", "label", bank_file, *arguments)
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert bank_file.read_bytes() == before


def test_rename(run_json: RunJson, run: Run, bank_file: Path) -> None:
    found = run_json("bank", "rename", bank_file, "direction 2", "hair colour")
    assert found["changed"] == [2]
    assert load_bank(bank_file).labels[2] == "hair colour"
    result = run("bank", "rename", bank_file, "direction 2", "x")
    assert result.exit_code == 1
    assert "no direction called 'direction 2'" in result.stderr


def test_merge_and_select(run: Run, run_json: RunJson, bank_file: Path) -> None:
    run("bank", "label", bank_file, "--index", 1, "--tag", "face")
    assert run("bank", "select", bank_file, "--tag", "face", "--out", "a.safetensors").exit_code == 0
    assert run("bank", "select", bank_file, "--directions", "0,2-3", "--out", "b.safetensors").exit_code == 0
    found = run_json("bank", "merge", "a.safetensors", "b.safetensors", "--out", "c.safetensors")
    assert found["labels"] == ["direction 1", "direction 0", "direction 2", "direction 3"]
    top = run_json("bank", "select", "c.safetensors", "--top", 2, "--out", "d.safetensors")
    assert top["labels"] == ["direction 0", "direction 1"]
    again = run("bank", "merge", "a.safetensors", "b.safetensors", "--out", "c.safetensors")
    assert again.exit_code == 1
    assert "c.safetensors exists already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("select", "bank.safetensors"), 2, "one of --directions, --tag and --top"),
        (("select", "bank.safetensors", "--top", "2", "--tag", "x"), 2, "one of --directions"),
        (("select", "bank.safetensors", "--top", "9"), 1, "9 directions are out of range"),
        (("select", "bank.safetensors", "--tag", "x"), 1, "There is no tag 'x'"),
        (("select", "bank.safetensors", "--directions", "0-5"), 1, "There is no direction 5"),
        (("merge", "bank.safetensors"), 1, "Name at least two"),
        (("merge", "bank.safetensors", "nothing"), 1, "nothing does not exist"),
        (("merge",), 2, "Missing argument"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], exit_code: int, message: str, run: Run, bank_file: Path
) -> None:
    result = run("bank", *arguments, "--out", "out.safetensors")
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert not Path("out.safetensors").exists()


def test_exports_that_are_refused(run: Run, bank_file: Path) -> None:
    for out, message in (("x.safetensors", "'.safetensors'"), ("x.pt", "latents of toy are z")):
        result = run("bank", "export", bank_file, "--out", out)
        assert result.exit_code == 1
        assert message in result.stderr
        assert not Path(out).exists()
