"""What every training promises on the command line: a killed one goes on, several processes agree."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastdirs.directions import load_bank
from fastdirs.training.log import read_log

QUICK = {
    "batch": "8", "log_every": "10", "save_every": "10", "held_out": "16", "precision": "f32",
    "picture_every": "0",
}  # fmt: skip


def command(out: Path, steps: int, *before: str) -> list[str]:
    options = {**QUICK, "steps": str(steps)}
    return [
        sys.executable, "-W", "ignore", "-m", *before, "fastdirs", "discover", "toy", "--method", "voynov",
        "--generator-option", "resolution=32", "--directions", "3", "--out", str(out),
        *(part for name, value in options.items() for part in ("-o", f"{name}={value}")),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_process_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    assert subprocess.run(command(whole, 400), check=False).returncode == 0
    process = subprocess.Popen(command(killed, 400))
    deadline = time.monotonic() + 240
    # Somewhere between two checkpoints, not before the first.
    while len(read_log(tmp_path / "killed.run")) < 7:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    assert subprocess.run(command(killed, 400), check=False).returncode == 0
    assert killed.read_bytes() == whole.read_bytes()
    for name in ("checkpoint.safetensors", "reconstructor.safetensors", "log.jsonl"):
        assert (tmp_path / "killed.run" / name).read_bytes() == (tmp_path / "whole.run" / name).read_bytes()


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command(one, 10), env=environment, check=False).returncode == 0
    launched = command(two, 10, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    done = subprocess.run(launched, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # One of them speaks.
    assert done.stdout.strip() == str(two)
    banks = [load_bank(path) for path in (one, two)]
    assert banks[0].settings == banks[1].settings
    # Batch norms see half a batch each, so not the same bits.
    cosines = (banks[0].directions.flatten(1) @ banks[1].directions.flatten(1).T).abs().amax(dim=1)
    assert cosines.min() > 0.97
    steps = [[line["step"] for line in read_log(path.with_suffix(".run"))] for path in (one, two)]
    assert steps[0] == steps[1] == [10]
