"""A folder of pictures becomes masks, saliency maps and cut-outs: streamed, resumed, never half a file."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import DatasetError, SelectionError
from fastdirs.images import Pixels, encode, grid
from fastdirs.manifest import Json, manifest, write_bytes, write_json
from fastdirs.registry import unknown_name
from fastdirs.saliency.fitting import unfit
from fastdirs.saliency.folder_run import (
    KIND,
    OUTPUTS,
    RUN_FILE,
    Picture,
    earlier_run,
    name_outputs,
    remove_run,
    remove_stale,
)
from fastdirs.saliency.folders import iterate_images, read_photo, read_with_opacity
from fastdirs.saliency.parity import THRESHOLD
from fastdirs.saliency.preview import preview_row
from fastdirs.saliency.runtime import SaliencyRuntime
from fastdirs.traversal_folder import sole_run

PREVIEW_FILE = "preview.png"
_PENDING_BATCHES = 2
_SHOWN = 6
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class FolderRun:
    """What a run over a folder left.

    Attributes:
        folder: Where it lies.
        content: Its manifest: segmenter, threshold, what, batch_size, pictures, skipped, complete, ...
        skipped: Pictures that could not be read, by name, with the reason.
        num_pictures: Pictures that have their outputs, of this run and of earlier ones.
        num_written: Pictures of which this run wrote something.
    """

    folder: Path
    content: Json
    skipped: dict[str, str]
    num_pictures: int
    num_written: int


@dataclass
class _Job:
    """What all steps share."""

    runtime: SaliencyRuntime
    out: Path
    what: tuple[str, ...]
    threshold: float
    hard: bool
    skip_unreadable: bool
    skipped: dict[str, str] = field(default_factory=dict)

    def path(self, what: str, picture: Picture) -> Path:
        return self.out / what / picture.output

    def lacks(self, picture: Picture) -> bool:
        return not all(self.path(each, picture).exists() for each in self.what)


def run_folder(
    runtime: SaliencyRuntime,
    images: str | Path,
    out: str | Path,
    *,
    what: Sequence[str] = OUTPUTS,
    threshold: float = THRESHOLD,
    hard: bool = False,
    recursive: bool = False,
    skip_unreadable: bool = False,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> FolderRun:
    """Masks, saliency maps and cut-outs of a folder of pictures, each at the size of its picture.

    A run that was killed continues where it was, when it is given again: outputs that exist are kept, unless
    their picture has changed in size or name. Pictures that were added are added to it.

    Args:
        runtime: An opened saliency model.
        images: Folder of pictures of any sizes and modes.
        out: Folder to fill: `masks/` (0 or 255), `saliency/` (grey), `cutouts/` (RGBA), `preview.png`,
            `run.json`.
        what: Which of `OUTPUTS`.
        threshold: Saliency from which a pixel belongs to the mask, over 0 to 1.
        hard: The opacity of cut-outs is the mask, not the saliency.
        recursive: Look into subfolders as well; outputs lie in the same ones.
        skip_unreadable: Leave out what cannot be read as a picture, and say so in the result.
        force: Begin anew, whatever an earlier run in `out` was asked for.
        progress: Called with pictures done and pictures in all.

    Raises:
        DatasetError: No pictures, or one that cannot be read; what was written before is kept.
        UnknownNameError: No such output.
        SelectionError: No output, or a threshold out of range.
        OutputError: The folder holds something else or a run with other settings, or cannot be written.
        BackendError: The runtime was closed.
    """
    images, out = Path(images), Path(out)
    for each in what:
        if each not in OUTPUTS:
            raise unknown_name("output", each, OUTPUTS)
    if not what:
        raise SelectionError(f"Nothing is to be written. Choose from {', '.join(OUTPUTS)}.")
    if not 0 < threshold <= 1:
        raise SelectionError(f"A threshold of {threshold:g} is out of range. Expected more than 0, up to 1.")
    # What an earlier run wrote is no picture to work on.
    own = {out.resolve() / name for name in (*OUTPUTS, PREVIEW_FILE)}
    paths = [
        path
        for path in iterate_images(images, recursive)
        if own.isdisjoint([path.resolve(), *path.resolve().parents])
    ]
    if not paths:
        raise DatasetError(f"{images} holds no pictures but those that an earlier run wrote. Name another.")
    pictures = name_outputs(paths, images)
    job = _Job(runtime, out, tuple(dict.fromkeys(what)), float(threshold), hard, skip_unreadable)
    asked = {
        "segmenter": runtime.segmenter["weights_sha256"], "threshold": job.threshold, "hard": hard,
        **runtime.describe(), "batch_size": runtime.batch_size, "what": list(job.what),
    }  # fmt: skip
    earlier_run(out, asked, force)
    with sole_run(out):
        earlier = earlier_run(out, asked, force)
        if earlier is None:
            remove_run(out, (*OUTPUTS, PREVIEW_FILE))
        known = earlier["pictures"] if earlier else {}
        remove_stale(out, pictures, known)
        # What an earlier run was asked for and had not finished is finished now.
        job.what = tuple(each for each in OUTPUTS if each in (*job.what, *(earlier or asked)["what"]))
        asked["what"] = list(job.what)
        recorded = {**known, **{each.output: each.record for each in pictures}}
        content = manifest(KIND, {**asked, "complete": False, "skipped": {}, "pictures": recorded})
        write_json(out / RUN_FILE, content)
        num_written = _run(job, pictures, progress)
        done = len(pictures) - len(job.skipped)
        if not done:
            reason = next(iter(job.skipped.values()))
            raise DatasetError(f"None of {len(pictures)} pictures can be read. The first: {reason}")
        _write_preview(job, pictures)
        content = {**content, "complete": True, "skipped": job.skipped}
        write_json(out / RUN_FILE, content)
    return FolderRun(
        folder=out, content=content, skipped=job.skipped, num_pictures=done, num_written=num_written
    )


def _run(job: _Job, pictures: Sequence[Picture], progress: Progress) -> int:
    """Compute what is missing; reading and writing happen in threads beside the runtime."""
    size = job.runtime.batch_size
    # Whole batches, begun at the same pictures each time: a resumed run computes what the first would have.
    batches = [pictures[start : start + size] for start in range(0, len(pictures), size)]
    missing = [batch for batch in batches if any(map(job.lacks, batch))]
    done = len(pictures) - sum(map(len, missing))
    num_written = 0
    threads = os.cpu_count() or 1
    progress(done, len(pictures))
    pending: deque[Future[bool]] = deque()
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="reader") as readers,
        ThreadPoolExecutor(threads, thread_name_prefix="writer") as writers,
    ):
        try:
            read: deque[list[Picture]] = deque()
            fitted = _fitted(job, missing, readers, read)
            for squares in job.runtime.stream(fitted):
                for picture, square in zip(read.popleft(), squares, strict=True):
                    # Bounded: a slow disk holds the runtime back instead of filling the memory.
                    while len(pending) >= _PENDING_BATCHES * size or (pending and pending[0].done()):
                        num_written += pending.popleft().result()
                        done += 1
                        progress(done, len(pictures))
                    pending.append(writers.submit(_write, job, picture, square))
            while pending:
                num_written += pending.popleft().result()
                done += 1
                progress(done, len(pictures))
        finally:
            for pool in (readers, writers):
                pool.shutdown(wait=False, cancel_futures=True)
    progress(len(pictures), len(pictures))
    return num_written


def _fitted(
    job: _Job, batches: Sequence[Sequence[Picture]], readers: ThreadPoolExecutor,
    read: deque[list[Picture]],
) -> Iterator[NDArray[np.float32]]:  # fmt: skip
    """Batches for the runtime, the next one read meanwhile; `read` gets the pictures of each."""
    ahead: deque[tuple[Sequence[Picture], list[Future[NDArray[np.float32]]]]] = deque()
    remaining = iter(batches)
    while True:
        while len(ahead) < _PENDING_BATCHES and (batch := next(remaining, None)) is not None:
            ahead.append((batch, [readers.submit(partial(_fit, job, each)) for each in batch]))
        if not ahead:
            return
        good, arrays = [], []
        for picture, future in zip(*ahead.popleft(), strict=True):
            try:
                arrays.append(future.result())
            except DatasetError as error:
                if not job.skip_unreadable:
                    raise
                job.skipped[picture.name] = str(error)
                continue
            good.append(picture)
        if good:
            read.append(good)
            yield np.stack(arrays)


def _fit(job: _Job, picture: Picture) -> NDArray[np.float32]:
    return job.runtime.fit(read_photo(picture.path))


def _write(job: _Job, picture: Picture, square: NDArray[np.float32]) -> bool:
    """Write what is missing of a picture, and say whether anything was."""
    missing = [each for each in job.what if not job.path(each, picture).exists()]
    if missing:
        # Read again: the pictures of a few batches, kept until now, could take gigabytes.
        pixels = read_with_opacity(picture.path)
        saliency = unfit(square, *pixels.shape[:2])
        for each in missing:
            made = render(each, pixels, saliency, job.threshold, job.hard)
            write_bytes(job.path(each, picture), encode(made, "png"))
    return bool(missing)


def render(
    what: str, pixels: Pixels, saliency: NDArray[np.float32], threshold: float = THRESHOLD, hard: bool = False
) -> Pixels:
    """One of the outputs of a picture.

    Args:
        what: One of `OUTPUTS`.
        pixels: The picture. `[height, width, 3]`, uint8, or with its own opacity `[height, width, 4]`, which
            a cut-out keeps.
        saliency: `[height, width]`, float32 in 0..1.
        threshold: Saliency from which a pixel belongs to the mask.
        hard: The opacity of a cut-out is the mask, not the saliency.

    Returns:
        Mask or saliency `[height, width, 1]`, or RGBA cut-out `[height, width, 4]`, uint8. Where a cut-out is
        transparent nothing of the picture is left.
    """
    grey: Pixels = np.rint(saliency * np.float32(255)).astype(np.uint8)[..., None]
    mask: Pixels = (saliency >= np.float32(threshold)).astype(np.uint8)[..., None] * np.uint8(255)
    if what == "saliency":
        return grey
    if what == "masks":
        return mask
    opacity = mask if hard else grey
    if pixels.shape[-1] == 4:
        opacity = np.rint(opacity * (pixels[..., 3:] / np.float32(255))).astype(np.uint8)
    cutout: Pixels = np.concatenate([np.where(opacity > 0, pixels[..., :3], np.uint8(0)), opacity], axis=-1)
    return cutout


def _write_preview(job: _Job, pictures: Sequence[Picture]) -> None:
    """A sheet of the first few pictures that can be read."""
    rows = []
    for picture in pictures:
        if picture.name in job.skipped:
            continue
        pixels = read_photo(picture.path)
        (saliency,) = job.runtime.saliency([pixels])
        whole = read_with_opacity(picture.path)
        made = (render(each, whole, saliency, job.threshold, job.hard) for each in OUTPUTS)
        rows.append(preview_row([pixels, *made]))
        if len(rows) == _SHOWN:
            break
    write_bytes(job.out / PREVIEW_FILE, encode(grid(rows), "png"))
