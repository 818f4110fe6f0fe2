"""What holds for every checkpoint format, and how a file's format is recognised."""

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastdirs.checkpoints import FORMATS, read_checkpoint, recognise
from fastdirs.errors import CheckpointError
from fastdirs.manifest import sha256_file


def _onnx(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4])
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([helper.make_node("Tanh", ["z"], ["images"])], "g", [z], [images])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))


STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(3)}
# One small valid file of each format, for which `fastdirs.checkpoints` has a reader.
MAKERS: dict[str, Callable[[Path], None]] = {
    "onnx_file": _onnx,
    "safetensors_file": lambda path: save_file(STATE, path),
    "torch_file": lambda path: torch.save(STATE, path),
}


def make(name: str, path: Path) -> Path:
    if name not in MAKERS:
        pytest.fail(f"checkpoint format {name!r} has no valid file here: add one to MAKERS in {__file__}")
    MAKERS[name](path)
    return path


@pytest.mark.parametrize("name", FORMATS.names())
def test_recognised_by_content_whatever_the_file_is_called(name: str, tmp_path: Path) -> None:
    assert recognise(make(name, tmp_path / "misleading.jpg")) == name


@pytest.mark.parametrize("name", FORMATS.names())
def test_recognised_by_no_other_format(name: str, tmp_path: Path) -> None:
    head = make(name, tmp_path / "file").read_bytes()[:512]
    assert [other for other in FORMATS.names() if FORMATS.load(other).recognises(head)] == [name]


@pytest.mark.parametrize("name", FORMATS.names())
def test_read_says_what_was_read(name: str, tmp_path: Path) -> None:
    path = make(name, tmp_path / "file")
    checkpoint = read_checkpoint(path)
    assert (checkpoint.path, checkpoint.format, checkpoint.config) == (path, name, {})
    assert checkpoint.sha256 == sha256_file(path)
    if checkpoint.tensors:
        assert sorted(checkpoint.tensors) == sorted(STATE)
        assert all(torch.equal(checkpoint.tensors[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("name", FORMATS.names())
def test_every_truncation_is_a_clear_error(name: str, tmp_path: Path) -> None:
    data = make(name, tmp_path / "file").read_bytes()
    for length in sorted({*range(0, min(len(data), 64), 3), *range(64, len(data), max(1, len(data) // 40))}):
        (tmp_path / "short").write_bytes(data[:length])
        try:
            checkpoint = read_checkpoint(tmp_path / "short")
        except CheckpointError:
            continue
        # Protobuf has no end mark: a graph cut between two fields may still be a valid graph.
        assert not checkpoint.tensors, f"{length} of {len(data)} bytes were read as a whole file"


@pytest.mark.parametrize("name", FORMATS.names())
def test_scrambled_bytes_are_read_or_refused_but_never_crash(name: str, tmp_path: Path) -> None:
    data = make(name, tmp_path / "file").read_bytes()
    random = np.random.RandomState(0)
    for _ in range(40):
        scrambled = bytearray(data)
        for position in random.randint(0, len(data), 5):
            scrambled[position] = random.randint(256)
        (tmp_path / "scrambled").write_bytes(scrambled)
        with suppress(CheckpointError):
            read_checkpoint(tmp_path / "scrambled")


@pytest.mark.parametrize("name", FORMATS.names())
def test_a_key_that_selects_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="absent") as caught:
        read_checkpoint(make(name, tmp_path / "file"), key="absent")
    assert type(caught.value).__module__ == "fastdirs.errors"


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty.*Download it again"),
        (b"<!DOCTYPE html>\n<html><body>Log in</body></html>", "web page"),
        (b"\n\n  <html>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
        (LFS, "Git LFS pointer.*git lfs pull"),
        (b"just some words\n", "none of the formats that fastdirs reads"),
        (b'{"error": "not found"}', "none of the formats"),
        (bytes(1000), "none of the formats"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "none of the formats"),
        (struct.pack("<Q", 2**60) + b"{" + bytes(50), "none of the formats"),
    ],
    ids=["empty", "html", "late html", "xml", "lfs", "text", "json", "zeros", "png", "absurd header"],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "model.pt")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file or directory"):
        read_checkpoint(tmp_path / "model.pt")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_checkpoint(tmp_path)
