"""What a training keeps in its folder to be continued: what was asked, and the last good state."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.errors import ArtifactError, CheckpointError, OutputError, TrainingError
from fastdirs.manifest import Json, is_manifest, manifest, read_json, write_bytes, write_json

RUN_KIND, STATE_KIND = "training-run", "training-state"
RUN_FILE, STATE_FILE, RECONSTRUCTOR_FILE = "run.json", "checkpoint.safetensors", "reconstructor.safetensors"
_LOCK = ".lock"
# Temporary files of `manifest.atomic_file`, left by a run that was killed while it wrote.
_LEFT_OVER = re.compile(
    rf"\.({re.escape(RUN_FILE)}|{re.escape(STATE_FILE)}|{re.escape(RECONSTRUCTOR_FILE)}|log\.jsonl)\.\d+\.tmp"
)


@contextmanager
def run_folder(folder: Path, asked: Json, replace: bool = False) -> Iterator[bool]:
    """Hold the folder of a run; yields whether it was begun earlier.

    Args:
        folder: The folder.
        asked: What the weights depend on: generator, method, number of directions, layers, settings.
        replace: Remove what an earlier run with other settings left, if it was asked for the same things.

    Raises:
        OutputError: It holds something else or a run with other settings, another process fills it, or it
            cannot be written.
    """
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"{folder} is being filled by another run. Wait for it to end.") from error
    except OSError as error:
        raise OutputError.from_os(folder, error) from error
    try:
        for path in folder.iterdir():
            if _LEFT_OVER.fullmatch(path.name):
                path.unlink()
        begun = is_manifest(folder / RUN_FILE, RUN_KIND)
        if begun:
            try:
                _check_same(folder, asked)
            except OutputError:
                if not (replace and _is_alike(folder, asked)):
                    raise
                _remove_run(folder)
                begun = False
        elif any(path.name != _LOCK for path in folder.iterdir()):
            raise OutputError(f"{folder} exists and holds no training run. Choose another folder.")
        write_json(folder / RUN_FILE, manifest(RUN_KIND, {"asked": asked}))
        yield begun
    finally:
        lock.release()
        with suppress(OSError):
            (folder / _LOCK).unlink(missing_ok=True)


def _is_alike(folder: Path, asked: Json) -> bool:
    """Whether an earlier run trained the same sort of network: its settings may differ, not what they are."""
    earlier = json.loads((folder / RUN_FILE).read_bytes()).get("asked")
    return isinstance(earlier, dict) and earlier.keys() == asked.keys()


def _remove_run(folder: Path) -> None:
    """Remove an earlier run; its record goes last, so that the folder can be recognised until then."""
    try:
        for path in list(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (_LOCK, RUN_FILE):
                path.unlink()
        (folder / RUN_FILE).unlink()
    except OSError as error:
        raise OutputError.from_os(folder, error) from error


def _check_same(folder: Path, asked: Json) -> None:
    """Raises OutputError naming the first setting in which an earlier run differs."""
    try:
        earlier = read_json(folder / RUN_FILE, RUN_KIND)["asked"]
    except (ArtifactError, KeyError) as error:
        raise OutputError(f"{folder / RUN_FILE} is damaged. Choose another folder.") from error
    for name, before, now in _leaves(earlier, json.loads(json.dumps(asked))):
        if before != now:
            raise OutputError(
                f"{folder} holds a run with {name}={before}, not {name}={now}. Give the same settings to "
                "continue it, or choose another folder."
            )


def _leaves(earlier: Json, asked: Json) -> Iterator[tuple[str, object, object]]:
    for name in {**asked, **earlier}:
        before, now = earlier.get(name), asked.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _leaves(before, now)
        else:
            yield name, before, now


def save_state(path: Path, step: int, module: nn.Module, optimizers: Mapping[str, Optimizer]) -> None:
    """Write everything that the next step depends on; its random numbers depend on the step alone.

    Args:
        path: The file.
        step: Steps done.
        module: What is trained.
        optimizers: By name.

    Raises:
        TrainingError: A value that is not finite; nothing is written.
        OutputError: The file cannot be written.
    """
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{index}.{key}": value for key, value in state.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TrainingError(f"{name} has values that are not finite.")
    header = manifest(STATE_KIND, {"step": step})
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(stored, {HEADER: json.dumps(header)}))


def load_state(path: Path, module: nn.Module, optimizers: Mapping[str, Optimizer]) -> int:
    """Read back what `save_state` wrote, and return the steps done; 0 if there is no file.

    Raises:
        TrainingError: The file is damaged, or of another network.
    """
    if not path.exists():
        return 0
    try:
        tensors, header = read_safetensors(path)
        if header.get("kind") != STATE_KIND:
            raise KeyError("kind")
        module.load_state_dict(_below(tensors, "module."))
        for name, optimizer in optimizers.items():
            states: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"optimizer.{name}.").items():
                index, _, field = key.partition(".")
                states.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        return int(header["step"])
    except (CheckpointError, KeyError, TypeError, ValueError, RuntimeError) as error:
        # Of torch's several lines the last one says what does not fit.
        reason = str(error).strip().splitlines()[-1].strip()
        raise TrainingError(
            f"{path} cannot be continued from ({reason}). Remove it to begin again."
        ) from error


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
