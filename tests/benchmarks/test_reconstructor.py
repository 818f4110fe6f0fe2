"""The reconstructor suite measures every network in every way, with an error beside each figure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastdirs.backends import graph_backends
from fastdirs.reconstructors import RECONSTRUCTORS

ROOT = Path(__file__).parents[2]
_RUN = """
import contextlib, json, sys
from dataclasses import asdict
sys.path.insert(0, "benchmarks")
import reconstructor, tables
with contextlib.redirect_stdout(sys.stderr):
    settings, rows = reconstructor.reconstructors(2, 32, 1)
result = {"suite": "reconstructor", "settings": settings, "rows": [asdict(row) for row in rows]}
machine = {"cores": 2, "gpu": None, "processor": "some processor", "bf16_unit": None}
print(json.dumps([result, tables.table({**result, "machine": machine})]))
"""


@pytest.mark.slow
def test_every_network_in_every_way() -> None:
    done = subprocess.run([sys.executable, "-c", _RUN], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result, table = json.loads(done.stdout)
    ways = [
        "torch eager, one at a time",
        "torch eager, batched",
        *(name for name, _ in graph_backends(("f32",))[0]),
    ]
    assert [row["name"] for row in result["rows"]] == [
        f"{kind}: {way}" for kind in RECONSTRUCTORS.names() for way in ways
    ]
    for row in result["rows"]:
        assert row["failure"] is None
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert 0 <= row["error_mean"] <= row["error_max"] < 1e-3
        assert row["matrix_share"] > 0
        assert f"| {row['name']} | f32 |" in table
    assert set(result["settings"]["gflop_per_pair"]) == set(RECONSTRUCTORS.names())
    assert "pairs/s" in table
