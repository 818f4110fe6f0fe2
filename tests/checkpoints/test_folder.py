"""Folders that are one checkpoint: weights and settings; and what is refused of them."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastdirs.checkpoints import FORMATS, read_checkpoint
from fastdirs.errors import CheckpointError, UnknownNameError
from fastdirs.manifest import sha256_file

FIXTURES = Path(
    os.environ.get("FASTDIRS_FIXTURES") or Path(__file__).parents[2].parent / "shared" / "fixtures"
)
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(),
    reason=f"needs the checkpoints of the original projects in {FIXTURES} (FASTDIRS_FIXTURES)",
)
STATE = {"weight": torch.arange(4.0)}


class Losses:
    """Somebody's own class, which an artefact of training holds."""


def folder(path: Path, weights: str, settings: str = "", content: object = None) -> Path:
    torch.save(STATE, path / weights)
    if settings:
        (path / settings).write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("weights", "settings"),
    [
        ("pytorch_model.bin", "config.json"),
        ("generator.pt", "args.json"),
        ("G_ema.pth", "generator_config.json"),
    ],
)
def test_weights_and_settings(tmp_path: Path, weights: str, settings: str) -> None:
    path = folder(tmp_path, weights, settings, {"z_dim": 4, "layers": [[True, 1], [False, 2]]})
    read = read_checkpoint(path)
    assert (read.path, read.format, read.part, read.parts) == (path, "folder", "", ("",))
    assert torch.equal(read.tensors["weight"], STATE["weight"])
    assert read.settings == {"z_dim": 4, "layers": [[True, 1], [False, 2]]}
    assert read.sha256 == sha256_file(path / weights)


def test_weights_in_another_format_under_the_same_name(tmp_path: Path) -> None:
    folder(tmp_path, "pytorch_model.bin", "config.json", {})
    save_file(STATE, tmp_path / "pytorch_model.bin")
    assert torch.equal(read_checkpoint(tmp_path).tensors["weight"], STATE["weight"])
    survey = FORMATS.load("folder").survey
    assert survey is not None
    assert survey(tmp_path).part is None


def test_biggan_with_its_training_state(tmp_path: Path) -> None:
    path = folder(tmp_path, "G_ema.pth")
    assert read_checkpoint(path).settings == {}
    state = {
        "itr": 5,
        "config": {
            "resolution": 32,
            "G_activation": nn.ReLU(),
            "losses": Losses(),
            "best_FID": 1.5,
            "hier": True,
        },
    }
    torch.save(state, path / "state_dict.pth")
    read = read_checkpoint(path)
    assert read.settings == {"resolution": 32, "best_FID": 1.5, "hier": True}
    assert read.foreign == (f"{__name__}.Losses",)
    (path / "generator_config.json").write_text('{"resolution": 64}')
    assert read_checkpoint(path).settings["resolution"] == 64
    survey = FORMATS.load("folder").survey
    assert survey is not None
    assert survey(path).settings == read_checkpoint(path).settings


class Touch:
    """Makes a file when it is unpickled without protection."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_hostile_training_state_beside_good_weights(tmp_path: Path, new_format: bool) -> None:
    path = folder(tmp_path, "G_ema.pth")
    witness = tmp_path / "witness"
    state = {"config": {"G_activation": Touch(witness)}}
    torch.save(state, path / "state_dict.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"state_dict\.pth asks to run \w+\.system .*nothing was run"):
        read_checkpoint(path)
    (path / "state_dict.pth").write_bytes(pickle.dumps(Touch(witness)))
    with pytest.raises(CheckpointError, match="nothing was run"):
        read_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[1]", "no settings by name"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is no JSON"),
        (b" " * 2**21 + b"{}", "too long"),
    ],
    ids=["empty", "cut", "no text", "list", "deep", "digits", "long"],
)
def test_broken_settings(tmp_path: Path, content: bytes, message: str) -> None:
    path = folder(tmp_path, "pytorch_model.bin", "config.json", {})
    (path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json .*{message}"):
        read_checkpoint(path)


def test_settings_hold_only_what_json_can_say_everywhere(tmp_path: Path) -> None:
    path = folder(tmp_path, "generator.pt", "args.json", {})
    (path / "args.json").write_text('{"a": NaN, "b": Infinity, "c": "\\ud800", "d": {"e": 1e999, "f": 2}}')
    assert read_checkpoint(path).settings == {"d": {"f": 2}}


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    path = folder(tmp_path, "generator.pt", "args.json", {})
    (path / "generator.pt").write_bytes((path / "generator.pt").read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"generator\.pt is truncated or broken"):
        read_checkpoint(path)
    with pytest.raises(UnknownNameError, match="G"):
        read_checkpoint(folder(tmp_path, "generator.pt"), key="G")


def _genuine() -> list[Any]:
    return [path for pattern in ("hf_*", "sngan_*", "biggan_*") for path in sorted(FIXTURES.glob(pattern))]


@needs_fixtures
@pytest.mark.parametrize("path", _genuine(), ids=lambda path: path.name)
def test_genuine_folders(path: Path) -> None:
    read = read_checkpoint(path)
    weights = next(
        path / name for name in ("pytorch_model.bin", "generator.pt", "G_ema.pth") if (path / name).exists()
    )
    wanted = torch.load(weights, weights_only=True, map_location="cpu")
    assert list(read.tensors) == list(wanted)
    assert all(torch.equal(read.tensors[key], wanted[key]) for key in wanted)
    assert read.settings
    assert read.sha256 == sha256_file(weights)
