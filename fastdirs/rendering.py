"""Plain sampling: a folder of images, or one array, in constant memory."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastdirs.artifact import Artifact, open_artifact
from fastdirs.backends import Array
from fastdirs.errors import OutputError, SelectionError
from fastdirs.generators import Generator
from fastdirs.images import ENCODERS, Pixels, encode, to_uint8
from fastdirs.manifest import (
    Json,
    atomic_file,
    atomic_folder,
    is_manifest,
    manifest,
    write_bytes,
    write_json,
)
from fastdirs.registry import unknown_name
from fastdirs.runtime import Runtime, open_runtime
from fastdirs.samples import Chosen, Sample, sample_of_file, sample_of_seeds
from fastdirs.selection import AUTO
from fastdirs.throughput import stream

KIND = "rendering"
MANIFEST = "manifest.json"
# A grid shows the first images: more could neither be seen nor kept in memory.
_GRID_IMAGES = 64
_GRID_PIXELS = 2**26


def render(
    source: Artifact | Generator | str | Path,
    out: str | Path,
    seeds: Sequence[int] | None = None,
    latents: str | Path | None = None,
    *,
    psi: float = 1.0,
    cutoff: int | None = None,
    c: Chosen = None,
    image_format: str = "png",
    backend: str = AUTO,
    precision: str | None = None,
    batch_size: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    opened: Callable[[Runtime, Sample], None] = lambda runtime, sample: None,
) -> Json:
    """Render the images of seeds, or of given latents.

    Args:
        source: An artefact, its folder, or a generator.
        out: A folder for image files, a grid of the first ones and the manifest; or `NAME.npy` for one array
            `[images, channels, height, width]`, float32, not clipped, with its manifest in `NAME.json`.
        seeds: One image each; repeats are dropped.
        latents: Instead of seeds: an npz file with `latents` `[images, layers, dim]` or `z`
            `[images, z_dim]`, float, and maybe `c`, class indices `[images]` or weights `[images, c_dim]`.
        psi: Truncation, 1 = off; means nothing for given latents.
        cutoff: How many of the first layers to truncate; None = all.
        c: Class of all images, classes that they take in turn, or "random" for one by seed; None if
            unconditional.
        image_format: Of the files in a folder: "png", "jpg" or "webp".
        backend: Registered name, or "auto".
        precision: "f32", "bf16", or None for the fastest that is accepted.
        batch_size: Images rendered at a time; None takes the usual one.
        force: Replace what an earlier call wrote there.
        progress: Called with images done, and how many in all.
        opened: Called once, before the first image, with what was opened and what is rendered.

    Returns:
        The manifest: generator, seeds or given file, psi, classes, runtime, files, ...

    Raises:
        SelectionError: Not either seeds or latents; a seed, psi, class or batch size out of range; a file of
            latents that cannot be read.
        ShapeError: Given latents of another shape.
        ContractError: A class for an unconditional generator, or none for a conditional one.
        UnknownNameError: No such image format or backend.
        OutputError: Something else lies there, or it cannot be written.
    """
    out, psi = Path(out), float(psi)
    if image_format not in ENCODERS:
        raise unknown_name("image format", image_format, ENCODERS)
    if batch_size is not None and batch_size < 1:
        raise SelectionError(f"Batch size {batch_size} is out of range. Expected 1 or more.")
    if not isinstance(source, Artifact | Generator):
        source = open_artifact(source)
    identity = source.generator if isinstance(source, Artifact) else source.identity()
    if seeds is not None and latents is None:
        sample = sample_of_seeds(identity, seeds, psi, cutoff, c)
    elif latents is not None and seeds is None:
        sample = sample_of_file(identity, Path(latents), psi, cutoff, c)
    else:
        raise SelectionError("Name either seeds or a file of latents.")
    is_array = out.suffix == ".npy"
    if is_array:
        _check_array(out, force)
    with (
        atomic_file(out) if is_array else atomic_folder(out, MANIFEST, KIND, force) as target,
        open_runtime(source, backend, precision, batch_size, streaming=True) as runtime,
    ):
        size = min(batch_size or runtime.usual_batch, len(sample))
        # A mistake is said before anything is rendered.
        sample.inputs(runtime, 0, size)
        opened(runtime, sample)
        images = _images(runtime, sample, size, progress)
        if is_array:
            _write_array(target, images, len(sample))
            files = [out.name]
        else:
            files = _write_folder(target, images, sample.names, image_format)
        content = manifest(KIND, {
            "generator": identity,
            "artifact": source.sha256 if isinstance(source, Artifact) else None,
            **sample.described,
            "image_format": None if is_array else image_format,
            "batch_size": size,
            "runtime": runtime.describe(),
            "files": files,
        })  # fmt: skip
        # Before the array gets its name: one without a manifest would not be known for ours.
        write_json(out.with_suffix(".json") if is_array else target / MANIFEST, content)
    return content


def _images(
    runtime: Runtime, sample: Sample, size: int, progress: Callable[[int, int], None]
) -> Iterator[Array]:
    """Batch after batch: `[batch, channels, height, width]`, float32."""
    batches = (sample.inputs(runtime, first, first + size) for first in range(0, len(sample), size))
    done = 0
    for images in stream(runtime.session, batches):
        yield images
        done += len(images)
        progress(done, len(sample))


def _check_array(out: Path, force: bool) -> None:
    """Raises OutputError where an array, or the manifest beside it, must not be written."""
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not is_manifest(out.with_suffix(".json"), KIND):
            raise OutputError(
                f"{path} was not written by this command, so it is left alone. Choose another --out."
            )
    if out.exists() and not force:
        raise OutputError(f"{out} exists already. Choose another --out, or pass --force to replace it.")


def _write_array(path: Path, batches: Iterable[Array], count: int) -> None:
    """One npy file, batch after batch; a full disk is an error here, not a crash as with mapped memory."""
    with path.open("wb") as file:
        for number, images in enumerate(batches):
            if number == 0:
                shape = (count, *images.shape[1:])
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f4", "fortran_order": False, "shape": shape}
                )
            file.write(np.ascontiguousarray(images, dtype="<f4").data)


def _write_folder(
    folder: Path, batches: Iterable[Array], names: Sequence[str], image_format: str
) -> list[str]:
    """A file for each image, and the grid; returns their names."""
    files = [f"{name}.{image_format}" for name in names]
    grid: _Grid | None = None
    done = 0

    def write(name: str, image: Pixels) -> None:
        (folder / name).write_bytes(encode(image, image_format))

    # One batch is encoded while the runtime works on the next ones.
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="writer") as pool:
        for images in batches:
            pixels = to_uint8(images)
            grid = grid or _Grid(len(files), pixels.shape[1:])
            grid.add(pixels, done)
            list(pool.map(write, files[done : done + len(pixels)], pixels))
            done += len(pixels)
    assert grid is not None
    write_bytes(folder / f"grid.{image_format}", encode(grid.canvas, image_format))
    return [*files, f"grid.{image_format}"]


class _Grid:
    """The first images side by side, nearly square: `canvas` is `[height, width, channels]`, uint8."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        height, width, channels = shape
        self.count = min(count, _GRID_IMAGES, max(1, _GRID_PIXELS // (height * width)))
        self.columns = math.ceil(math.sqrt(self.count))
        rows = math.ceil(self.count / self.columns)
        self.canvas: Pixels = np.zeros((rows * height, self.columns * width, channels), dtype=np.uint8)

    def add(self, pixels: Pixels, first: int) -> None:
        """Put images into their places: `[batch, height, width, channels]`, uint8, the first one's number."""
        height, width = pixels.shape[1:3]
        for place, image in enumerate(pixels[: max(0, self.count - first)], first):
            top, left = place // self.columns * height, place % self.columns * width
            self.canvas[top : top + height, left : left + width] = image
