import math
from collections.abc import Callable
from typing import Any

from click.testing import Result

from fastdirs.backends import BACKENDS

SMALL = ("toy", "--generator-option", "resolution=32", "--batch", 4, "--rounds", 1)


def test_json(run_json: Callable[..., Any]) -> None:
    found = run_json("bench", *SMALL)
    assert found["batch_size"] == 4
    assert found["machine"]["cores"] >= 1
    assert {row["backend"] for row in found["rows"]} == set(BACKENDS.names()) - {"compiled"}
    for row in found["rows"]:
        if row["failure"] is None:
            assert row["images_per_second"] > 0
            assert row["batch_ms"]["median_ms"] > 0
            assert row["latency_ms"]["median_ms"] > 0
            assert math.isfinite(row["parity"]["max"])


def test_a_table_without_json(run: Callable[..., Result]) -> None:
    result = run("bench", *SMALL)
    assert result.exit_code == 0, result.output
    header, *lines = result.stdout.splitlines()
    assert header.startswith("backend")
    for column in ("precision", "images/s", "one image ms", "error (mean, max grey levels)", "added MiB"):
        assert column in header
    assert {line.split()[0] for line in lines if line[0] != " "} == set(BACKENDS.names()) - {"compiled"}
    assert "toy, batch 4, " in result.stderr


def test_wrong_arguments(run: Callable[..., Result]) -> None:
    assert run("bench").exit_code == 2
    assert run("bench", "toy", "--batch", "0").exit_code == 2
    assert run("bench", "tyo").exit_code == 1
