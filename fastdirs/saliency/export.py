"""A segmenter becomes an ONNX graph in a folder: traced, its masks compared with torch's, or not kept."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.artifact import MANIFEST, check_files
from fastdirs.backends import Array, graph_backends, open_all
from fastdirs.engines import Progress, build_engines, check_engine
from fastdirs.errors import ArtifactError, ParityError, SelectionError
from fastdirs.images import Pixels
from fastdirs.machine import describe_machine
from fastdirs.manifest import (
    Json,
    atomic_folder,
    is_manifest,
    manifest,
    read_json,
    sha256_file,
    sha256_tensors,
    write_bytes,
    write_json,
)
from fastdirs.recipe import Batch, Engine, usual_batch
from fastdirs.registry import unknown_name
from fastdirs.saliency.fitting import fit
from fastdirs.saliency.parity import (
    ACCEPT,
    THRESHOLD,
    SaliencyTolerance,
    mask_threshold,
    measure_saliency,
)
from fastdirs.segmenters import Segmenter, load_segmenter
from fastdirs.tracing import trace

KIND = "segmenter-artifact"
GRAPH = "saliency.onnx"
REFERENCE = "reference.safetensors"
_OPSET = 18
_REFERENCE_VALUES = 2**20
_MAX_IMAGES = 8
# What a segmenter's file says of itself rather than of its training.
_OF_THE_FILE = ("schema", "kind", "environment", "segmenter")
Report = Callable[[str], None]


@dataclass(frozen=True)
class SegmenterArtifact:
    """A folder that `export_segmenter` made and verified.

    Attributes:
        folder: The folder.
        content: Its manifest: segmenter, recorded, batch, accept, verified, files, machine, ...
    """

    folder: Path
    content: Json

    @property
    def graph_path(self) -> Path:
        """The graph: `images` -> `saliency`."""
        return self.folder / GRAPH

    @property
    def batch(self) -> Batch:
        """Batch sizes that it was verified for."""
        return Batch(**self.content["batch"])

    @property
    def accept(self) -> dict[str, SaliencyTolerance]:
        """The accepted error of each precision that may be used."""
        return {name: SaliencyTolerance(**each) for name, each in self.content["accept"].items()}

    def reference(self) -> tuple[Array, Array]:
        """Pictures `[pictures, channels, size, size]` and torch's saliency `[pictures, size, size]`, float32.

        Raises:
            ArtifactError: The file is broken.
        """
        try:
            tensors = load_file(self.folder / REFERENCE)
            return tensors["images"], tensors["saliency"]
        except (SafetensorError, OSError, KeyError) as error:
            raise ArtifactError(f"{self.folder / REFERENCE} is broken ({error}). Export again.") from error


class SaliencyGraph(nn.Module):
    """What is exported and run: a segmenter whose logits became saliency."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        """Images `[batch, channels, size, size]` in [-1, 1] -> saliency `[batch, size, size]` in 0..1."""
        logits: Tensor = self.segmenter(images)
        return torch.sigmoid(logits)


def make_scenes(img_channels: int, img_resolution: int, count: int) -> Tensor:
    """Smooth random pictures, each with an object of another colour on it, the same ones each time.

    Args:
        img_channels: 1 or 3.
        img_resolution: Height and width, in pixels.
        count: How many.

    Returns:
        `[count, channels, img_resolution, img_resolution]`, float32 in [-1, 1].
    """
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(2 * count, img_channels, 6, 6, generator=random)
    smooth = F.interpolate(coarse, size=(img_resolution,) * 2, mode="bilinear")
    colour = 2 * torch.rand(count, img_channels, 1, 1, generator=random) - 1
    row, column, radius = torch.rand(3, count, 1, 1, 1, generator=random) * 0.5 + 0.25
    across = (torch.arange(img_resolution) + 0.5) / img_resolution
    distance = ((across[:, None] - row) ** 2 + (across - column) ** 2).sqrt()
    inside = torch.sigmoid((0.6 * radius - distance) * 40)
    return torch.lerp(0.4 * smooth[:count], colour + 0.1 * smooth[count:], inside).clamp(-1, 1)


def export_segmenter(
    segmenter: Segmenter | str | Path,
    out: str | Path,
    *,
    content: Json | None = None,
    images: Sequence[Pixels] = (),
    batch: Batch | None = None,
    precisions: Collection[str] = tuple(ACCEPT),
    engine: Engine | None = None,
    force: bool = False,
    report: Report = lambda message: None,
    progress: Progress = lambda phase, done, total: None,
) -> SegmenterArtifact:
    """Export a segmenter, compare its masks with torch's at batch 1, 2 and the maximum, write an artefact.

    Args:
        segmenter: The network, or the file of its weights; it is exported as it answers in evaluation mode.
        out: Folder to make.
        content: What its file records of its training; None takes it from the file.
        images: Pictures to compare on, the first few of them; none takes synthetic ones. Each
            `[height, width, channels]`, uint8.
        batch: Batch sizes; None takes what suits the image size.
        precisions: What runtimes may compute in: "f32", which must pass, and "bf16", which is used where a
            runtime has it and it passes.
        engine: Engine to compile ahead of time; None for the graph alone.
        force: Replace a folder that exists.
        report: Called with a line for each step.
        progress: Called with what is going on, steps done and steps in all, where an engine is built.

    Raises:
        CheckpointError: The file holds no segmenter.
        UnknownNameError: No such precision.
        OutputError: The folder exists and `force` is off, or cannot be written.
        MissingDependencyError: No runtime for graphs is installed, so nothing could be verified.
        ParityError: The graph differs from torch by more than is accepted, or torch finds the same everywhere
            in all pictures, so that no masks can be compared; nothing is kept.
        ContractError: The network cannot be traced.
        BackendError: The machine cannot build the engine, or TensorRT refuses the graph.
    """
    engine = engine or Engine()
    check_engine(engine)
    accept = _accepted(precisions)
    pairs = _graph_backends(accept)
    recorded = content or {}
    if not isinstance(segmenter, Segmenter):
        segmenter, header = load_segmenter(segmenter)
        recorded = header if content is None else content
    # A copy: the caller may be in the middle of training it.
    segmenter = copy.deepcopy(segmenter).cpu().eval().requires_grad_(False)
    batch = batch or usual_batch(segmenter.img_resolution)
    out = Path(out)
    with atomic_folder(out, MANIFEST, KIND, force) as folder:
        report("tracing")
        graph, settings = SaliencyGraph(segmenter), segmenter_settings(segmenter)
        example = (make_scenes(segmenter.img_channels, segmenter.img_resolution, 2),)
        trace(graph, example, folder / GRAPH, ["images"], "saliency", _OPSET, settings, "segmenter")
        reference = _make_reference(graph, images)
        verified = list(_verify(folder / GRAPH, pairs, reference, batch, accept, report))
        write_bytes(folder / REFERENCE, save(dict(zip(("images", "saliency"), reference, strict=True))))
        graphs = {"f32": folder / GRAPH} if engine.to != "onnx" else {}
        engines = build_engines(folder, graphs, batch, engine, progress, report)
        made = manifest(KIND, {
            "segmenter": settings,
            "recorded": recorded_of(recorded),
            "graph": {"opset": _OPSET, "threshold": THRESHOLD},
            "batch": asdict(batch),
            "accept": {name: asdict(tolerance) for name, tolerance in accept.items()},
            "verified": verified,
            "reference": "given pictures" if images else "synthetic pictures",
            "files": {name: sha256_file(folder / name) for name in (GRAPH, REFERENCE, *engines)},
            "machine": describe_machine(),
        })  # fmt: skip
        write_json(folder / MANIFEST, made)
    return SegmenterArtifact(out, made)


def segmenter_settings(segmenter: Segmenter) -> Json:
    """What manifests say of a segmenter: name, kind, img_channels, img_resolution, width, weights_sha256."""
    return {
        "name": f"{segmenter.kind} segmenter",
        "kind": segmenter.kind,
        "img_channels": segmenter.img_channels,
        "img_resolution": segmenter.img_resolution,
        "width": segmenter.width,
        "weights_sha256": sha256_tensors(segmenter.state_dict()),
    }


def recorded_of(content: Json) -> Json:
    """What a segmenter's file says of its training: the dataset, settings, held-out figures, ..."""
    return {key: value for key, value in content.items() if key not in _OF_THE_FILE}


def is_segmenter_artifact(path: Path) -> bool:
    """Whether a path is an exported segmenter: its folder, or a file in it."""
    return is_manifest((path if path.is_dir() else path.parent) / MANIFEST, KIND)


def open_segmenter_artifact(path: str | Path) -> SegmenterArtifact:
    """Open an exported segmenter, and check that its files are the ones that were verified.

    Args:
        path: The folder, or a file in it.

    Raises:
        ArtifactError: No manifest (an unfinished export), a file missing, or one changed since the manifest
            was written.
    """
    folder = Path(path)
    if not folder.exists():
        raise ArtifactError(
            f"{path} does not exist. Make it with: fastdirs saliency export MODEL --out {path}"
        )
    folder = folder if folder.is_dir() else folder.parent
    content = read_json(folder / MANIFEST, KIND)
    missing = [key for key in ("segmenter", "recorded", "batch", "accept", "files") if key not in content]
    unknown = [name for name in (GRAPH, REFERENCE) if not missing and name not in content["files"]]
    if missing or unknown:
        raise ArtifactError(f"{folder / MANIFEST} says nothing of {(missing or unknown)[0]}. Export again.")
    check_files(folder, content["files"])
    return SegmenterArtifact(folder, content)


def verify_segmenter(artifact: SegmenterArtifact, report: Report = lambda message: None) -> list[Json]:
    """Compare an artefact with the reference saliency in it, on every backend and precision of this machine.

    Args:
        artifact: The artefact; no file with weights is needed.
        report: Called with a line for each step.

    Returns:
        One row for each backend and precision: backend, precision, provider, detail, batch_sizes, parity,
        accepted.

    Raises:
        ParityError: The error in f32 is beyond the tolerance.
        ArtifactError: The artefact lacks what it should hold.
        MissingDependencyError: No runtime for graphs is installed.
    """
    accept = artifact.accept
    pairs = _graph_backends(accept)
    return list(_verify(artifact.graph_path, pairs, artifact.reference(), artifact.batch, accept, report))


def _accepted(precisions: Collection[str]) -> dict[str, SaliencyTolerance]:
    for name in precisions:
        if name not in ACCEPT:
            raise unknown_name("precision", name, ACCEPT)
    if "f32" not in precisions:
        raise SelectionError(
            f"An export is verified in f32 first; only {', '.join(precisions) or 'nothing'} was asked for. "
            "Add f32."
        )
    return {name: tolerance for name, tolerance in ACCEPT.items() if name in precisions}


def _graph_backends(accept: Collection[str]) -> list[tuple[str, str]]:
    """Every installed runtime for graphs and precision that may be used."""
    pairs, missing = graph_backends(accept)
    if missing and not pairs:
        raise missing
    return pairs


def _make_reference(graph: SaliencyGraph, given: Sequence[Pixels]) -> tuple[Array, Array]:
    """A few pictures and torch's saliency: an artefact can be verified where there are no weights."""
    channels, size = graph.segmenter.img_channels, graph.segmenter.img_resolution
    count = max(2, min(_MAX_IMAGES, _REFERENCE_VALUES // (channels * size**2)))
    if given:
        images = torch.from_numpy(np.stack([fit(image, channels, size) for image in given[:count]]))
    else:
        images = make_scenes(channels, size, count)
    with torch.inference_mode():
        saliency = np.ascontiguousarray(graph(images).numpy())
    if mask_threshold(saliency) is None:
        raise ParityError(
            f"The network gives every pixel of {len(images)} {'given' if given else 'synthetic'} pictures a "
            f"saliency of {saliency.mean():.3g}, so there are no masks to compare. Pass --images with a "
            "folder of pictures in which it finds something, or train it again."
        )
    return np.ascontiguousarray(images.numpy()), saliency


def _verify(
    path: Path, pairs: Sequence[tuple[str, str]], reference: tuple[Array, Array], batch: Batch,
    accept: Mapping[str, SaliencyTolerance], report: Report,
) -> Iterator[Json]:  # fmt: skip
    """Error at batch 1, 2 and the maximum on each backend and precision; all in f32 must pass."""
    sizes = sorted({1, min(2, batch.max), batch.max})
    for (backend, precision), session in open_all(pairs, {"f32": path}, False, batch).items():
        parity = measure_saliency(session, *reference, sizes)
        session.close()
        tolerance = accept[precision]
        accepted = parity.within(tolerance)
        verdict = "accepted" if accepted else "beyond the tolerance"
        report(f"{backend} {precision} at batch {', '.join(map(str, sizes))}: {parity}: {verdict}")
        if precision == "f32" and not accepted:
            raise ParityError(
                f"{path.name} on {backend} in {precision} differs from torch fp32: {parity}. Accepted are "
                f"errors of {tolerance.largest:g} and {tolerance.mean:g}, and an IoU of {tolerance.iou:g}. "
                "Export on another machine, or report this."
            )
        yield {
            "backend": backend, "precision": session.precision, "provider": session.provider,
            "detail": session.detail, "batch_sizes": sizes, "parity": asdict(parity), "accepted": accepted,
        }  # fmt: skip
