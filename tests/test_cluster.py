"""Jobs on a real Ray cluster: the bytes of a local run, whoever is killed on the way."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner

from fastdirs import cluster
from fastdirs.artifact import Artifact, open_artifact
from fastdirs.bank_editing import merge
from fastdirs.cli import main
from fastdirs.cluster import RayCluster
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.errors import ArtifactError, BackendError, MaskError, OutputError, SelectionError
from fastdirs.gallery import traverse
from fastdirs.generators import Generator
from fastdirs.loading import load_generator
from fastdirs.mask_filters import Filters
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks
from fastdirs.registry import install_hint
from fastdirs.shift_space import ShiftSpace

SETTINGS = MaskSettings(direction=3, epsilon=4.0)
MASKS: dict[str, Any] = {"per_shard": 6, "backend": "ort", "precision": "f32", "batch_size": 4}
STRIPS: dict[str, Any] = {
    "seeds": range(60), "directions": (0, 2, 3), "epsilons": (-2.0, 0.0, 1.5, 3.0), "image_format": "png",
    "writers": ("strips", "npy", "atlas"), "backend": "ort", "precision": "f32", "batch_size": 4,
}  # fmt: skip
TWO = RayCluster(cores=1)


@pytest.fixture(scope="module", autouse=True)
def running() -> Iterator[None]:
    """One cluster for all jobs of this process: whatever runs already is used."""
    with cluster._connected(None):
        yield
    assert not workers("ray::"), "nothing is left over"


def workers(title: str) -> list[psutil.Process]:
    """Processes of our cluster by what Ray calls them: those that work, or all."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(part.startswith(title) for part in process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_one() -> None:
    """SIGKILL to a worker that is at work."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for process in workers("ray::_work"):
            process.kill()
            return
    pytest.fail("no worker is at work")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("backend", ["ort", pytest.param("openvino_cpu", marks=pytest.mark.slow)])
def test_masks_are_those_of_a_local_run(
    dcgan_artifact: Artifact, tmp_path: Path, backend: str, dcgan_bank: DirectionBank
) -> None:
    settings = MaskSettings(direction=0, epsilon=4.0, filters=Filters(min_area=0.0, max_area=1.0))
    added: list[tuple[str, int, int]] = []
    for name, filler in (("local", None), ("ray", TWO.fill_shards)):
        make_masks(
            dcgan_artifact, dcgan_bank, tmp_path / name, settings, 32, **{**MASKS, "backend": backend},
            filler=filler, progress=lambda *step: added.append(step),
        )  # fmt: skip
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert len(contents(tmp_path / "ray")) == 2 * 6 + 2
    assert added[-1] == ("pairs", 32, 32)


@pytest.fixture(scope="module")
def dcgan_bank(small_dcgan: Generator) -> DirectionBank:
    return discover(small_dcgan, "sefa", num_directions=2)


@pytest.mark.slow
def test_masks_of_a_generator_without_an_artefact(
    toy: Generator, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    chosen = {**MASKS, "backend": "eager"}
    for name, filler in (("local", None), ("ray", TWO.fill_shards)):
        make_masks(toy, toy_bank, tmp_path / name, SETTINGS, 20, **chosen, filler=filler)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def killing(after: int) -> Callable[..., None]:
    """Progress that kills a worker once."""
    killed: list[int] = []

    def progress(phase: str, done: int, total: int) -> None:
        if phase in ("pairs", "rendering") and after <= done < total and not killed:
            killed.append(done)
            kill_one()

    return progress


@pytest.mark.slow
def test_a_killed_worker_costs_its_shard_only(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    chosen = {**MASKS, "per_shard": 50}
    make_masks(toy_artifact, toy_bank, tmp_path / "local", SETTINGS, 500, **chosen)
    written: dict[Path, int] = {}

    def progress(phase: str, done: int, total: int) -> None:
        kill(phase, done, total)
        for path in (tmp_path / "ray" / "shards").glob("*.json"):
            assert written.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns

    kill = killing(after=100)
    dataset = make_masks(
        toy_artifact, toy_bank, tmp_path / "ray", SETTINGS, 500, **chosen, progress=progress,
        filler=TWO.fill_shards,
    )  # fmt: skip
    dataset.check()
    assert len(written) == 10, "none was written twice"
    assert contents(tmp_path / "ray") == contents(tmp_path / "local"), "and no temporary file is left"


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_strips_are_those_of_a_local_run(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path, kill: bool
) -> None:
    chosen = {**STRIPS, "seeds": range(500)} if kill else STRIPS
    traverse(toy_artifact, toy_bank, tmp_path / "local", **chosen)
    progress = killing(after=1000) if kill else lambda *step: None
    traverse(toy_artifact, toy_bank, tmp_path / "ray", **chosen, filler=TWO.write_strips, progress=progress)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
def test_strips_of_a_cut_generator_and_what_is_there_already(
    layered_artifact: Artifact, layered_bank: DirectionBank, tmp_path: Path
) -> None:
    chosen = {**STRIPS, "directions": None, "epsilons": (-3.0, -1.0, 1.0, 3.0)}
    local = traverse(layered_artifact, layered_bank, tmp_path / "local", **chosen)
    traverse(layered_artifact, layered_bank, tmp_path / "ray", **chosen, filler=TWO.write_strips)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    for seed, direction in ((3, 0), (40, 1), (41, 1), (59, 0)):
        local.strip_path(seed, direction).unlink()
    done: list[tuple[str, int, int]] = []
    traverse(
        layered_artifact, layered_bank, tmp_path / "local", **chosen, filler=TWO.write_strips,
        progress=lambda *step: done.append(step),
    )  # fmt: skip
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert ("rendering", 480, 480) in done


@pytest.fixture(scope="module")
def layered_bank(layered: Generator) -> DirectionBank:
    """One direction of each of the last two layers, so that the synthesis is cut twice."""
    banks = [
        ShiftSpace(layered, (layer,)).bank(torch.eye(5)[:1], torch.ones(1), "test", {}) for layer in (1, 2)
    ]
    return merge(banks)


@pytest.mark.slow
def test_errors_of_workers_are_those_of_a_local_run(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    nothing = MaskSettings(direction=3, epsilon=4.0, filters=Filters(min_area=0.99, max_area=1.0))
    with pytest.raises(MaskError, match=r"only \d make a pair.*shows what became of some") as error:
        make_masks(toy_artifact, toy_bank, tmp_path / "out", nothing, 30, **MASKS, filler=TWO.fill_shards)
    assert error.value.__cause__ is not None
    assert type(error.value.__cause__) is MaskError
    assert error.value.__cause__.__cause__ is None
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def in_the_way(phase: str, done: int, total: int) -> None:
        # A folder stands where the second shard belongs.
        (out / "shards" / "000001.tar").mkdir(parents=True, exist_ok=True)

    with pytest.raises(OutputError, match="could not be written"):
        make_masks(
            toy_artifact, toy_bank, out, SETTINGS, 30, **MASKS, progress=in_the_way, filler=TWO.fill_shards
        )
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "change", "error", "match"),
    [
        ("out/dataset.json", {"environment": {"torch": "1.0"}}, BackendError, "has torch .* begun with 1.0"),
        ("out/dataset.json", {"runtime": {"backend": "ort", "precision": "f32", "provider": "x"}},
         BackendError, "Use machines of one kind"),
        ("out/dataset.json", {"kind": "other"}, OutputError, "does not see .*have to share"),
        ("artifact/manifest.json", {"kind": "other"}, ArtifactError, "^On .*is not the manifest"),
    ],
)  # fmt: skip
def test_a_machine_that_does_not_fit(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path,
    path: str, change: dict[str, Any], error: type[Exception], match: str,
) -> None:  # fmt: skip
    shutil.copytree(toy_artifact.folder, tmp_path / "artifact")

    def elsewhere(job: Any, shards: Sequence[int], progress: Callable[[int], None]) -> None:
        # What a worker on another machine would find.
        file = tmp_path / path
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        TWO.fill_shards(job, shards, progress)

    with pytest.raises(error, match=match):
        make_masks(
            open_artifact(tmp_path / "artifact"), toy_bank, tmp_path / "out", SETTINGS, 12, **MASKS,
            filler=elsewhere,
        )  # fmt: skip


@pytest.mark.slow
def test_more_cores_than_there_are(toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path) -> None:
    many = RayCluster(cores=4096)
    with pytest.raises(BackendError, match="No machine of the cluster has 4096 cores"):
        make_masks(toy_artifact, toy_bank, tmp_path / "out", SETTINGS, 12, **MASKS, filler=many.fill_shards)
    with pytest.raises(SelectionError, match="0 cores"):
        RayCluster(cores=0)


@pytest.mark.slow
def test_the_shard_that_kills_every_worker(tmp_path: Path) -> None:
    generator = load_generator("toy", options={"resolution": "16"})
    me = os.getpid()
    generator.stages[0].register_forward_pre_hook(
        lambda *_: os.kill(os.getpid(), signal.SIGKILL) if os.getpid() != me else None
    )
    bank = discover(generator, "sefa", num_directions=4)
    chosen = {**MASKS, "backend": "eager"}
    with pytest.raises(BackendError, match="Workers were lost 4 times at the same task"):
        make_masks(generator, bank, tmp_path / "out", SETTINGS, 6, **chosen, filler=TWO.fill_shards)


def test_what_ray_says_of_lost_workers_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.redirect_stdout(cluster._WithoutRay(sys.stdout)):
        threads = [
            threading.Thread(target=print, args=(name,), name=name)
            for name in ("ray_listen_error_messages", "mine")
        ]
        for thread in threads:
            thread.start()
            thread.join()
        print("ours", flush=True)
    assert capsys.readouterr().out.replace("\n", " ").split() == ["mine", "ours"]


def test_addresses_at_which_no_cluster_answers() -> None:
    start = time.monotonic()
    for wrong in ("nonsense", "host:port", "ray://127.0.0.1:10001", "127.0.0.1:0", ":6379"):
        with pytest.raises(BackendError, match="is no address of a Ray cluster"):
            RayCluster(address=wrong)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(BackendError, match=r"no Ray cluster at 127.0.0.1:\d+ \(Connection refused\)"):
            RayCluster(address=f"127.0.0.1:{free.getsockname()[1]}")
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            link, _ = other.accept()
            with link:
                link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(BackendError, match="another program answers"):
            RayCluster(address=f"127.0.0.1:{other.getsockname()[1]}")
        thread.join()
    assert time.monotonic() - start < 10


def test_the_command_line_refuses() -> None:
    masks = ["masks", "nothing", "bank", "--direction", "0", "--epsilon", "1", "--out", "out"]
    for arguments, message in (
        (["--on", "spark"], "'spark' is no cluster. Expected ray, ray:auto or ray:HOST:PORT."),
        (["--on", "ray:"], "'ray:' is no cluster"),
        (["--worker-cores", "2"], "--worker-cores is an option of --on ray"),
        (["--on", "ray:127.0.0.1"], "'127.0.0.1' is no address of a Ray cluster"),
    ):
        result = CliRunner().invoke(main, [*masks, *arguments])
        assert result.exit_code in (1, 2)
        assert message in result.output


def test_without_ray(python_without: Callable[..., str]) -> None:
    code = """
from fastdirs.cluster import RayCluster
from fastdirs.errors import MissingDependencyError
try:
    RayCluster()
except MissingDependencyError as error:
    print(error)
"""
    hint = install_hint("ray")
    assert hint.startswith("pip install ")
    assert f"A cluster needs ray, which is not installed: {hint}\n" == python_without(["ray"], code)
