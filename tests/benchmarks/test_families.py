"""The benchmark of families runs on tiny networks of each, and its figures become a table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_TABLE = """
import json
import sys

sys.path.insert(0, "benchmarks")
import families
import tables

name = sys.argv[1]
network = families.networks(tiny=True)[name]
if __name__ == "__main__":
    facts, rows = families.measure(network, 1, {"f32": 1.0, "bf16": 1.0})
    row = {"matrix_share": 0.5}
    machine = {"cores": 2, "gpu": None, "processor": "some", "bf16_unit": None}
    settings = {"rounds": 1, "networks": {name: facts}, "matrix_tflops": {"f32": 1.0}}
    found = [families.asdict(row) for row in rows]
    print(json.dumps([facts, found]))
    print(tables._table({"suite": "families", "machine": machine, "settings": settings, "rows": found}))
"""
