"""Which backend and precision to open an artefact with."""

import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.errors import BackendError
from fastdirs.selection import AUTO, check_precision, measure_backends


def test_every_candidate_is_measured_once_and_kept(toy_artifact: Artifact) -> None:
    rows, _ = measure_backends(toy_artifact, AUTO, None, 8)
    again, kept = measure_backends(toy_artifact, AUTO, None, 8)
    assert kept
    assert again == rows
    assert {row.backend for row in rows} == {n for n in BACKENDS.names() if BACKENDS.load(n).runs == "graph"}
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
