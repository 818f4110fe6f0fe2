import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastdirs.checkpoints import read_checkpoint
from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.errors import CheckpointError

STATE = {"weight": torch.randn(2, 3), "half": torch.ones(2, dtype=torch.bfloat16), "count": torch.tensor(3)}


def test_tensors_keep_values_and_types(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    tensors, header = read_safetensors(tmp_path / "model.safetensors")
    assert header == {}
    assert all(
        torch.equal(tensors[key], STATE[key]) and tensors[key].dtype == STATE[key].dtype for key in STATE
    )


def test_our_own_header_is_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", {HEADER: json.dumps({"kind": "x"}), "format": "pt"})
    assert read_checkpoint(tmp_path / "model.safetensors").config == {"kind": "x"}


@pytest.mark.parametrize("header", ["[1]", '"text"', "3", "null"])
def test_a_header_that_is_not_ours_counts_as_none(tmp_path: Path, header: str) -> None:
    save_file(STATE, tmp_path / "model.safetensors", {HEADER: header})
    assert read_safetensors(tmp_path / "model.safetensors")[1] == {}


def test_a_broken_header_is_an_error(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", {HEADER: '{"kind": '})
    with pytest.raises(CheckpointError, match="broken safetensors file"):
        read_safetensors(tmp_path / "model.safetensors")


def test_a_header_that_is_nested_too_deeply(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", {HEADER: "[" * 100_000})
    with pytest.raises(CheckpointError, match="broken safetensors file"):
        read_checkpoint(tmp_path / "model.safetensors")


# As pickles of protocols 2 to 5 begin, and as web pages do.
@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580, 0x3C20, 0x3C0A, 0x103C])
def test_header_lengths_that_look_like_other_formats(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).ljust(length)
    path.write_bytes(struct.pack("<Q", length) + header.encode() + b"\1\2")
    read = read_checkpoint(path)
    assert (read.format, read.tensors["w"].tolist()) == ("safetensors_file", [1, 2])


def test_truncated(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"broken safetensors file.*Download or make it again"):
        read_checkpoint(path)


def test_one_state_dict_needs_no_key(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="key='G' selects nothing"):
        read_checkpoint(tmp_path / "model.safetensors", key="G")


def test_layers_come_in_counting_order(tmp_path: Path) -> None:
    names = ["main.0.weight", "main.2.weight", "main.10.weight", "main.10b.weight", "tail"]
    save_file({name: torch.zeros(1) for name in reversed(names)}, tmp_path / "model.safetensors")
    assert list(read_safetensors(tmp_path / "model.safetensors")[0]) == names
