"""Which backend and precision to open an artefact with."""

from pathlib import Path

import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import graph_backends
from fastdirs.errors import BackendError
from fastdirs.export import export_generator
from fastdirs.generators import Generator
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, Recipe, Tolerance
from fastdirs.selection import AUTO, check_precision, measure_backends


def test_every_candidate_is_measured_once_and_kept(toy_artifact: Artifact) -> None:
    rows, _ = measure_backends(toy_artifact, AUTO, None, 8)
    again, kept = measure_backends(toy_artifact, AUTO, None, 8)
    assert kept
    assert again == rows
    assert {row.backend for row in rows} == {name for name, _ in graph_backends(("f32",))[0]}
    for row in rows:
        assert row.images_per_second > 0
        assert row.accepted == row.parity.within(toy_artifact.accept[row.precision])


def test_other_batch_sizes_are_measured_anew(toy_artifact: Artifact) -> None:
    measure_backends(toy_artifact, "ort", "f32", 4)
    _, kept = measure_backends(toy_artifact, "ort", "f32", 5)
    assert not kept


def test_precision_that_a_backend_lacks() -> None:
    check_precision("ort", "f32")
    with pytest.raises(BackendError, match="ort does not compute in 'bf16'"):
        check_precision("ort", "bf16")


def test_a_form_is_not_chosen_for_a_precision_that_is_not_accepted(
    small_dcgan: Generator, tmp_path: Path
) -> None:
    lines: list[str] = []
    accept = {"f32": DEFAULT_ACCEPT["f32"], "bf16": Tolerance(mean=0, max=0, psnr=300)}
    recipe = Recipe(generator="any", batch=Batch(opt=2, max=4), accept=accept)
    export_generator(small_dcgan, tmp_path / "artifact", recipe, report=lines.append)
    timed = [line for line in lines if "images/s" in line]
    assert timed
    assert not [line for line in timed if "bf16" in line]
