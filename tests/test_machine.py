import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdirs.machine import (
    alternate,
    bf16_unit,
    describe_machine,
    matrix_flop,
    matrix_rate,
    resident_mib,
)


def test_alternates_after_one_warm_up_each() -> None:
    calls: list[str] = []
    seen: list[tuple[int, int]] = []
    timings = alternate(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        rounds=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert "".join(calls) == "ab" + "ababab"
    assert seen == [(count, 6) for count in range(1, 7)]
    assert [timings[name].repeats for name in ("a", "b")] == [3, 3]


def test_times_in_milliseconds() -> None:
    timing = alternate({"nap": lambda: time.sleep(0.01)}, rounds=3)["nap"]
    assert 10.0 <= timing.low_ms <= timing.median_ms <= timing.high_ms < 100.0


@pytest.mark.parametrize("rounds", [1, 2, 3, 7])
def test_quartiles_lie_within_what_was_measured(rounds: int) -> None:
    naps = iter([0.0, *(0.001 * 4**turn for turn in range(4)), 0.0, 0.0, 0.0])
    timing = alternate({"naps": lambda: time.sleep(next(naps))}, rounds=rounds)["naps"]
    assert 0.0 < timing.low_ms <= timing.median_ms <= timing.high_ms < 200.0
    if rounds == 2:
        # 1 ms and 4 ms: a method that reaches beyond them would say 0.25 ms.
        assert timing.low_ms >= 1.0


def test_nothing_to_time() -> None:
    assert alternate({}, rounds=3) == {}


def test_bf16_unit_is_what_the_processor_says() -> None:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("this system has no /proc/cpuinfo")
    words = info.read_text().split()
    wanted = "amx_bf16" if "amx_bf16" in words else "avx512_bf16" if "avx512_bf16" in words else None
    assert bf16_unit() == wanted


def test_describes_the_machine() -> None:
    facts = describe_machine()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["processor"]
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)
    assert facts["memory_gib"] >= 1
    assert facts == describe_machine(), "the key of kept measurements must not change by itself"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_product_has_the_work_it_says(dtype: torch.dtype) -> None:
    product = matrix_rate(dtype)()
    assert isinstance(product, torch.Tensor)
    assert product.dtype == dtype
    rows, columns = product.shape
    # A product of square matrices: two operations for each of size^3 pairs.
    assert matrix_flop() == 2 * rows * columns * rows


def test_resident_memory_follows_what_is_held() -> None:
    if resident_mib() == 0.0:
        pytest.skip("this system does not say how much memory is resident")
    before = resident_mib()
    block = np.ones(64 * 2**20, dtype=np.uint8)
    held = resident_mib() - before
    assert 56 < held < 80
    del block
    assert resident_mib() - before < 16
