"""Whole programs on Ray: killed, interrupted, on machines that are lost, joining a cluster by address."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from fastdirs import cluster
from fastdirs.artifact import Artifact
from fastdirs.cli import main
from fastdirs.directions import DirectionBank
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks

pytestmark = pytest.mark.slow

SETTINGS = MaskSettings(direction=3, epsilon=4.0)
MASKS: dict[str, Any] = {"per_shard": 100, "backend": "ort", "precision": "f32", "batch_size": 4}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_line_joins_a_cluster(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    toy_bank.save(tmp_path / "bank.safetensors")
    common = [str(toy_artifact.folder), str(tmp_path / "bank.safetensors"), "--backend", "ort"]
    masks = ["masks", *common, "--direction", "3", "--epsilon", "4", "--count", "20", "--per-shard", "5"]
    strips = ["traverse", *common, "--seeds", "0-9", "--write", "strips"]
    # As another program, to which our cluster is one on the network.
    with cluster._connected(None) as ray:
        joined = ["--on", f"ray:{ray.get_runtime_context().gcs_address}", "--worker-cores", "1"]
        for name, arguments in (("masks", masks), ("strips", strips)):
            local = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / f"local-{name}")])
            assert local.exit_code == 0, local.output
            done = subprocess.run(
                [
                    sys.executable,
                    "-W",
                    "error",
                    "-m",
                    "fastdirs",
                    *arguments,
                    *joined,
                    "--out",
                    tmp_path / name,
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert contents(tmp_path / name) == contents(tmp_path / f"local-{name}")


_DRIVER = """
import os, signal, sys
import psutil, fastdirs
from fastdirs.cluster import RayCluster
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks

artifact, bank, out, how = sys.argv[1:]

def cluster_folder():
    parts = [part for child in psutil.Process().children() for part in child.cmdline()]
    return {part.partition("=")[2] for part in parts if part.startswith("--temp_dir=")}

def progress(phase, done, total):
    if done >= 300:
        print(*cluster_folder())
        print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
        os.kill(os.getpid(), getattr(signal, how))

make_masks(
    artifact, fastdirs.load_bank(bank), out, MaskSettings(direction=3, epsilon=4.0), 1000, per_shard=100,
    backend="ort", precision="f32", batch_size=4, progress=progress, filler=RayCluster(cores=1).fill_shards,
)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_run_that_ends_early_leaves_no_process_and_continues(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path, how: str
) -> None:
    toy_bank.save(tmp_path / "bank.safetensors")
    out = tmp_path / "out"
    driver = subprocess.run(
        [sys.executable, "-W", "error", "-c", _DRIVER,
         *map(str, (toy_artifact.folder, tmp_path / "bank.safetensors", out, how))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert driver.returncode == -getattr(signal, how), driver.stderr
    folder, _, pids = driver.stdout.partition("\n")
    children = list(map(int, pids.split()))
    assert len(children) > 3
    # Workers end within seconds, the agents of a killed cluster within a minute.
    end = time.monotonic() + 120
    while any(map(psutil.pid_exists, children)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not [pid for pid in children if psutil.pid_exists(pid)]
    # Whoever is killed cannot tidy up; Ray's logs lie there.
    assert Path(folder).exists() == (how == "SIGKILL")
    shutil.rmtree(folder, ignore_errors=True)
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert 3 <= len(done) < 10
    make_masks(toy_artifact, toy_bank, out, SETTINGS, 1000, **MASKS)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    make_masks(toy_artifact, toy_bank, tmp_path / "local", SETTINGS, 1000, **MASKS)
    assert contents(out) == contents(tmp_path / "local")


_LOST_NODE = """
import sys
import fastdirs
from ray.cluster_utils import Cluster
from fastdirs.cluster import RayCluster
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks

artifact, bank, out = sys.argv[1:]
machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = machines.add_node(num_cpus=1)
events = []

def progress(phase, done, total):
    if done >= 300 and not events:
        events.append("lost")
        machines.remove_node(second, allow_graceful=False)
        machines.add_node(num_cpus=1)

try:
    make_masks(
        artifact, fastdirs.load_bank(bank), out, MaskSettings(direction=3, epsilon=4.0), 1000, per_shard=100,
        backend="ort", precision="f32", batch_size=4, progress=progress,
        filler=RayCluster(address=machines.address).fill_shards,
    )
finally:
    machines.shutdown()
print(*events)
"""


def test_a_lost_machine_costs_its_shard_only(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    toy_bank.save(tmp_path / "bank.safetensors")
    # Two machines in the eyes of Ray, each with processes and a store of its own.
    done = subprocess.run(
        [sys.executable, "-c", _LOST_NODE,
         *map(str, (toy_artifact.folder, tmp_path / "bank.safetensors", tmp_path / "ray"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["lost"], done.stderr
    make_masks(toy_artifact, toy_bank, tmp_path / "local", SETTINGS, 1000, **MASKS)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
