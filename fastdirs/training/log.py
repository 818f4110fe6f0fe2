"""What a training leaves behind to look at: figures as JSON lines and in TensorBoard, pictures of strips."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from fastdirs.images import Pixels, encode
from fastdirs.manifest import write_bytes

LOG_FILE, STRIPS_FOLDER, TENSORBOARD_FOLDER = "log.jsonl", "strips", "tensorboard"


class TrainingLog:
    """The log of one run. What was logged after the step that it continues from is dropped.

    Args:
        folder: The run's folder.
        step: Steps done when the run is continued; 0 at the beginning.

    Raises:
        OutputError: The log cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder
        self._path = folder / LOG_FILE
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= step]
        write_bytes(self._path, "".join(f"{line}\n" for line in kept).encode())
        self._board = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=step + 1)

    def figures(self, step: int, figures: Mapping[str, float], rate: float | None = None) -> None:
        """Add a line.

        Args:
            step: Steps done.
            figures: By name. They depend on the run alone, so that equal runs give equal lines.
            rate: Steps per second, which goes to TensorBoard only.
        """
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)
        if rate is not None:
            self._board.add_scalar("steps per second", rate, step)

    def strips(self, step: int, picture: Pixels) -> None:
        """Keep a picture of strips, `[height, width, channels]`, uint8."""
        write_bytes(self._folder / STRIPS_FOLDER / f"step-{step:07d}.png", encode(picture, "png"))
        self._board.add_image("strips", torch.from_numpy(picture.transpose(2, 0, 1).copy()), step)

    def close(self) -> None:
        """Write out what TensorBoard holds back."""
        self._board.close()


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, in order."""
    return [json.loads(line) for line in _lines(folder / LOG_FILE)]


def _lines(path: Path) -> list[str]:
    """Whole lines; a run that was killed may have left half of one."""
    if not path.exists():
        return []
    whole = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            json.loads(line)
            whole.append(line)
    return whole
