"""What holds for every checkpoint format, and how a file's format is recognised."""

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

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
ARRAYS = {name: tensor.numpy() for name, tensor in STATE.items()}


def _tensorflow(path: Path, pickles: Any) -> None:
    network = pickles.named("dnnlib.tflib.network", "Network")
    state = {
        "version": 4,
        "static_kwargs": {"size": 8},
        "variables": list(ARRAYS.items()),
        "components": {},
    }
    path.write_bytes(pickles.dumps((network(), network(), network(state=state))))


def _folder(path: Path, pickles: Any) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"output_dim": 128}')
    torch.save(STATE, path / "pytorch_model.bin")


# One small valid file or folder of each format, for which `fastdirs.checkpoints` has a reader.
MAKERS: dict[str, Callable[[Path, Any], None]] = {
    "folder": _folder,
    "onnx_file": lambda path, pickles: _onnx(path),
    "pickle_file": lambda path, pickles: path.write_bytes(pickles.dumps(ARRAYS)) and None,
    "safetensors_file": lambda path, pickles: save_file(STATE, path),
    "tensorflow_file": _tensorflow,
    "torch_file": lambda path, pickles: torch.save(STATE, path),
}
FILES = [name for name in FORMATS.names() if name != "folder"]
Make = Callable[[str, Path], Path]


@pytest.fixture
def make(pickles: Any) -> Make:
    def maker(name: str, path: Path) -> Path:
        if name not in MAKERS:
            pytest.fail(f"checkpoint format {name!r} has no valid file here: add one to MAKERS in {__file__}")
        MAKERS[name](path, pickles)
        return path

    return maker


@pytest.mark.parametrize("name", FORMATS.names())
def test_recognised_by_content_whatever_the_file_is_called(name: str, make: Make, tmp_path: Path) -> None:
    assert recognise(make(name, tmp_path / "misleading.jpg")) == name


@pytest.mark.parametrize("name", FORMATS.names())
def test_recognised_by_no_other_format(name: str, make: Make, tmp_path: Path) -> None:
    path = make(name, tmp_path / "file")
    head = path.read_bytes()[:512] if path.is_file() else b""
    assert [other for other in FORMATS.names() if FORMATS.load(other).recognises(path, head)] == [name]


@pytest.mark.parametrize("name", FORMATS.names())
def test_read_says_what_was_read(name: str, make: Make, tmp_path: Path) -> None:
    path = make(name, tmp_path / "file")
    checkpoint = read_checkpoint(path)
    assert (checkpoint.path, checkpoint.format, checkpoint.config) == (path, name, {})
    weights = path / "pytorch_model.bin" if path.is_dir() else path
    assert checkpoint.sha256 == sha256_file(weights)
    assert json.loads(json.dumps(checkpoint.settings, allow_nan=False)) == checkpoint.settings
    if checkpoint.tensors:
        assert sorted(checkpoint.tensors) == sorted(STATE)
        assert all(torch.equal(checkpoint.tensors[key], STATE[key]) for key in STATE)
        assert checkpoint.part in (checkpoint.parts or ("",))


@pytest.mark.parametrize("name", FORMATS.names())
def test_a_survey_tells_what_would_be_read(name: str, make: Make, tmp_path: Path) -> None:
    path = make(name, tmp_path / "file")
    survey = FORMATS.load(name).survey
    if survey is None:
        return
    checkpoint, found = read_checkpoint(path), survey(path)
    assert (found.part, found.settings, found.foreign) == (
        checkpoint.part, checkpoint.settings, checkpoint.foreign,
    )  # fmt: skip
    told = {key: (tuple(facts.shape), facts.dtype) for key, facts in found.parts[checkpoint.part].items()}
    assert told == {key: (tuple(value.shape), value.dtype) for key, value in checkpoint.tensors.items()}


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_a_clear_error(name: str, make: Make, tmp_path: Path) -> None:
    data = make(name, tmp_path / "file").read_bytes()
    for length in sorted({*range(0, min(len(data), 64), 3), *range(64, len(data), max(1, len(data) // 40))}):
        (tmp_path / "short").write_bytes(data[:length])
        try:
            checkpoint = read_checkpoint(tmp_path / "short")
        except CheckpointError:
            continue
        # Protobuf has no end mark: a graph cut between two fields may still be a valid graph.
        assert not checkpoint.tensors, f"{length} of {len(data)} bytes were read as a whole file"


@pytest.mark.parametrize("name", FILES)
def test_scrambled_bytes_are_read_or_refused_but_never_crash(name: str, make: Make, tmp_path: Path) -> None:
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
def test_a_key_that_selects_nothing(name: str, make: Make, tmp_path: Path) -> None:
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


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder without .* No file in it looks like one"):
        read_checkpoint(tmp_path)
    torch.save(STATE, tmp_path / "netG.pth")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"It holds netG\.pth\. Name the checkpoint file in it"):
        read_checkpoint(tmp_path)
