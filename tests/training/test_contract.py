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
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command(whole, 400), env=one_thread, check=False).returncode == 0
    process = subprocess.Popen(command(killed, 400), env=one_thread)
    deadline = time.monotonic() + 240
    # Somewhere between two checkpoints, not before the first.
    while len(read_log(tmp_path / "killed.run")) < 7:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    assert subprocess.run(command(killed, 400), env=one_thread, check=False).returncode == 0
    assert killed.read_bytes() == whole.read_bytes()
    for name in ("checkpoint.safetensors", "reconstructor.safetensors", "log.jsonl"):
        assert (tmp_path / "killed.run" / name).read_bytes() == (tmp_path / "whole.run" / name).read_bytes()


def test_two_processes_are_one_run(tmp_path: Path) -> None:
    two = tmp_path / "two.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launched = command(two, 10, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    launched += ["--folder", str(tmp_path / "run")]
    done = subprocess.run(launched, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # One of them speaks and writes.
    assert done.stdout.strip() == str(two)
    assert [line["step"] for line in read_log(tmp_path / "run")] == [10]
    assert len(load_bank(two)) == 3
    # One process would see other batches in its batch norms.
    alone = subprocess.run(
        [*command(two, 20), "--folder", str(tmp_path / "run"), "--force"], env=environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert alone.returncode == 1
    assert "processes=2, not processes=1" in alone.stderr


_AGREE = """
import torch
from fastdirs.deformators import build_deformator
from fastdirs.discovery.manifolds import CentroidLoss
from fastdirs.loading import load_generator
from fastdirs.reconstructors import build_reconstructor
from fastdirs.shift_space import ShiftSpace
from fastdirs.training.settings import TrainingSettings
from fastdirs.training.trainer import Trainer

toy = load_generator("toy", options={"resolution": "16"})
settings = TrainingSettings(batch=16, precision="f32").resolved(toy)
space = ShiftSpace(toy, (0,))
torch.manual_seed(0)
trainer = Trainer(
    space, build_deformator("proj", 8, space.size), build_reconstructor("small", 8, 3, 16), settings,
    CentroidLoss(), 1.0, per_direction=4,
)
pairs = trainer._pairs(0)
mine = pairs.directions[trainer._mine]
# Each process has all that a leave-one-out centroid needs, and none has what another has.
assert (torch.bincount(mine)[mine] == 4).all(), mine
z = trainer.fabric.all_gather(pairs.z[trainer._mine]).flatten(0, 1)
assert len(z.unique(dim=0)) == 16
begun = torch.cat([parameter.detach().flatten() for parameter in trainer.module.parameters()])
trainer.step(0)
weights = torch.cat([parameter.detach().flatten() for parameter in trainer.module.parameters()])
everyone = trainer.fabric.all_gather(weights)
assert everyone.shape[0] == 2
assert torch.equal(everyone[0], everyone[1]), "gradients were not shared"
assert not torch.equal(weights, begun)
print("agreed")
"""


def test_processes_share_gradients_and_whole_sets_of_directions(tmp_path: Path) -> None:
    (tmp_path / "agree.py").write_text(_AGREE)
    launched = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", str(tmp_path / "agree.py"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launched, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agreed") == 2
