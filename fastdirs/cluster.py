"""The same jobs on Ray: shards of masks and pieces of a traversal are tasks, on one machine or many.

Tasks, not actors: Ray gives the task of a lost worker or machine to whoever is free, and machines that join
get work, without any bookkeeping here. What a job opens stays open in the process of a worker, so only its
first task waits for that. Results are files in a folder that all machines share; a task returns nothing.
"""

import importlib.util
import os
import pickle
import shutil
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastdirs.artifact import Artifact, open_artifact
from fastdirs.backends import BACKENDS
from fastdirs.errors import (
    ArtifactError,
    BackendError,
    FastdirsError,
    MissingDependencyError,
    OutputError,
    SelectionError,
)
from fastdirs.manifest import environment, read_json
from fastdirs.mask_dataset import DATASET_FILE, SHARDS_FOLDER
from fastdirs.mask_dataset import KIND as MASKS
from fastdirs.mask_pairs import PairSource
from fastdirs.mask_shards import fill_shards
from fastdirs.masks import MaskJob
from fastdirs.registry import install_hint
from fastdirs.runtime import Runtime, open_runtime
from fastdirs.strips import Piece, StripSource, TraverseJob
from fastdirs.traversal_folder import KIND as TRAVERSAL
from fastdirs.traversal_folder import remove_leftovers, remove_leftovers_in
from fastdirs.writers import PLAN_FILE

Job = MaskJob | TraverseJob
Unit = TypeVar("Unit", int, Piece)
_RETRIES = 3
_POLL_S = 1.0
_CONNECT_S = 5.0
_END_S = 30.0
# More than one for each worker, so that none waits for the driver.
_AHEAD = 2
# Long enough that opening a task and the batches where pieces meet weigh little.
_BATCHES_PER_PIECE = 32
_GPU_BACKENDS = ("ort_cuda", "ort_tensorrt", "trt")
# What every gRPC server answers: a frame of settings, whose type is the byte at this place.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_TYPE_OF_FRAME, _SETTINGS = 3, 4


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where shards are filled and strips are rendered: workers of a Ray cluster.

    Attributes:
        address: "auto" for the cluster that this machine belongs to, or host:port of its head; None starts
            one on this machine for as long as a job takes.
        cores: Cores that each worker takes; None takes all of the smallest machine, so that a machine has one
            worker that is as fast as a run without a cluster.

    Raises:
        MissingDependencyError: Ray is not installed.
        BackendError: Nothing that could be Ray answers at the address.
        SelectionError: Less than one core.
    """

    address: str | None = None
    cores: int | None = None

    def __post_init__(self) -> None:
        if self.cores is not None and self.cores < 1:
            raise SelectionError(f"{self.cores} cores for a worker are out of range. Expected 1 or more.")
        with suppress(ModuleNotFoundError):
            if importlib.util.find_spec("ray") is not None:
                _check_address(self.address)
                return
        raise MissingDependencyError(f"A cluster needs ray, which is not installed: {install_hint('ray')}")

    def fill_shards(self, job: MaskJob, shards: Sequence[int], progress: Callable[[int], None]) -> None:
        """Fill shards of a dataset of masks: a `filler` for `make_masks`.

        Args:
            job: The dataset.
            shards: Numbers of the shards to write.
            progress: Called with the pairs of each shard that was written.

        Raises:
            FastdirsError: As on one machine.
            BackendError: The cluster cannot be used, a machine of it does not fit, or a shard ended the
                process of every worker that tried it.
        """
        try:
            self._run(job, shards, lambda shard: progress(job.plan.size(shard)))
        finally:
            # A worker that was killed leaves a temporary file.
            remove_leftovers_in(job.folder / SHARDS_FOLDER)

    def write_strips(
        self, job: TraverseJob, pieces: Sequence[Piece], progress: Callable[[int], None]
    ) -> None:
        """Write strips of a traversal: a `filler` for `traverse`.

        Args:
            job: The traversal.
            pieces: The strips to write.
            progress: Called with the images of each part that was written.

        Raises:
            FastdirsError: As on one machine.
            BackendError: The cluster cannot be used, a machine of it does not fit, or a piece ended the
                process of every worker that tried it.
        """
        parts = [part for piece in pieces for part in job.split(piece, _BATCHES_PER_PIECE)]
        try:
            self._run(job, parts, lambda part: progress(job.images(part)))
        finally:
            remove_leftovers(job.gallery.folder)

    def _run(self, job: Job, units: Sequence[Unit], done: Callable[[Unit], None]) -> None:
        """Have every unit done by some worker, a few for each worker at a time."""
        if isinstance(job.source, Artifact):
            job = replace(job, source=replace(job.source, folder=job.source.folder.resolve()))
        with _connected(self.address) as ray:
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            sizes = [int(each["CPU"]) for each in machines if each.get("CPU", 0) >= 1]
            gpus = int(_on_gpu(job.backend))
            cores = self.cores or min(sizes, default=0)
            if not any(size >= cores > 0 for size in sizes):
                raise BackendError(
                    f"No machine of the cluster has {cores or 'any'} cores for a worker (they have "
                    f"{', '.join(map(str, sizes)) or 'none'}). Take fewer, or start Ray with --num-cpus."
                )
            if gpus and not any(each.get("GPU", 0) >= 1 for each in machines):
                raise BackendError(
                    f"{job.backend} needs a GPU, but no machine of the cluster has one. "
                    "Start Ray there with --num-gpus, or choose another --backend."
                )
            # Ray would end the process of a task that had a GPU, and with it what it holds open.
            task = ray.remote(
                num_cpus=cores, num_gpus=gpus, max_retries=_RETRIES, max_calls=0, scheduling_strategy="SPREAD"
            )(_work)
            try:
                held = ray.put(job)
            except (TypeError, AttributeError, pickle.PicklingError) as error:
                raise BackendError(
                    f"This generator cannot be sent to workers ({error}). First: fastdirs export MODEL --out "
                    "DIR, then name DIR."
                ) from error
            waiting, under_way = deque(units), dict[Any, Unit]()
            with _token(job) as token:
                try:
                    while waiting or under_way:
                        workers = max(1, int(ray.cluster_resources().get("CPU", 0)) // cores)
                        while waiting and len(under_way) < _AHEAD * workers:
                            unit = waiting.popleft()
                            under_way[task.remote([held], token, unit)] = unit
                        ready, _ = ray.wait(list(under_way), timeout=_POLL_S)
                        for each in ready:
                            unit = under_way.pop(each)
                            with _as_ours(ray):
                                ray.get(each)
                            done(unit)
                finally:
                    # None of them may write once the folder is free for another run. Tasks are not cancelled:
                    # where one is just being sent to a worker, Ray 2.60 ends this process.
                    token.unlink(missing_ok=True)
                    if under_way:
                        ray.wait(list(under_way), num_returns=len(under_way), timeout=_END_S)


def _folder(job: Job) -> Path:
    return job.folder if isinstance(job, MaskJob) else job.gallery.folder


@contextmanager
def _token(job: Job) -> Iterator[Path]:
    """A file that is there as long as workers shall work; named so that the next run removes what is left."""
    token = _folder(job) / f".ray.{os.getpid()}.tmp"
    try:
        token.touch()
        yield token
    except OSError as error:
        raise OutputError.from_os(token, error) from error
    finally:
        with suppress(OSError):
            token.unlink(missing_ok=True)


def _on_gpu(backend: str) -> bool:
    return backend in _GPU_BACKENDS or (BACKENDS.load(backend).runs == "module" and torch.cuda.is_available())


def _check_address(address: str | None) -> None:
    """Ray itself would wait for minutes where nothing answers, and then end the process."""
    if address in (None, "auto"):
        return
    host, colon, port = str(address).rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16 or "/" in host:
        raise BackendError(
            f"{address!r} is no address of a Ray cluster. Expected auto, or host:port such as 10.0.0.1:6379."
        )
    try:
        with closing(socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S)) as link:
            link.sendall(_GREETING)
            answer = link.recv(9)
    except OSError as error:
        raise _unreachable(str(address), str(error.strerror or error)) from error
    if len(answer) <= _TYPE_OF_FRAME or answer[_TYPE_OF_FRAME] != _SETTINGS:
        raise _unreachable(str(address), "another program answers")


def _unreachable(address: str, reason: str) -> BackendError:
    return BackendError(
        f"There is no Ray cluster at {address} ({reason}). Start one with `ray start --head`, join it here "
        "with `ray start --address=HOST:PORT`, or leave the address out."
    )


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, joined or started for this block."""
    # Nothing that a user renders is anybody else's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings(), redirect_stdout(_WithoutRay(sys.stdout)), ExitStack() as ended:
        # Ray starts its processes by a fork, and announces changes of its next version.
        warnings.simplefilter("ignore")
        import ray

        if ray.is_initialized():
            yield ray
            return
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            # Ray leaves its logs behind; its sockets need a short path.
            folder = tempfile.mkdtemp(prefix="fastdirs-ray-", dir="/tmp" if os.name == "posix" else None)
            ended.callback(shutil.rmtree, folder, ignore_errors=True)
            settings |= {"address": "local", "include_dashboard": False, "_temp_dir": folder}
        else:
            settings |= {"address": address}
        ended.callback(ray.shutdown)
        try:
            ray.init(**settings)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).strip().partition("\n")[0].partition(". ")[0]
            if address is None:
                raise BackendError(f"Ray does not start on this machine: {reason}") from error
            raise _unreachable(address, reason) from error
        yield ray


class _WithoutRay:
    """Standard output without what a thread of Ray says of workers that it replaces."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name == "ray_listen_error_messages":
            return len(text)
        written: int = self._stream.write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _as_ours(ray: Any) -> Iterator[None]:
    """Errors of workers as they were raised there, and Ray's own as ours."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FastdirsError):
            raise cause from None
        if isinstance(cause, Exception):
            raise cause from error
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BackendError(
            f"Workers were lost {_RETRIES + 1} times at the same task: {reason} "
            "Give them more memory; the same command continues."
        ) from error


class _Kept:
    """What this process holds open: a job, and the GPUs that it was opened on."""

    def __init__(self, name: str, gpus: Sequence[int | str], job: Job) -> None:
        self.name, self.gpus = name, gpus
        with ExitStack() as stack:
            self.work = _opened(job, stack)
            self.close = stack.pop_all().close


_KEPT: list[_Kept] = []


def _work(held: list[Any], token: Path, unit: int | Piece) -> None:
    """In a worker: do one unit of a job that is opened already, or is opened now."""
    import ray

    name, gpus = held[0].hex(), ray.get_gpu_ids()
    if _KEPT and _KEPT[0].gpus != gpus:
        # A process that has used one GPU cannot change to another, so Ray gives the task to a new one.
        os._exit(1)
    if _KEPT and _KEPT[0].name != name:
        _KEPT.pop().close()
    if not _KEPT:
        _KEPT.append(_Kept(name, gpus, ray.get(held[0])))
    looked = 0.0

    def go_on(added: int) -> None:
        nonlocal looked
        if time.monotonic() - looked > _POLL_S:
            looked = time.monotonic()
            if not token.exists():
                raise OutputError(f"{socket.gethostname()} does not see {token}, so the run has ended.")

    go_on(0)
    _KEPT[0].work(unit, go_on)


def _opened(job: Job, stack: ExitStack) -> Callable[[Any, Callable[[int], None]], None]:
    """Open a job as the driver did, and make sure that it is the same here."""
    host = socket.gethostname()
    name, kind = (DATASET_FILE, MASKS) if isinstance(job, MaskJob) else (PLAN_FILE, TRAVERSAL)
    try:
        begun = read_json(_folder(job) / name, kind)
    except ArtifactError as error:
        raise OutputError(
            f"{host} does not see {_folder(job) / name}. All machines of a cluster have to share --out."
        ) from error
    here = environment()
    for package, version in begun["environment"].items():
        if here.get(package) != version:
            raise BackendError(
                f"{host} has {package} {here.get(package, '(none)')}, but the run was begun with {version}. "
                "Install the same versions on all machines."
            )
    source = job.source
    if isinstance(source, Artifact):
        try:
            source = open_artifact(source.folder)
        except ArtifactError as error:
            raise ArtifactError(f"On {host}: {error}") from error
        if source.sha256 != job.source.sha256:
            raise ArtifactError(
                f"{source.folder} holds other graphs on {host}. Share the folder, or copy it."
            )
    batch = None if isinstance(job, MaskJob) else job.usual_batch
    runtime: Runtime = stack.enter_context(
        open_runtime(source, job.backend, job.precision, batch, streaming=True)
    )
    if runtime.describe() != begun["runtime"]:
        raise BackendError(
            f"{host} would run {runtime.provider} {runtime.precision}, but the run was begun with "
            f"{begun['runtime']['provider']} {begun['runtime']['precision']}. Use machines of one kind."
        )
    if isinstance(job, MaskJob):
        pairs = stack.enter_context(PairSource(runtime, job.bank, job.settings, job.batch_size))
        return lambda shard, progress: fill_shards(pairs, job.plan, [shard], job.folder, progress)
    return stack.enter_context(StripSource(job, runtime)).write
