"""The benchmark of true directions: its assignment is the best one, and what it finds becomes a table."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
_RUN = """
import json
import sys

sys.path.insert(0, "benchmarks")
import numpy as np
import tables
import toy_directions
from fastdirs.generators.toy import ATTRIBUTES, Toy

print(json.dumps({code}))
"""


@pytest.fixture(scope="module")
def evaluate() -> Callable[..., Any]:
    """What an expression gives in a Python that knows the benchmark: `evaluate(code, argument)`."""

    def run(code: str, argument: object = None) -> Any:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", _RUN.replace("{code}", code), json.dumps(argument)],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def rows(evaluate: Callable[..., Any]) -> list[dict[str, Any]]:
    """Of a small toy: one row of each kind, two seeds."""
    asked = [
        ("sefa", {"normalize": "none"}), ("random", {}), ("voynov", {"deformator": "proj"}),
    ]  # fmt: skip
    row = "toy_directions.row(Toy(16).eval().requires_grad_(False), *each, 6, 2, 3)"
    return evaluate(f"[{row} for each in json.loads(sys.argv[1])]", asked)


def test_the_assignment_is_the_best(evaluate: Callable[..., Any]) -> None:
    random = np.random.RandomState(0)
    tables = [random.rand(rows, columns).tolist() for rows, columns in ((5, 5), (5, 7), (3, 6), (1, 4))]
    code = "[toy_directions.assigned(np.array(table)).tolist() for table in json.loads(sys.argv[1])]"
    for table, found in zip(tables, evaluate(code, tables), strict=True):
        cosines = np.array(table)
        choices = permutations(range(cosines.shape[1]), len(cosines))
        best = max(cosines[range(len(cosines)), list(choice)].sum() for choice in choices)
        assert sum(found) == pytest.approx(best)
        assert all(value in row for value, row in zip(found, table, strict=True))


def test_every_form_of_every_method(evaluate: Callable[..., Any]) -> None:
    names = "toy_directions.METHODS.names()"
    variants, known = evaluate(f"[list(toy_directions.variants({names})), {names}]")
    assert {name for name, _ in variants} == set(known)
    assert ["sefa", {"normalize": "none"}] in variants
    assert ["random", {}] in variants


def test_rows(rows: list[dict[str, Any]]) -> None:
    named = {row["name"]: row for row in rows}
    assert set(named) == {"sefa, normalize=none", "random", "voynov, deformator=proj"}
    assert all(row["directions"] == 6 for row in rows)
    assert all(len(row["seconds"]) == len(row["cosines"]) == 2 for row in rows)
    np.testing.assert_allclose(named["sefa, normalize=none"]["cosines"], 1, atol=1e-3)
    # Another seed is another search.
    assert named["random"]["cosines"][0] != named["random"]["cosines"][1]
    assert max(named["random"]["cosines"][0]) < 0.95
    assert named["voynov, deformator=proj"]["cosines"][0] != named["voynov, deformator=proj"]["cosines"][1]
    assert [row["trains"] for row in rows] == [False, False, True]


def test_they_become_a_table(rows: list[dict[str, Any]], evaluate: Callable[..., Any]) -> None:
    settings = {
        "generator": "toy", "img_resolution": 16, "attributes": ["x", "y", "size", "hue", "background"],
        "seeds": 2, "steps": 3, "threads": 1, "chance": {"6": 0.67},
    }  # fmt: skip
    machine = {"cores": 2, "gpu": None, "processor": "a processor", "bf16_unit": None}
    result = {"suite": "toy-directions", "machine": machine, "settings": settings, "rows": rows}
    lines = evaluate("tables.table(json.loads(sys.argv[1]))", result).splitlines()
    header = "**toy-directions** (toy, 16 pixels, 2 seeds; 2 cores of a processor, bf16 unit: none, 1 thread)"
    assert lines[0] == header
    columns = {line.count("|") for line in lines if line.startswith("|")}
    assert columns == {7}
    assert next(line for line in lines if "sefa" in line).startswith(
        "| sefa, normalize=none | 6 | 1.00 | 1.00-1.00 |"
    )
    assert "ran 3 steps" in lines[-1]
    assert "reach 0.67 (K = 6)" in lines[-1]


def test_chance(evaluate: Callable[..., Any]) -> None:
    five, sixteen = evaluate("[toy_directions.chance(5, 200), toy_directions.chance(16, 200)]")
    assert five == pytest.approx(0.655, abs=0.02)
    assert sixteen == pytest.approx(0.82, abs=0.02)
