"""Damaged and hostile checkpoints on the command line: the reason is named, nothing is run or left."""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fastdirs.checkpoints import read_checkpoint
from fastdirs.cli import main

ROOT = Path(os.environ.get("FASTDIRS_FIXTURES") or Path(__file__).parents[2] / "shared" / "fixtures")
BAD = ROOT / "bad"
ENTRIES = json.loads((BAD / "manifest.json").read_text()) if BAD.is_dir() else []
# What every hostile file does to the temporary folder when it is unpickled without protection.
PAYLOAD = Path(tempfile.gettempdir()) / "PWNED_fastdirs"

# What the message has to say, by file; files of the same kind share the line of their kind.
BY_KIND = {
    "empty": "is empty",
    "html": "is a web page",
    "truncated": "truncated",
    "missing": "missing",
    "shape": "of shape",
    "nan": "NaN or infinite values in",
    "extra": "something.extra.weight",
    "hostile": "refused; nothing was run",
}
BY_FILE = {
    "git_lfs_pointer.pkl": "Git LFS pointer",
    "not_a_checkpoint.pt": "zip",
    "zip_with_garbage_data_pkl.pt": "Download it again",
    "random_bytes.pkl": "none of the formats",
    "plain_text.pth": "none of the formats",
    "classifier_state_dict.pth": "classifier",
    "list_of_things.pt": "holds no tensors",
    "empty_dict.pth": "holds no tensors",
    "deformator_missing_key.pt": "bank of directions",
    "deformator_wrong_shape.pt": "bank of directions",
    "deformator_nan.pt": "bank of directions",
    "ada_without_G_ema.pkl": "G_ema",
    "evil_components.npz": "numpy",
}
KEYS = {
    "rosinality_missing_key.pt": "convs.2.conv.weight",
    "genforce_stylegan2_missing_key.pth": "synthesis.layer3.weight",
    "rosinality_wrong_shape.pt": "convs.2.conv.weight",
    "genforce_stylegan2_wrong_shape.pth": "synthesis.layer3.weight",
    "rosinality_nan.pt": "convs.2.conv.weight",
    "genforce_stylegan2_nan.pth": "synthesis.layer3.weight",
    "biggan_missing_key.pth": "blocks.1.0.conv1.weight",
    "biggan_wrong_shape.pth": "blocks.1.0.conv1.weight",
    "sngan_dir_missing_key/generator.pt": "model.3.model.0.running_var",
    "sngan_dir_nan/generator.pt": "model.3.model.0.running_var",
    "hf_dir_wrong_shape/pytorch_model.bin": "generator.layers.1.bn_1.running_vars",
    "ada_missing_key.pkl": "synthesis.b8.conv1.weight",
    "ada_wrong_shape.pkl": "synthesis.b8.conv0.weight",
    "ada_nan.pkl": "mapping.fc1.weight",
    "evil_plain.pkl": "system",
    "evil_in_dict.pkl": "system",
    "evil_torch_legacy.pt": "eval",
}


needs_fixtures = pytest.mark.skipif(not ENTRIES, reason=f"no fixtures at {BAD}: set FASTDIRS_FIXTURES")


@needs_fixtures
def test_every_bad_fixture_is_covered() -> None:
    named = {entry["file"] for entry in ENTRIES}
    assert set(BY_FILE) | set(KEYS) <= named
    for entry in ENTRIES:
        assert entry["file"] in BY_FILE or entry["kind"] in BY_KIND, f"what should {entry['file']} say?"


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["file"] for entry in ENTRIES])
def test_refused_with_the_reason(
    entry: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    PAYLOAD.unlink(missing_ok=True)
    name = entry["file"]
    # A file in a folder of its own stands for the folder.
    source = BAD / name if "/" not in name else (BAD / name).parent
    modules = set(sys.modules)
    result = CliRunner().invoke(
        main, ["convert", str(source), "--out", "model.safetensors"], catch_exceptions=False
    )
    assert result.exit_code == 1, result.output
    assert "Error: " in result.stderr
    expected = BY_FILE.get(name) or BY_KIND[entry["kind"]]
    assert expected in result.stderr, result.stderr
    assert KEYS.get(name, "") in result.stderr, result.stderr
    assert not PAYLOAD.exists(), "the payload was run"
    assert not list(tmp_path.iterdir()), "nothing may be left behind"
    named = {"torch_utils", "dnnlib", "legacy", "timm", "dill"}
    assert not {module.partition(".")[0] for module in set(sys.modules) - modules} & named


DISCRIMINATORS = {
    "nv_ada_uncond_r64_map8/network-snapshot-000200.pkl": ("D", "StyleGAN2 or StyleGAN3"),
    "nv_sg3t_r64_map2/stylegan3-t-snapshot-000400.pkl": ("D", "StyleGAN2 or StyleGAN3"),
    "ros_train_r32_mlp4/010000.pt": ("d", "rosinality"),
    "gf_stylegan2_r64/stylegan2_fixture64.pth": ("discriminator", "genforce"),
    "gf_pggan_r32/pggan_fixture32.pth": ("discriminator", "genforce"),
    "gf_stylegan_r128/stylegan_fixture128.pth": ("discriminator", "genforce"),
}


def _refused(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["convert", *arguments], catch_exceptions=False)
    assert result.exit_code == 1, result.output
    assert not Path(arguments[arguments.index("--out") + 1]).exists()
    return result.stderr


@pytest.mark.parametrize("name", DISCRIMINATORS)
@needs_fixtures
def test_a_discriminator_is_called_one(name: str, tmp_path: Path) -> None:
    key, project = DISCRIMINATORS[name]
    out = str(tmp_path / "model.safetensors")
    by_key = _refused(str(ROOT / name), "--generator-option", f"key={key}", "--out", out)
    # In a file of its own, by the names of its tensors alone.
    torch.save(dict(read_checkpoint(ROOT / name, key).tensors), tmp_path / "alone.pt")
    alone = _refused(str(tmp_path / "alone.pt"), "--out", out)
    for message in (by_key, alone):
        assert "discriminator" in message
        assert project in message
        assert "not a generator" in message


def test_an_optimiser_is_called_one(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 4)
    adam = torch.optim.Adam(layer.parameters())
    layer(torch.randn(2, 3)).sum().backward()
    adam.step()
    torch.save(adam.state_dict(), tmp_path / "optimiser.pt")
    message = _refused(str(tmp_path / "optimiser.pt"), "--out", str(tmp_path / "model.safetensors"))
    assert "optimiser" in message


@pytest.mark.parametrize(
    ("name", "forced", "really"),
    [
        ("biggan_r64_ch6_hier", "stylegan2", "biggan"),
        ("hf_biggan_deep32_cw8", "biggan", "biggan_deep"),
        ("nv_sg3t_r64_map2/stylegan3-t-snapshot-000400.pkl", "stylegan2", "stylegan3"),
        ("gf_stylegan_r128/stylegan_fixture128.pth", "stylegan2", "stylegan"),
        ("sngan_mnist_r32_1ch", "dcgan", "sngan"),
        ("proggan_r64/100_celeb_hq_network-snapshot-fixture.pth", "sngan", "proggan"),
    ],
)
@needs_fixtures
def test_a_wrong_family_is_corrected(name: str, forced: str, really: str, tmp_path: Path) -> None:
    out = str(tmp_path / "model.safetensors")
    message = _refused(str(ROOT / name), "--family", forced, "--out", out)
    assert f"is a {really} by its tensors, not a {forced}" in message
    assert "Leave the family out" in message
