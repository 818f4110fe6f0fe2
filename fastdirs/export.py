"""A generator becomes ONNX graphs: lowered, traced, verified against torch fp32, or not kept at all."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from safetensors.torch import save

from fastdirs.artifact import KIND, MANIFEST, MAPPING, REFERENCE, SYNTHESIS, Artifact
from fastdirs.backends import BACKENDS, Array, graph_backends, open_all
from fastdirs.errors import (
    ArtifactError,
    BackendError,
    ContractError,
    ParityError,
    RecipeError,
)
from fastdirs.generators import Generator
from fastdirs.graphs import MappingGraph, SynthesisGraph
from fastdirs.latents import sample_z
from fastdirs.loading import load_generator
from fastdirs.lowering import FORMS, lower
from fastdirs.machine import describe_machine
from fastdirs.manifest import Json, atomic_folder, manifest, sha256_file, write_bytes, write_json
from fastdirs.parity import Parity, compare, measure, require
from fastdirs.recipe import DEFAULT_ACCEPT, Recipe
from fastdirs.registry import unknown_name
from fastdirs.throughput import time_sessions
from fastdirs.tracing import opset_of, trace

_REFERENCE_VALUES = 2**21
_ROUNDS = 3
Report = Callable[[str], None]


@runtime_checkable
class HasGraph(Protocol):
    """A generator that already is a graph, so that there is nothing to trace."""

    def graph_model(self) -> onnx.ModelProto:
        """The graph: `latents` `[batch, layers, dim]` -> `images` `[batch, channels, height, width]`."""
        ...


def export_generator(
    generator: Generator,
    out: str | Path,
    recipe: Recipe | None = None,
    force: bool = False,
    report: Report = lambda message: None,
) -> Artifact:
    """Export a generator, verify it at batch 1, 2 and the maximum, and write an artefact.

    Args:
        generator: Any unconditional generator.
        out: Folder to make.
        recipe: What to make; None takes the defaults.
        force: Replace a folder that exists.
        report: Called with a line for each step.

    Raises:
        OutputError: The folder exists and `force` is off, or cannot be written.
        MissingDependencyError: No runtime for graphs is installed, so nothing could be verified.
        ParityError: A graph differs from torch by more than the recipe accepts; nothing is kept.
        RecipeError: The generator is not the one that the recipe names, or has no graph in its opset.
        UnknownNameError: No such lowering form.
        ContractError: The generator is conditional, or cannot be traced.
        BackendError: Nothing here computes in a precision that the recipe requires.
    """
    recipe = recipe or Recipe(generator=generator.provenance.name)
    if recipe.weights_sha256 not in (None, generator.weights_sha256):
        raise RecipeError(
            f"The recipe is for weights {str(recipe.weights_sha256)[:12]}, "
            f"but {generator.provenance.name} has {generator.weights_sha256[:12]}."
        )
    if generator.c_dim:
        raise ContractError(
            f"{generator.provenance.name} is conditional; this version exports unconditional generators."
        )
    pairs = _graph_backends(recipe)
    out = Path(out)
    with atomic_folder(out, MANIFEST, KIND, force) as folder:
        graphs = _trace_forms(generator, recipe, folder, report)
        latents = _sample_latents(generator, recipe.batch.max)
        images = _torch_images(generator, latents)
        form = _fastest(graphs, pairs, recipe, latents, images, report)
        graphs.pop(form).replace(folder / SYNTHESIS)
        for path in graphs.values():
            path.unlink()
        verified = _verify(folder / SYNTHESIS, recipe, pairs, latents, images, recipe.batch.max, report)
        files = [SYNTHESIS, REFERENCE]
        if generator.has_mapping:
            _write_mapping(generator, recipe, folder, pairs, report)
            files.append(MAPPING)
        _write_reference(generator, folder / REFERENCE, latents)
        accept = {name: asdict(tolerance) for name, tolerance in recipe.accept.items()}
        content = {
            "generator": generator.identity(),
            "graph": {"lowering": form, "opset": opset_of(onnx.load(str(folder / SYNTHESIS)))},
            "batch": asdict(recipe.batch),
            "accept": accept,
            "required": list(recipe.required),
            "verified": verified,
            "precisions": sorted({row["precision"] for row in verified if row["accepted"]}, reverse=True),
            "files": {name: sha256_file(folder / name) for name in files},
            "machine": describe_machine(),
        }
        content = manifest(KIND, content)
        write_json(folder / MANIFEST, content)
    return Artifact(out, content)


def export_recipe(
    recipe: Recipe, folder: Path, out: str | Path, force: bool = False, report: Report = lambda m: None
) -> Artifact:
    """Export what a recipe describes.

    Args:
        recipe: The recipe.
        folder: Where it lies; files that it names are relative to it.
        out: Folder to make.
        force: Replace a folder that exists.
        report: Called with a line for each step.

    Raises:
        CheckpointError: The generator is missing or broken.
    """
    beside = folder / recipe.generator
    generator = load_generator(beside if beside.is_file() else recipe.generator)
    return export_generator(generator, out, recipe, force, report)


def verify_artifact(artifact: Artifact, report: Report = lambda message: None) -> list[Json]:
    """Compare an artefact with the reference images in it, on every backend and precision of this machine.

    Args:
        artifact: The artefact; no checkpoint is needed.
        report: Called with a line for each step.

    Returns:
        One row for each backend and precision: backend, precision, provider, parity, accepted.

    Raises:
        ParityError: A backend's error in fp32, or in every precision, is beyond the tolerance.
        ArtifactError: The artefact lacks what it should hold.
        MissingDependencyError: No runtime for graphs is installed.
    """
    required = tuple(artifact.content["required"])
    recipe = Recipe(generator=artifact.generator["name"], accept=artifact.accept, required=required)
    latents, images = (tensor.numpy() for tensor in artifact.reference())
    if not len(latents):
        raise ArtifactError(f"{artifact.folder} holds no reference images. Export again.")
    pairs, largest = _graph_backends(recipe), int(artifact.content["batch"]["max"])
    if artifact.mapping_path is not None:
        # The reference latents are those of seeds 0, 1, ...: the whole way to the image is compared.
        mapping = BACKENDS.load(pairs[0][0]).open(artifact.mapping_path, "f32", False)
        z = sample_z(range(len(latents)), int(artifact.generator["z_dim"])).numpy()
        latents = mapping.run([z, np.ones(latents.shape[1], dtype=np.float32)])
        mapping.close()
        report(f"latents by {MAPPING} on {pairs[0][0]}")
    return _verify(artifact.synthesis_path, recipe, pairs, latents, images, largest, report)


def _graph_backends(recipe: Recipe) -> list[tuple[str, str]]:
    """Backend and precision of every runtime for graphs that is installed, within what the recipe accepts."""
    pairs, missing = graph_backends(recipe.accept)
    lacking = [precision for precision in recipe.required if precision not in {p for _, p in pairs}]
    if missing and (lacking or not pairs):
        raise missing
    if lacking or not pairs:
        raise BackendError(
            f"Nothing here computes in {' or '.join(lacking or recipe.accept)}, so an export could not be "
            "verified. Export on another machine, or change the recipe."
        )
    return pairs


def _trace_forms(generator: Generator, recipe: Recipe, folder: Path, report: Report) -> dict[str, Path]:
    """One traced graph for each form to be tried; forms that change nothing are tried once."""
    wanted = recipe.graph.lowering
    if wanted != "auto" and wanted not in FORMS:
        raise unknown_name("lowering form", wanted, ["auto", *FORMS])
    if isinstance(generator, HasGraph):
        if wanted not in ("auto", "plain"):
            raise RecipeError(
                f"{generator.provenance.name} is a graph already: lowering {wanted!r} cannot apply. Use auto."
            )
        onnx.save(generator.graph_model(), str(folder / "plain.onnx"))
        return {"plain": folder / "plain.onnx"}
    graphs: dict[str, Path] = {}
    seen: list[str] = []
    for form in [wanted] if wanted != "auto" else ["folded", "subpixel"]:
        lowered = lower(generator, FORMS[form])
        if str(lowered.stages) in seen:
            continue
        seen.append(str(lowered.stages))
        report(f"tracing {form}")
        graphs[form] = folder / f"{form}.onnx"
        module, opset, identity = SynthesisGraph(lowered), recipe.graph.opset, generator.identity()
        trace(module, module.example(), graphs[form], ["latents"], "images", opset, identity)
    return graphs


def _sample_latents(generator: Generator, count: int) -> Array:
    """Latents to verify with: `[count, layers, dim]`, one seed each."""
    with torch.inference_mode():
        latents: Array = generator.mapping(sample_z(range(count), generator.z_dim)).numpy()
    return np.ascontiguousarray(latents)


def _torch_images(generator: Generator, latents: Array) -> Array:
    """Torch fp32 images, eight at a time to keep memory low: `[batch, channels, height, width]`."""
    with torch.inference_mode():
        parts = [generator.synthesis(part) for part in torch.split(torch.from_numpy(latents), 8)]
        return torch.cat(parts).numpy()


def _fastest(
    graphs: dict[str, Path],
    pairs: Sequence[tuple[str, str]],
    recipe: Recipe,
    latents: Array,
    images: Array,
    report: Report,
) -> str:
    """The form whose best backend and precision, of those whose error is accepted, is fastest here."""
    if len(graphs) == 1:
        return next(iter(graphs))
    sessions = {}
    for form, path in graphs.items():
        for (backend, precision), session in open_all(pairs, path, True).items():
            parity = measure(session, latents, images, (recipe.batch.opt,))
            if parity.within(recipe.accept[precision]):
                sessions[f"{form} / {backend} {precision}"] = session
            else:
                session.close()
    if not sessions:
        # Which one is verified does not matter: none will pass.
        return next(iter(graphs))
    batch = latents[: recipe.batch.opt]
    timings = time_sessions(sessions, batch, _ROUNDS)
    for session in sessions.values():
        session.close()
    for name, timing in timings.items():
        report(f"{name}: {1000 * len(batch) / timing.median_ms:.0f} images/s")
    best = min(timings, key=lambda name: timings[name].median_ms)
    report(f"lowering: {best.partition(' / ')[0]}, fastest here")
    return best.partition(" / ")[0]


def _verify(
    path: Path,
    recipe: Recipe,
    pairs: Sequence[tuple[str, str]],
    latents: Array,
    images: Array,
    max_batch: int,
    report: Report,
) -> list[Json]:
    """Error at batch 1, 2 and the maximum on each backend; what is required must pass, and at least one."""
    sizes = sorted({1, min(2, max_batch), max_batch})
    rows: list[Json] = []
    sessions = open_all(pairs, path, False)
    lacking = [precision for precision in recipe.required if precision not in {p for _, p in sessions}]
    if lacking:
        raise BackendError(
            f"Nothing here runs {path.name} in {' or '.join(lacking)}, which the recipe requires. "
            "Try another lowering, or change the recipe."
        )
    for (backend, precision), session in sessions.items():
        parity: Parity = measure(session, latents, images, sizes)
        session.close()
        tolerance = recipe.accept[precision]
        accepted = parity.within(tolerance)
        verdict = "accepted" if accepted else "beyond the tolerance"
        report(f"{backend} {precision} at batch {', '.join(map(str, sizes))}: {parity}: {verdict}")
        if precision in recipe.required:
            require(parity, tolerance, f"{path.name} on {backend} in {precision}")
        rows.append(
            {
                "backend": backend,
                "precision": session.precision,
                "provider": session.provider,
                "detail": session.detail,
                "batch_sizes": sizes,
                "parity": parity.to_json(),
                "accepted": accepted,
            }
        )
    if not any(row["accepted"] for row in rows):
        raise ParityError(
            f"{path.name} differs from torch fp32 by more than is accepted in every precision. "
            "Try another lowering, or accept more in the recipe."
        )
    return rows


def _write_mapping(
    generator: Generator, recipe: Recipe, folder: Path, pairs: Sequence[tuple[str, str]], report: Report
) -> None:
    """Trace the mapping, and verify what it does to the pictures: latents have no grey levels."""
    module = MappingGraph(generator)
    path = folder / MAPPING
    trace(module, module.example(), path, ["z", "psi"], "latents", recipe.graph.opset, generator.identity())
    psi = np.full(generator.num_layers, 0.7, dtype=np.float32)
    tolerance = recipe.accept.get("f32", DEFAULT_ACCEPT["f32"])
    for backend in dict.fromkeys(name for name, _ in pairs):
        session = BACKENDS.load(backend).open(path, "f32", False)
        for size in (1, 2, 8):
            z = sample_z(range(size), generator.z_dim)
            with torch.inference_mode():
                wanted = module(z, torch.from_numpy(psi)).numpy()
            found = session.run([z.numpy(), psi])
            parity = compare(_torch_images(generator, found), _torch_images(generator, wanted))
            require(parity, tolerance, f"{MAPPING} on {backend} at batch {size}")
        session.close()
        report(f"{MAPPING} on {backend}: {parity}: accepted")


def _write_reference(generator: Generator, path: Path, latents: Array) -> None:
    """A few latents and torch's images: an artefact can be verified where there is no checkpoint."""
    values = generator.img_channels * generator.img_resolution**2
    few = latents[: max(2, min(8, _REFERENCE_VALUES // values))]
    images = _torch_images(generator, few)
    write_bytes(path, save({"latents": torch.from_numpy(few.copy()), "images": torch.from_numpy(images)}))
