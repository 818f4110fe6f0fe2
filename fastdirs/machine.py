"""What machine this is, how fast it multiplies matrices, how much memory is used, and how to time fairly."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdirs.manifest import Json

_MATRIX_SIZE = 2048
_REST_S = 0.05


@dataclass(frozen=True)
class Timing:
    """Repeated timings of one piece of work.

    Attributes:
        median_ms: Median, in milliseconds.
        low_ms: First quartile.
        high_ms: Third quartile.
        repeats: How many timings.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int


def alternate(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Timing]:
    """Time candidates fairly on a noisy machine: one warm-up each, then in turns: a slow spell hits all.

    Before each there is a short rest: the threads of the runtime before it wait busily for more work, and
    would keep the cores from the next one.

    Args:
        candidates: Work by name; each call must end with the work done.
        rounds: Timings of each.
        progress: Called with timings done and timings in all.
    """
    for work in candidates.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds):
        for position, (name, work) in enumerate(candidates.items()):
            time.sleep(_REST_S)
            start = time.perf_counter()
            work()
            taken[name].append((time.perf_counter() - start) * 1000)
            progress(turn * len(candidates) + position + 1, rounds * len(candidates))
    return {name: _summary(values) for name, values in taken.items()}


def _summary(values: list[float]) -> Timing:
    # "inclusive" stays within what was measured; the other method reaches beyond it where values are few.
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    )
    return Timing(median_ms=median, low_ms=low, high_ms=high, repeats=len(values))


def bf16_unit() -> str | None:
    """What multiplies bf16 matrices in this processor: "amx_bf16", "avx512_bf16", or None: only emulated."""
    flags = _cpu_info("flags").split()
    return next((unit for unit in ("amx_bf16", "avx512_bf16") if unit in flags), None)


def process_rank() -> int:
    """Which of the processes that torchrun started this is; 0 where there is one."""
    return int(os.environ.get("RANK", "0")) if processes()[0] > 1 else 0


def processes() -> tuple[int, int]:
    """How many processes torchrun started, in all and on this machine; other launchers are not asked."""
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        return 1, 1
    return int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])


def describe_machine() -> Json:
    """Facts that timings depend on: processor, cores, memory, bf16 unit, system, GPU."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": _cpu_info("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        # Windows has no sysconf.
        "memory_gib": round(_page_mib() * os.sysconf("SC_PHYS_PAGES") / 1024)
        if hasattr(os, "sysconf")
        else None,
        "bf16_unit": bf16_unit(),
        "system": platform.system(),
        "gpu": gpu,
    }


def matrix_rate(dtype: torch.dtype) -> Callable[[], object]:
    """Work to time: one product of two square matrices, `matrix_flop()` floating-point operations."""
    a = torch.randn(_MATRIX_SIZE, _MATRIX_SIZE).to(dtype)
    return lambda: a @ a


def matrix_flop() -> int:
    """Floating-point operations of one `matrix_rate` product."""
    return 2 * _MATRIX_SIZE**3


def resident_mib() -> float:
    """Memory that this process holds now, in MiB (0 where the system does not say)."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0.0
    return int(status.read_text().split()[1]) * _page_mib()


def _page_mib() -> float:
    return os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_info(field: str) -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return ""
    for line in info.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
