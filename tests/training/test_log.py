"""What a training leaves behind to look at."""

from pathlib import Path

import numpy as np

from fastdirs.images import decode
from fastdirs.training.log import TrainingLog, read_log


def test_lines_and_pictures(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, 0)
    log.figures(10, {"loss": 1.5}, rate=3.0)
    log.figures(20, {"loss": 1.25})
    picture = np.random.default_rng(0).integers(0, 255, (8, 24, 3), dtype=np.uint8)
    log.strips(20, picture)
    log.close()
    assert read_log(tmp_path) == [{"step": 10, "loss": 1.5}, {"step": 20, "loss": 1.25}]
    assert np.array_equal(decode((tmp_path / "strips" / "step-0000020.png").read_bytes()), picture)
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_what_is_done_again_is_logged_once(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.figures(step, {"loss": 1.0})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    TrainingLog(tmp_path, 20).close()
    assert [line["step"] for line in read_log(tmp_path)] == [10, 20]


def test_no_log(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
