"""Converting a checkpoint: value for value, with where it came from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fastdirs
from fastdirs.checkpoints import read_checkpoint
from fastdirs.errors import CheckpointError, ContractError, OutputError, UnknownNameError
from fastdirs.loading import convert, load_generator
from fastdirs.manifest import sha256_file


@pytest.fixture
def source(random_dcgan: Callable[..., nn.Sequential], tmp_path: Path) -> Path:
    torch.save({"netG": random_dcgan().state_dict(), "args": {"lr": 0.1}}, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_a_copy_has_the_same_values_and_identity(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.safetensors"
    content = convert(source, out)
    original, copy = load_generator(source), load_generator(out)
    assert copy.weights_sha256 == original.weights_sha256 == content["generator"]["weights_sha256"]
    state, copied = original.state_dict(), copy.state_dict()
    assert state.keys() == copied.keys()
    assert all(torch.equal(state[name], copied[name]) for name in state)
    assert copy.provenance == original.provenance
    # Bit for bit what the file holds, under the names of the generator.
    raw = sorted(tensor.flatten().tolist() for tensor in read_checkpoint(source).tensors.values())
    kept = sorted(tensor.flatten().tolist() for name, tensor in copied.items() if name != "latent_mean")
    assert raw == kept


def test_the_manifest_says_where_it_came_from(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.safetensors"
    content = convert(source, out)
    assert content["source_sha256"] == sha256_file(source)
    assert (content["reader"], content["part"], content["foreign"]) == ("torch_file", "netG", [])
    assert list(content["provenance"]["assumed"]) == ["activation=relu", "output=tanh", "eps=1e-5"]
    assert content["generator"]["licence"] == "unknown"
    beside = json.loads((tmp_path / "copy.json").read_text())
    assert beside["source_sha256"] == content["source_sha256"]


def test_a_copy_of_a_copy_remembers_the_first_source(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "copy.safetensors")
    again = convert(tmp_path / "copy.safetensors", tmp_path / "again.safetensors")
    assert again["source_sha256"] == sha256_file(source)
    assert again["reader"] == "torch_file"
    first, second = (tmp_path / f"{name}.safetensors" for name in ("copy", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_another_part_of_the_file(
    source: Path, random_dcgan: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    parts = {"netG": random_dcgan().state_dict(), "another": random_dcgan(seed=1).state_dict()}
    torch.save(parts, source)
    usual = convert(source, tmp_path / "usual.safetensors")
    other = convert(source, tmp_path / "other.safetensors", options={"key": "another"})
    assert other["part"] == "another"
    assert other["generator"]["weights_sha256"] != usual["generator"]["weights_sha256"]
    with pytest.raises(UnknownNameError, match="Did you mean 'another'"):
        convert(source, tmp_path / "none.safetensors", options={"key": "anothr"})


def test_it_is_public(source: Path, tmp_path: Path) -> None:
    assert fastdirs.convert(source, tmp_path / "copy.safetensors")["kind"] == "generator"


def test_what_is_there_is_not_lost(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.safetensors"
    convert(source, out)
    with pytest.raises(OutputError, match="exists already"):
        convert(source, out)
    convert(source, out, force=True)
    out.write_bytes(b"something precious")
    with pytest.raises(OutputError, match="is left alone, even with --force"):
        convert(source, out, force=True)
    assert out.read_bytes() == b"something precious"


@pytest.mark.parametrize("name", ["copy.pt", "copy", "copy.safetensors.bak"])
def test_the_name_says_what_it_will_be(source: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"does not end in .safetensors"):
        convert(source, tmp_path / name)


def test_what_has_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="toy has no checkpoint to convert"):
        convert("toy", tmp_path / "toy.safetensors")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        convert(tmp_path / "net.pt", tmp_path / "copy.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]
