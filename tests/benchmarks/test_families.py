"""The benchmark of families runs on a tiny network of each, and what it finds becomes a table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ["BigGAN 16", "BigGAN-deep 16", "ProgGAN 8", "StyleGAN2 16", "StyleGAN3-T 16"]
_RUN = """
import contextlib
import json
import sys
from dataclasses import asdict

sys.path.insert(0, "benchmarks")
import families
import tables

own_process = sys.argv[2] == "own process"
known = families.networks(tiny=True)
listed = list(known)
small = families.stylegan2.published(16, 256, 16, w_dim=16)
known["random noise"] = families.Network("random noise", "stylegan2", {**small, "noise": "random"}, 2)
known["flat"] = families.Network("flat", "stylegan2", {**small, "conv_clamp": 0.0}, 2)
with contextlib.redirect_stdout(sys.stderr):
    settings, rows = families.families([known[sys.argv[1]]], 1, own_process)
result = {"suite": "families", "settings": settings, "rows": [asdict(row) for row in rows]}
machine = {"cores": 2, "gpu": None, "processor": "some processor", "bf16_unit": None}
print(json.dumps([listed, result, tables.table({**result, "machine": machine})]))
"""


def run(name: str, where: str) -> tuple[list[str], dict[str, object], str]:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, name, where],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("ProgGAN 8", "here"),
        pytest.param("ProgGAN 8", "own process", marks=pytest.mark.slow),
        *(pytest.param(name, "here", marks=pytest.mark.slow) for name in NAMES if name != "ProgGAN 8"),
    ],
)
def test_every_figure_of_a_tiny_network(name: str, where: str) -> None:
    known, result, table = run(name, where)
    assert sorted(known) == NAMES
    facts = result["settings"]["networks"][name]
    assert facts["parameters"] > 0
    assert facts["gflop_per_image"] > 0
    assert facts["export_seconds"] > 0
    assert facts["export_peak_mib"] > 0
    measured = {
        (row["name"].partition(": ")[2], row["precision"]) for row in result["rows"] if not row["failure"]
    }
    assert {
        ("torch eager, one at a time", "f32"), ("torch eager, batched", "f32"), ("ort", "f32"),
        ("openvino_cpu", "f32"),
    } <= measured  # fmt: skip
    for row in result["rows"]:
        if row["failure"]:
            assert "bf16" in row["failure"]
            continue
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert row["error_max"] < (0.5 if row["precision"] == "f32" else 255)
        assert row["extra"]["peak_mib"] > 0
        assert f"| {row['name']} | {row['precision']} |" in table
    assert f"- {name}: {facts['parameters'] / 1e6:.1f} M parameters" in table


def test_a_network_that_cannot_be_exported_says_why() -> None:
    """Torch is measured all the same; each runtime for graphs is a row with the reason."""
    _, result, table = run("random noise", "here")
    reasons = {row["name"]: row["failure"] for row in result["rows"]}
    assert reasons["random noise: torch eager, batched"] is None
    for name in ("ort", "openvino_cpu"):
        assert "draws new noise" in reasons[f"random noise: {name}"]
    assert "- random noise: 0.0 M parameters" in table
    assert "no export" in table


def test_a_network_without_pictures_is_not_measured() -> None:
    """The error of images that are all alike would say nothing."""
    _, result, _ = run("flat", "here")
    (row,) = result["rows"]
    assert "makes no pictures" in row["failure"]
