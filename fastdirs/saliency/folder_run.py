"""What a run over a folder of pictures records, so that it can be continued: settings, and whose output."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdirs.backends import BACKENDS
from fastdirs.errors import DatasetError, OutputError
from fastdirs.manifest import Json, is_manifest, read_json
from fastdirs.saliency.export import is_segmenter_artifact, open_segmenter_artifact, segmenter_settings
from fastdirs.segmenters import load_segmenter

KIND = "saliency-run"
RUN_FILE = "run.json"
OUTPUTS = ("masks", "saliency", "cutouts")
"""What may be written; each is a folder of PNG files, named as the pictures are."""
# Whatever else changes, files that are there already remain what they are.
_MUST_AGREE = ("segmenter", "threshold", "hard", "backend", "precision", "batch_size")
# What `manifest.atomic_file` names its temporary files.
_LEFTOVER = re.compile(r"\..*\.\d+\.tmp")


@dataclass(frozen=True)
class Picture:
    """One file of the folder.

    Attributes:
        path: The file.
        name: Its path below the folder.
        size: Its size, in bytes.
        output: What its outputs are called, each below the folder of its kind.
    """

    path: Path
    name: str
    size: int
    output: str

    @property
    def record(self) -> list[str | int]:
        """What tells whether an output was made of this file."""
        return [self.name, self.size]


def choice_of(out: str | Path, model: str | Path) -> Json | None:
    """Backend, precision and batch_size of the run in a folder, with which to continue it.

    A runtime that is chosen by measurement may be another one each time.

    Args:
        out: The folder.
        model: File of weights or exported folder with which to continue.

    Returns:
        None without a run, or where it is of another segmenter, or its backend does not run such a model.

    Raises:
        CheckpointError: The model is no segmenter.
        ArtifactError: The exported folder is broken or changed.
    """
    path, model = Path(out) / RUN_FILE, Path(model)
    if not is_manifest(path, KIND):
        return None
    content = read_json(path, KIND)
    if is_segmenter_artifact(model):
        runs, identity = "graph", open_segmenter_artifact(model).content["segmenter"]
    else:
        runs, identity = "module", segmenter_settings(load_segmenter(model)[0])
    backend = content.get("backend")
    if backend not in BACKENDS.names() or BACKENDS.load(backend).runs != runs:
        return None
    if content.get("segmenter") != identity["weights_sha256"]:
        return None
    return {name: content.get(name) for name in ("backend", "precision", "batch_size")}


def name_outputs(paths: Sequence[Path], images: Path) -> list[Picture]:
    """What the outputs of each picture are called: `a.jpg` -> `a.png`; beside another a, `a.jpg.png`.

    Args:
        paths: The pictures.
        images: The folder that they lie in or below.

    Raises:
        DatasetError: A file is gone.
    """
    names = [path.relative_to(images).as_posix() for path in paths]
    outputs = [path.relative_to(images).with_suffix(".png").as_posix() for path in paths]
    while True:
        counts: dict[str, int] = {}
        for each in outputs:
            # Some file systems take A.png for a.png.
            counts[each.lower()] = counts.get(each.lower(), 0) + 1
        fuller = [
            f"{name}.png" if counts[each.lower()] > 1 else each
            for name, each in zip(names, outputs, strict=True)
        ]
        if fuller == outputs:
            break
        outputs = fuller
    try:
        return [
            Picture(path, name, path.stat().st_size, output)
            for path, name, output in zip(paths, names, outputs, strict=True)
        ]
    except OSError as error:
        raise DatasetError(
            f"{error.filename} cannot be looked at: {error.strerror}. Wait until the folder is complete."
        ) from error


def earlier_run(out: Path, asked: Json, force: bool) -> Json | None:
    """The manifest of an earlier run with equal settings; None where to begin anew.

    Args:
        out: The folder.
        asked: What the run is asked for.
        force: Begin anew whatever an earlier run was asked for.

    Raises:
        OutputError: The folder holds something else, or a run with other settings.
    """
    if not out.exists() or (out.is_dir() and all(_is_trace(path) for path in out.iterdir())):
        return None
    if not is_manifest(out / RUN_FILE, KIND):
        raise OutputError(
            f"{out} exists and holds no run over pictures, so it is left alone (even with --force). "
            "Choose another --out."
        )
    if force:
        return None
    content = read_json(out / RUN_FILE, KIND)
    if not isinstance(content.get("pictures"), dict) or not isinstance(content.get("what"), list):
        raise OutputError(f"{out / RUN_FILE} is damaged. Pass --force to begin again.")
    for name in _MUST_AGREE:
        if content.get(name) != asked[name]:
            raise OutputError(
                f"{out} holds a run with other settings: {name} is {content.get(name)}, and {asked[name]} is "
                "asked for now. Choose another --out, or pass --force to replace it."
            )
    return content


def _is_trace(path: Path) -> bool:
    """Whether a file says no more than that a run was begun here."""
    return path.name == ".lock" or _LEFTOVER.fullmatch(path.name) is not None


def remove_run(out: Path, made: Sequence[str]) -> None:
    """Remove an earlier run, and nothing else that lies in its folder.

    Args:
        out: The folder.
        made: Names of what it made there.

    Raises:
        OutputError: Something cannot be removed.
    """
    try:
        # The manifest goes last: until then the folder can still be recognised.
        for name in (*made, RUN_FILE):
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError.from_os(out, error) from error


def remove_stale(out: Path, pictures: Sequence[Picture], known: Json) -> None:
    """Remove outputs whose picture was another at an earlier run, and what a killed run left.

    Args:
        out: The folder.
        pictures: What there is now.
        known: Record of the picture of each output of earlier runs.

    Raises:
        OutputError: Something cannot be removed.
    """
    try:
        for picture in pictures:
            if known.get(picture.output, picture.record) != picture.record:
                for each in OUTPUTS:
                    (out / each / picture.output).unlink(missing_ok=True)
        for path in (
            *out.glob(".*.tmp"),
            *(path for each in OUTPUTS for path in (out / each).rglob(".*.tmp")),
        ):
            if _LEFTOVER.fullmatch(path.name):
                path.unlink()
    except OSError as error:
        raise OutputError.from_os(out, error) from error
