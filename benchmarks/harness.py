"""What every benchmark shares: rows with speed, spread and error, and the file they are kept in."""

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastdirs.machine import alternate, describe_machine, matrix_flop, matrix_rate
from fastdirs.manifest import environment, write_json

RESULTS = Path(__file__).parent / "results"
Name = TypeVar("Name", str, tuple[str, str])
_MATRIX = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate.

    Attributes:
        name: What a user would call it.
        precision: "f32", "bf16", "f16" or "int8".
        images_per_second: Median.
        low: Images per second at the slower quartile.
        high: Images per second at the faster quartile.
        error_mean: Mean absolute error against torch fp32, in grey levels.
        error_max: Largest absolute error, in grey levels.
        matrix_share: Share of the measured matrix-product rate in this precision.
        failure: Why there are no figures; None if there are.
        extra: What else the suite measured.
    """

    name: str
    precision: str
    images_per_second: float = 0.0
    low: float = 0.0
    high: float = 0.0
    error_mean: float | None = None
    error_max: float | None = None
    matrix_share: float | None = None
    failure: str | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


def race(
    candidates: Mapping[Name, Callable[[], object]], images: int, rounds: int
) -> dict[Name, tuple[float, float, float]]:
    """Images per second of each candidate: median, slower quartile, faster quartile.

    Args:
        candidates: Work by name; each call makes `images` images.
        images: How many.
        rounds: Timings of each.
    """
    timings = alternate({str(name): work for name, work in candidates.items()}, rounds)
    named = {name: timings[str(name)] for name in candidates}
    return {
        name: (1000 * images / t.median_ms, 1000 * images / t.high_ms, 1000 * images / t.low_ms)
        for name, t in named.items()
    }


def matrix_rates(rounds: int = 9) -> dict[str, float]:
    """Rate of a square matrix product in torch for each precision, in TFLOP/s."""
    timings = alternate({name: matrix_rate(dtype) for name, dtype in _MATRIX.items()}, rounds)
    return {name: matrix_flop() / timing.median_ms / 1e9 for name, timing in timings.items()}


def write_result(suite: str, settings: Mapping[str, Any], rows: Sequence[Row | Mapping[str, Any]]) -> Path:
    """Keep a suite's rows, maybe of its own form, with the machine, versions and commit they hold for."""
    machine = describe_machine()
    unit = machine["bf16_unit"] or "no-bf16"
    slug = re.sub(
        r"[^a-z0-9]+",
        "-",
        f"{machine['gpu'] or machine['processor']}-{machine['cores']}-cores-{unit}".lower(),
    )
    path = RESULTS / f"{suite}--{slug}.json"
    kept = [asdict(row) if isinstance(row, Row) else dict(row) for row in rows]
    write_json(path, {
        "schema": 1, "suite": suite, "machine": machine, "environment": environment(), **_commit(),
        "settings": dict(settings), "rows": kept,
    })  # fmt: skip
    return path


def print_rows(rows: Sequence[Row]) -> None:
    """Rows as a table on standard output."""
    print(
        f"{'':44}{'images/s':>10}  {'quartiles':>15}  {'mean err':>9}  {'max err':>8}  {'of matrix rate':>14}"
    )
    for row in rows:
        if row.failure:
            print(f"{row.name:38}{row.precision:>6}  not measured: {row.failure}")
            continue
        error = (
            f"{row.error_mean:9.2g}  {row.error_max:8.2g}"
            if row.error_mean is not None
            else f"{'-':>9}  {'-':>8}"
        )
        share = f"{row.matrix_share:14.0%}" if row.matrix_share is not None else f"{'-':>14}"
        spread = f"{short(row.low)}-{short(row.high)}"
        speed = f"{short(row.images_per_second):>10}  {spread:>15}"
        print(f"{row.name:38}{row.precision:>6}{speed}  {error}  {share}")


def short(rate: float) -> str:
    """Images per second with three digits: 0.123, 4.56, 78.9, 1,234."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def load_results() -> list[dict[str, Any]]:
    """Every committed result, sorted by file name."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def _commit() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return {
        "commit": git("rev-parse", "--short", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "../fastdirs")),
    }
