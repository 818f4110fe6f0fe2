"""The benchmark of edits of some layers runs on a tiny network."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "benchmarks/layers.py", "--quick", "--network", "StyleGAN2 16", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_ways_make_the_same_images() -> None:
    found = _run("--layers", "3-5", "--directions", "4", "--rounds", "1")
    assert "whole graph" in found
    assert "cut before stage 3" in found
    run, whole = map(int, re.findall(r"evaluations: \[(\d+), (\d+)\]", found)[0])
    assert run < whole
    # In bf16 a cut rounds at its boundary, as bf16 does everywhere.
    assert float(re.findall(r"difference: (\S+)", found)[0]) < 16
    assert "kept in" not in found


def test_shares_ascend_to_one() -> None:
    shares = [float(each) for each in re.findall(r"before stage \d+: ([\d.]+)%", _run("--shares"))]
    assert len(shares) == 6
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert 50 < shares[-1] < 100
