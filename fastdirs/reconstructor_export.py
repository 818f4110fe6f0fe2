"""A reconstructor becomes an ONNX graph in a folder: traced, verified against torch fp32, or not kept."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fastdirs.artifact import MANIFEST, check_files
from fastdirs.backends import Array, Session, graph_backends, open_all
from fastdirs.engines import Progress, build_engines, check_engine
from fastdirs.errors import ArtifactError, ParityError
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
from fastdirs.reconstructors import Reconstructor
from fastdirs.tracing import trace

KIND = "reconstructor-artifact"
GRAPH = "reconstructor.onnx"
REFERENCE = "reference.safetensors"
INPUTS = ("images", "shifted")
OUTPUTS = ("logits", "epsilon", "features")
TOLERANCE = 1e-3
"""Largest accepted error of an output, as a share of its largest value in torch."""
_TIE = 1e-4
"""Share of the largest logit within which two directions count as equally likely: rounding decides there."""
_OPSET = 18
_REFERENCE_VALUES = 2**20
_MAX_PAIRS = 8
# What a reconstructor's file says of itself rather than of its training.
_OF_THE_FILE = ("schema", "kind", "environment", "reconstructor")
Report = Callable[[str], None]


@dataclass(frozen=True)
class ReconstructorArtifact:
    """A folder that `export_reconstructor` made and verified.

    Attributes:
        folder: The folder.
        content: Its manifest: reconstructor, recorded, batch, accept, verified, files, machine, ...
    """

    folder: Path
    content: Json

    @property
    def graph_path(self) -> Path:
        """The graph: `images`, `shifted` -> `logits`, `epsilon`, `features`."""
        return self.folder / GRAPH

    def reference(self) -> dict[str, Array]:
        """Pairs and torch's answers, by the names of the graph's inputs and outputs, float32.

        images and shifted `[pairs, channels, height, width]`, logits `[pairs, num_directions]`, epsilon
        `[pairs]`, features `[pairs, width]`.

        Raises:
            ArtifactError: The file is broken.
        """
        try:
            tensors = load_file(self.folder / REFERENCE)
            return {name: tensors[name] for name in (*INPUTS, *OUTPUTS)}
        except (SafetensorError, OSError, KeyError) as error:
            raise ArtifactError(f"{self.folder / REFERENCE} is broken ({error}). Export again.") from error


@dataclass(frozen=True, kw_only=True)
class AnswerParity:
    """Difference of a graph's answers from torch's.

    Attributes:
        errors: Largest absolute error of each output: logits, epsilon (in latent units), features.
        shares: The same as shares of the largest value in torch.
        disagreements: Pairs for which another direction is likeliest, ties left out.
    """

    errors: Mapping[str, float]
    shares: Mapping[str, float]
    disagreements: int

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {error:.2g}" for name, error in self.errors.items())
        return f"largest error of {errors}; {self.disagreements} other directions"

    @property
    def accepted(self) -> bool:
        """Whether every output is close enough and no direction differs. What is not finite never is."""
        return self.disagreements == 0 and all(share <= TOLERANCE for share in self.shares.values())


def compare_answers(found: Sequence[Array], wanted: Sequence[Array]) -> AnswerParity:
    """Difference of answers from their reference.

    Args:
        found: Logits `[batch, num_directions]`, epsilon `[batch]`, features `[batch, width]`, float32.
        wanted: The same from torch.
    """
    errors, shares = {}, {}
    for name, mine, theirs in zip(OUTPUTS, found, wanted, strict=True):
        # Of another shape it is another graph, and no difference of numbers.
        same = mine.shape == theirs.shape
        errors[name] = float(np.abs(mine.astype(np.float64) - theirs).max()) if same else math.inf
        shares[name] = errors[name] / _largest(theirs)
    logits, reference = found[0], wanted[0]
    if logits.shape != reference.shape:
        return AnswerParity(errors=errors, shares=shares, disagreements=len(reference))
    rows = np.arange(len(reference))
    # How much less likely torch finds the direction that the graph chose.
    lead = reference.max(axis=1) - reference[rows, logits.argmax(axis=1)]
    return AnswerParity(
        errors=errors, shares=shares,
        disagreements=int((lead > _TIE * _largest(reference)).sum()),
    )  # fmt: skip


def _largest(values: Array) -> float:
    # Not zero, so that nothing is divided by it.
    return max(float(np.abs(values).max()), 1e-30)


def measure_answers(
    session: Session, reference: Mapping[str, Array], batch_sizes: Sequence[int]
) -> AnswerParity:
    """The worst error of a session over several batch sizes.

    Args:
        session: An opened reconstructor.
        reference: Pairs and torch's answers, each `[pairs, ...]`, as `ReconstructorArtifact.reference` gives
            them.
        batch_sizes: Sizes to run at; pairs are repeated to fill a batch.
    """
    found = []
    for size in batch_sizes:
        rows = np.arange(size) % len(reference["images"])
        answers = session.run_all([np.ascontiguousarray(reference[name][rows]) for name in INPUTS])
        found.append(compare_answers(answers, [reference[name][rows] for name in OUTPUTS]))
    return AnswerParity(
        # Unlike max(), numpy keeps a NaN.
        errors={name: float(np.max([each.errors[name] for each in found])) for name in OUTPUTS},
        shares={name: float(np.max([each.shares[name] for each in found])) for name in OUTPUTS},
        disagreements=max(each.disagreements for each in found),
    )


def make_pairs(img_channels: int, img_resolution: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random pictures and others that differ smoothly from them, the same ones each time.

    Args:
        img_channels: 1 or 3.
        img_resolution: Height and width, in pixels.
        count: How many pairs.

    Returns:
        Images and shifted images, each `[count, channels, height, width]`, float32 in [-1, 1].
    """
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(2 * count, img_channels, 6, 6, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(img_resolution,) * 2, mode="bilinear")
    images, change = smooth[:count], smooth[count:]
    strength = torch.linspace(0.2, 1, count)[:, None, None, None]
    return images.clamp(-1, 1), (images + strength * change).clamp(-1, 1)


def export_reconstructor(
    reconstructor: Reconstructor,
    content: Json,
    out: str | Path,
    force: bool = False,
    report: Report = lambda message: None,
    max_batch: int | None = None,
    engine: Engine | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> ReconstructorArtifact:
    """Export a reconstructor, verify it at batch 1, 2 and the maximum, and write an artefact.

    Args:
        reconstructor: The network; it is exported as it answers in evaluation mode.
        content: What its file records: the generator's identity, the shifts, bank_sha256, ...
        out: Folder to make.
        force: Replace a folder that exists.
        report: Called with a line for each step.
        max_batch: Largest batch to verify, in pairs; None takes one that suits the image size.
        engine: Engine to compile ahead of time; None for the graph alone.
        progress: Called with what is going on, steps done and steps in all, where an engine is built.

    Raises:
        OutputError: The folder exists and `force` is off, or cannot be written.
        MissingDependencyError: No runtime for graphs is installed, so nothing could be verified.
        ParityError: A graph differs from torch by more than is accepted; nothing is kept.
        ContractError: The network cannot be traced.
        BackendError: The machine cannot build the engine, or TensorRT refuses the graph.
    """
    engine = engine or Engine()
    check_engine(engine)
    pairs = _graph_backends()
    # A copy: the caller may be in the middle of training it.
    reconstructor = copy.deepcopy(reconstructor).cpu().eval().requires_grad_(False)
    settings = {
        "name": f"{reconstructor.kind} reconstructor",
        "kind": reconstructor.kind,
        "num_directions": reconstructor.num_directions,
        "img_channels": reconstructor.img_channels,
        "img_resolution": reconstructor.img_resolution,
        "width": reconstructor.width,
        "weights_sha256": sha256_tensors(reconstructor.state_dict()),
    }
    usual = usual_batch(reconstructor.img_resolution)
    batch = Batch(opt=min(usual.opt, max_batch or usual.max), max=max_batch or usual.max)
    out = Path(out)
    with atomic_folder(out, MANIFEST, KIND, force) as folder:
        report("tracing")
        example = make_pairs(reconstructor.img_channels, reconstructor.img_resolution, 2)
        trace(reconstructor, example, folder / GRAPH, INPUTS, OUTPUTS, _OPSET, settings, "reconstructor")
        reference = _make_reference(reconstructor)
        verified = _verify(folder / GRAPH, pairs, reference, batch.max, report)
        write_bytes(folder / REFERENCE, save(reference))
        graphs = {"f32": folder / GRAPH} if engine.to != "onnx" else {}
        engines = build_engines(folder, graphs, batch, engine, progress, report)
        made = manifest(KIND, {
            "reconstructor": settings,
            "recorded": recorded_of(content),
            "graph": {"opset": _OPSET},
            "batch": asdict(batch),
            "accept": {"f32": {"largest_error_share": TOLERANCE}},
            "verified": verified,
            "files": {name: sha256_file(folder / name) for name in (GRAPH, REFERENCE, *engines)},
            "machine": describe_machine(),
        })  # fmt: skip
        write_json(folder / MANIFEST, made)
    return ReconstructorArtifact(out, made)


def recorded_of(content: Json) -> Json:
    """What a reconstructor's file says of its training: the generator, the shifts, bank_sha256, ..."""
    return {key: value for key, value in content.items() if key not in _OF_THE_FILE}


def is_reconstructor_artifact(path: Path) -> bool:
    """Whether a path is an exported reconstructor: its folder, or a file in it."""
    return is_manifest((path if path.is_dir() else path.parent) / MANIFEST, KIND)


def open_reconstructor_artifact(path: str | Path) -> ReconstructorArtifact:
    """Open an exported reconstructor, and check that its files are the ones that were verified.

    Args:
        path: The folder, or a file in it.

    Raises:
        ArtifactError: No manifest (an unfinished export), a file missing, or one changed since the manifest
            was written.
    """
    folder = Path(path)
    if not folder.exists():
        raise ArtifactError(
            f"{path} does not exist. Make it with: fastdirs export RECONSTRUCTOR --out {path}"
        )
    folder = folder if folder.is_dir() else folder.parent
    content = read_json(folder / MANIFEST, KIND)
    missing = [key for key in ("reconstructor", "recorded", "batch", "files") if key not in content]
    if missing or GRAPH not in content["files"]:
        raise ArtifactError(
            f"{folder / MANIFEST} says nothing of {missing[0] if missing else GRAPH}. Export again."
        )
    check_files(folder, content["files"])
    return ReconstructorArtifact(folder, content)


def verify_reconstructor(
    artifact: ReconstructorArtifact, report: Report = lambda message: None
) -> list[Json]:
    """Compare an artefact with the reference answers in it, on every backend of this machine.

    Args:
        artifact: The artefact; no file with weights is needed.
        report: Called with a line for each step.

    Returns:
        One row for each backend: backend, precision, provider, errors, accepted, ...

    Raises:
        ParityError: An error is beyond the tolerance.
        ArtifactError: The artefact lacks what it should hold.
        MissingDependencyError: No runtime for graphs is installed.
    """
    largest = int(artifact.content["batch"]["max"])
    return _verify(artifact.graph_path, _graph_backends(), artifact.reference(), largest, report)


def _graph_backends() -> list[tuple[str, str]]:
    """Every installed runtime for graphs, in f32: answers are read off to the last digit, unlike pictures."""
    pairs, missing = graph_backends(("f32",))
    if missing and not pairs:
        raise missing
    return pairs


def _make_reference(reconstructor: Reconstructor) -> dict[str, Array]:
    """A few pairs and torch's answers: an artefact can be verified where there are no weights."""
    values = 2 * reconstructor.img_channels * reconstructor.img_resolution**2
    count = max(2, min(_MAX_PAIRS, _REFERENCE_VALUES // values))
    images, shifted = make_pairs(reconstructor.img_channels, reconstructor.img_resolution, count)
    with torch.inference_mode():
        answers = reconstructor(images, shifted)
    named = zip((*INPUTS, *OUTPUTS), (images, shifted, *answers), strict=True)
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in named}


def _verify(
    path: Path, pairs: Sequence[tuple[str, str]], reference: Mapping[str, Array], max_batch: int,
    report: Report,
) -> list[Json]:  # fmt: skip
    """Error at batch 1, 2 and the maximum on each backend; all must pass."""
    sizes = sorted({1, min(2, max_batch), max_batch})
    rows: list[Json] = []
    for (backend, precision), session in open_all(pairs, {"f32": path}, False).items():
        parity = measure_answers(session, reference, sizes)
        session.close()
        verdict = "accepted" if parity.accepted else "beyond the tolerance"
        report(f"{backend} {precision} at batch {', '.join(map(str, sizes))}: {parity}: {verdict}")
        if not parity.accepted:
            raise ParityError(
                f"{path.name} on {backend} in {precision} differs from torch fp32: {parity}. Accepted is "
                f"{TOLERANCE:g} of the largest value of each output, and no other direction. Export on "
                "another machine, or report this."
            )
        rows.append({
            "backend": backend, "precision": session.precision, "provider": session.provider,
            "detail": session.detail, "batch_sizes": sizes, "errors": dict(parity.errors),
            "error_shares": dict(parity.shares), "accepted": parity.accepted,
        })  # fmt: skip
    return rows
