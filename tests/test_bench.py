import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastdirs.backends import BACKENDS
from fastdirs.bench import Row, bench, conditions
from fastdirs.errors import MissingDependencyError
from fastdirs.generators import Generator
from fastdirs.manifest import environment
from fastdirs.module_generator import ModuleGenerator
from fastdirs.recipe import DEFAULT_ACCEPT

BATCH = 4


@pytest.fixture(scope="module")
def measured(small_dcgan: Generator) -> tuple[list[Row], list[tuple[int, int]]]:
    """Rows of a real measurement, and the progress that it reported."""
    seen: list[tuple[int, int]] = []
    rows = bench(
        small_dcgan, batch_size=BATCH, rounds=2, progress=lambda done, total: seen.append((done, total))
    )
    return rows, seen


def test_a_row_for_every_backend_and_precision(measured: tuple[list[Row], object]) -> None:
    expected = set()
    for name in BACKENDS.names():
        try:
            backend = BACKENDS.load(name)
            own = [each for each in backend.precisions() if backend.graph_of(each) == "f32"]
            offered = [*backend.precisions()] if backend.runs == "module" else own
            if name != "compiled":
                expected |= {(name, precision) for precision in offered or [""]}
        except MissingDependencyError:
            expected.add((name, ""))
    assert {(row.backend, row.precision) for row in measured[0]} == expected


def test_every_row_has_its_figures(measured: tuple[list[Row], object]) -> None:
    for row in measured[0]:
        if BACKENDS.load(row.backend).lacks():
            assert row.failure == BACKENDS.load(row.backend).lacks()
            continue
        assert row.failure is None
        assert row.provider
        assert row.batch_ms is not None
        assert row.latency_ms is not None
        assert row.parity is not None
        assert row.batch_ms.repeats == row.latency_ms.repeats == 2
        assert row.batch_ms.low_ms <= row.batch_ms.median_ms <= row.batch_ms.high_ms
        assert row.images_per_second == pytest.approx(1000 * BATCH / row.batch_ms.median_ms)
        assert row.parity.within(DEFAULT_ACCEPT[row.precision])
        assert -64 < row.memory_mib < 512
    eager = next(row for row in measured[0] if (row.backend, row.precision) == ("eager", "f32"))
    assert eager.parity is not None
    # Other batch sizes may round otherwise, even in torch.
    assert eager.parity.max < 0.01
    openvino = next(row for row in measured[0] if (row.backend, row.precision) == ("openvino_cpu", "f32"))
    assert "heavy layers in f32" in openvino.provider


@pytest.mark.parametrize("name", ["conditional", "classes"])
def test_conditional_generators_are_measured_on_their_classes(
    name: str, request: pytest.FixtureRequest
) -> None:
    rows = bench(request.getfixturevalue(name), batch_size=2, rounds=1)
    assert {row.backend for row in rows} == set(BACKENDS.names()) - {"compiled"}
    run = [name for name in BACKENDS.names() if name != "compiled" and BACKENDS.load(name).precisions()]
    assert [row.failure for row in rows if row.precision == "f32"] == [None] * len(run)
    assert all(row.parity is None or row.parity.within(DEFAULT_ACCEPT[row.precision]) for row in rows)


def test_fastest_first(measured: tuple[list[Row], object]) -> None:
    speeds = [row.images_per_second for row in measured[0]]
    assert speeds == sorted(speeds, reverse=True)


def test_progress_counts_all_timings(measured: tuple[list[Row], list[tuple[int, int]]]) -> None:
    rows, seen = measured
    # Streams and single images, two rounds each.
    total = 2 * 2 * len([row for row in rows if row.failure is None])
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_conditions_say_what_the_figures_hold_for(small_dcgan: Generator) -> None:
    facts = conditions(small_dcgan, BATCH)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["generator"] == small_dcgan.identity()
    assert facts["batch_size"] == BATCH
    assert facts["machine"]["processor"]
    assert facts["environment"] == environment()


class _BranchesOnValues(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        picture = torch.tanh(z[:, :3, None, None]).expand(-1, 3, 8, 8)
        return picture if picture.sum() > 0 else -picture


def test_an_export_that_fails_fails_the_graphs_alone() -> None:
    rows = {row.backend: row for row in bench(ModuleGenerator(_BranchesOnValues(), z_dim=4), 1, 1)}
    assert rows["eager"].failure is None
    for name in ("ort", "openvino_cpu"):
        failure = rows[name].failure
        assert failure is not None
        assert "cannot be traced" in failure
        assert rows[name].images_per_second == 0.0


_BENCH = """
import fastdirs
from fastdirs.bench import bench

for row in bench(fastdirs.load_generator("toy", options={"resolution": "16"}), batch_size=2, rounds=1):
    print("|".join([row.backend, row.precision, str(row.parity is not None), str(row.failure)]))
"""


@pytest.mark.parametrize("missing", [("openvino",), ("openvino", "onnxruntime")])
def test_what_is_not_installed_has_a_row_that_says_so(
    python_without: Callable[..., str], missing: tuple[str, ...]
) -> None:
    backends = {"openvino": "openvino_cpu", "onnxruntime": "ort"}
    rows = {
        tuple(line.split("|")[:2]): line.split("|")[2:]
        for line in python_without(missing, _BENCH).splitlines()
    }
    assert rows["eager", "f32"] == ["True", "None"]
    for package in missing:
        needs = f"The backend '{backends[package]}' needs {package}, which is not installed: "
        assert rows[backends[package], ""] == ["False", needs + "pip install 'fastdirs[cpu]'"]
    if "onnxruntime" not in missing:
        assert rows["ort", "f32"] == ["True", "None"]
