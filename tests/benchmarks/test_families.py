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

names, own_process = json.loads(sys.argv[1]), sys.argv[2] == "own process"
known = families.networks(tiny=True)
with contextlib.redirect_stdout(sys.stderr):
    settings, rows = families.families([known[name] for name in names], 1, own_process)
result = {"suite": "families", "settings": settings, "rows": [asdict(row) for row in rows]}
machine = {"cores": 2, "gpu": None, "processor": "some processor", "bf16_unit": None}
print(json.dumps([list(known), result, tables.table({**result, "machine": machine})]))
"""


def run(names: list[str], where: str) -> tuple[list[str], dict[str, object], str]:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(names), where],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (["BigGAN 16"], "here"),
        pytest.param(["ProgGAN 8"], "own process", marks=pytest.mark.slow),
        *(pytest.param([name], "here", marks=pytest.mark.slow) for name in NAMES[1:]),
    ],
)
def test_every_figure_of_a_tiny_network(names: list[str], where: str) -> None:
    known, result, table = run(names, where)
    assert sorted(known) == NAMES
    facts = result["settings"]["networks"][names[0]]
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
    assert f"- {names[0]}: 0.0 M parameters" in table
