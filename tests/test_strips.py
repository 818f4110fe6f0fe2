import random
from pathlib import Path
from typing import Any

import pytest

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.gallery import traverse
from fastdirs.runtime import open_runtime
from fastdirs.strips import Piece, StripSource, TraverseJob

CHOSEN: dict[str, Any] = {
    "seeds": range(3, 40), "directions": (0, 3), "epsilons": (-2.0, 0.0, 1.5, 3.0), "image_format": "png",
    "writers": ("strips", "npy"), "precision": "f32", "batch_size": 4,
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def job_of(artifact: Artifact, bank: DirectionBank, out: Path, **changes: Any) -> TraverseJob:
    """What a traversal hands to its filler."""
    jobs: list[TraverseJob] = []
    traverse(
        artifact,
        bank,
        out,
        **{**CHOSEN, "backend": "ort", **changes},
        filler=lambda job, *_: jobs.append(job),
    )
    return jobs[0]


@pytest.mark.parametrize("backend", ["ort", "openvino_cpu"])
def test_pieces_in_any_order_have_the_same_bytes(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path, backend: str
) -> None:
    traverse(toy_artifact, toy_bank, tmp_path / "whole", **CHOSEN, backend=backend)
    job = job_of(toy_artifact, toy_bank, tmp_path / "parts", backend=backend)
    (whole,) = job.missing()
    assert whole == Piece(0, range(37))
    parts = job.split(whole, batches=5)
    assert [part.seeds for part in parts[:2]] == [range(2), range(2, 4)], "7 images of a seed, 20 of a part"
    assert [place for part in parts for place in part.seeds] == list(whole.seeds)
    random.Random(0).shuffle(parts)
    added: list[int] = []
    with open_runtime(toy_artifact, backend, "f32", streaming=True) as runtime:
        for part in parts:
            with StripSource(job, runtime) as strips:
                strips.write(part, added.append)
    assert sum(added) == job.num_images == 37 * 2 * 4
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_what_is_there_is_not_made_again(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    job = job_of(toy_artifact, toy_bank, tmp_path / "out")
    with open_runtime(toy_artifact, "ort", "f32") as runtime, StripSource(job, runtime) as strips:
        strips.write(Piece(0, range(10, 20)))
        made = contents(tmp_path / "out")
        # Each seed has two strips of two files; only those that were asked for are written.
        assert len(made) == 1 + 10 * 2 * 2
        assert job.missing() == [Piece(0, range(37))]
        assert not job.rest(Piece(0, range(10, 20))).seeds
        assert job.rest(Piece(0, range(12, 24))) == Piece(0, range(20, 24))
        job.gallery.strip_path(job.portions[0].plan.seeds[15], 3).unlink()
        assert job.rest(Piece(0, range(10, 20))) == Piece(0, range(15, 20))
        added: list[int] = []
        strips.write(Piece(0, range(10, 20)), added.append)
        assert contents(tmp_path / "out") == made
        assert sum(added) == job.images(Piece(0, range(15, 20))) == 5 * 2 * 4
        strips.write(Piece(0, range(10, 20)), added.append)
        assert sum(added) == 40, "nothing to do"


def test_parts_of_a_piece_that_begins_late(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    job = job_of(toy_artifact, toy_bank, tmp_path / "out")
    parts = job.split(Piece(0, range(5, 37)), batches=32)
    assert [part.seeds for part in parts] == [range(5, 23), range(23, 37)]
    assert [part.seeds for part in job.split(Piece(0, range(5, 7)), batches=1)] == [range(5, 6), range(6, 7)]
