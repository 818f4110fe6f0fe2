"""A generator becomes ONNX graphs: lowered, traced, verified against torch fp32, or not kept at all."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from safetensors.numpy import save

from fastdirs.artifact import KIND, MANIFEST, MAPPING, REFERENCE, SYNTHESIS, Artifact, Reference
from fastdirs.backends import BACKENDS, Array, graph_backends, open_all
from fastdirs.errors import (
    ArtifactError,
    BackendError,
    ContractError,
    ParityError,
    RecipeError,
)
from fastdirs.generators import Generator
from fastdirs.graph_parts import mark_boundaries
from fastdirs.graphs import MappingGraph, StatesGraph, SynthesisGraph, synthesis_inputs
from fastdirs.latents import psi_per_layer, sample_z
from fastdirs.loading import load_generator
from fastdirs.lowering import FORMS, lower
from fastdirs.machine import describe_machine
from fastdirs.manifest import Json, atomic_folder, manifest, sha256_file, write_bytes, write_json
from fastdirs.parity import Parity, compare, measure, require
from fastdirs.recipe import DEFAULT_ACCEPT, Recipe, usual_batch
from fastdirs.registry import unknown_name
from fastdirs.throughput import time_sessions
from fastdirs.tracing import opset_of, trace

# Values of images that are kept beside the graphs, and that torch renders at most to verify them.
_REFERENCE_VALUES = 2**21
_VERIFIED_VALUES = 2**25
_MAPPING_BATCHES = (1, 2, 8)
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
        generator: Any generator whose pictures depend on its inputs alone.
        out: Folder to make.
        recipe: What to make; None takes the defaults, and batch sizes that suit the image size.
        force: Replace a folder that exists.
        report: Called with a line for each step.

    Raises:
        OutputError: The folder exists and `force` is off, or cannot be written.
        MissingDependencyError: No runtime for graphs is installed, so nothing could be verified.
        ParityError: A graph differs from torch by more than the recipe accepts; nothing is kept.
        RecipeError: The generator is not the one that the recipe names, or has no graph in its opset.
        UnknownNameError: No such lowering form.
        ContractError: The generator draws chance that no graph repeats, or cannot be traced.
        BackendError: Nothing here computes in a precision that the recipe requires.
    """
    recipe = recipe or Recipe(
        generator=generator.provenance.name, batch=usual_batch(generator.img_resolution)
    )
    if recipe.weights_sha256 not in (None, generator.weights_sha256):
        raise RecipeError(
            f"The recipe is for weights {str(recipe.weights_sha256)[:12]}, "
            f"but {generator.provenance.name} has {generator.weights_sha256[:12]}."
        )
    if not generator.exportable:
        raise ContractError(
            f"{generator.provenance.name} draws new noise for each picture, which no graph repeats. Load it "
            "with constant noise (its options: fastdirs list generators), or use it without an export."
        )
    pairs = _graph_backends(recipe)
    out = Path(out)
    with atomic_folder(out, MANIFEST, KIND, force) as folder:
        graphs = _trace_forms(generator, recipe, folder, report)
        values = generator.img_channels * generator.img_resolution**2
        reference = make_reference(generator, max(2, min(recipe.batch.max, _VERIFIED_VALUES // values)))
        form = _fastest(graphs, pairs, recipe, reference, report)
        graphs.pop(form).replace(folder / SYNTHESIS)
        for path in graphs.values():
            path.unlink()
        verified = _verify(folder / SYNTHESIS, recipe, pairs, reference, recipe.batch.max, report)
        files = [SYNTHESIS, REFERENCE]
        if generator.has_mapping:
            _write_mapping(generator, recipe, folder, pairs, report)
            files.append(MAPPING)
        _write_reference(reference, max(2, min(8, _REFERENCE_VALUES // values)), folder / REFERENCE)
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
    reference = artifact.reference()
    if not len(reference.images):
        raise ArtifactError(f"{artifact.folder} holds no reference images. Export again.")
    pairs, largest = _graph_backends(recipe), int(artifact.content["batch"]["max"])
    if artifact.mapping_path is not None:
        # The reference latents are those of seeds 0, 1, ...: the whole way to the image is compared.
        identity, (count, num_layers) = artifact.generator, reference.latents.shape[:2]
        z = sample_z(range(count), int(identity["z_dim"]), identity.get("z_bound"))
        psi = psi_per_layer(1.0, None, num_layers, int(identity.get("truncation_rows", 0)))
        mapping = BACKENDS.load(pairs[0][0]).open(artifact.mapping_path, "f32", False)
        latents = mapping.run([z.numpy(), *reference.class_inputs("mapping"), psi.numpy()])
        mapping.close()
        reference = replace(reference, latents=latents)
        report(f"latents by {MAPPING} on {pairs[0][0]}")
    return _verify(artifact.synthesis_path, recipe, pairs, reference, largest, report)


def make_reference(generator: Generator, count: int) -> Reference:
    """Torch fp32 images of the first seeds, to compare graphs with.

    Args:
        generator: The generator; if it is conditional, each seed has a class.
        count: How many images.
    """
    classes = generator.sample_classes(range(count))
    c = generator.class_weights(classes, count, generator.class_in) if generator.class_in else None
    inputs = synthesis_inputs(generator, range(count))
    return Reference(
        latents=inputs[0],
        images=_torch_images(generator, inputs),
        c=None if c is None else c.numpy(),
        class_in=generator.class_in,
    )


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
        module = StatesGraph(lowered)
        trace(
            module, module.example(), graphs[form], module.inputs, list(chain(*module.states)),
            recipe.graph.opset, generator.identity(), finish=partial(mark_boundaries, states=module.states),
        )  # fmt: skip
    return graphs


def _torch_images(generator: Generator, inputs: Sequence[Array]) -> Array:
    """Torch fp32 images, a few at a time to keep memory low: `[batch, channels, height, width]`."""
    size = min(8, usual_batch(generator.img_resolution).opt)
    synthesis = SynthesisGraph(generator)
    parts = zip(*(torch.split(torch.from_numpy(each), size) for each in inputs), strict=True)
    with torch.inference_mode():
        return torch.cat([synthesis(*part) for part in parts]).numpy()


def _fastest(
    graphs: dict[str, Path],
    pairs: Sequence[tuple[str, str]],
    recipe: Recipe,
    reference: Reference,
    report: Report,
) -> str:
    """The form whose best backend and precision, of those whose error is accepted, is fastest here."""
    if len(graphs) == 1:
        return next(iter(graphs))
    sessions = {}
    for form, path in graphs.items():
        for (backend, precision), session in open_all(pairs, {"f32": path}, True).items():
            parity = measure(session, reference.inputs, reference.images, (recipe.batch.opt,))
            if parity.within(recipe.accept[precision]):
                sessions[f"{form} / {backend} {precision}"] = session
            else:
                session.close()
    if not sessions:
        # Which one is verified does not matter: none will pass.
        return next(iter(graphs))
    rows = np.arange(recipe.batch.opt) % len(reference.images)
    batch = [np.ascontiguousarray(each[rows]) for each in reference.inputs]
    timings = time_sessions(sessions, batch, _ROUNDS)
    for session in sessions.values():
        session.close()
    for name, timing in timings.items():
        report(f"{name}: {1000 * recipe.batch.opt / timing.median_ms:.0f} images/s")
    best = min(timings, key=lambda name: timings[name].median_ms)
    report(f"lowering: {best.partition(' / ')[0]}, fastest here")
    return best.partition(" / ")[0]


def _verify(
    path: Path,
    recipe: Recipe,
    pairs: Sequence[tuple[str, str]],
    reference: Reference,
    max_batch: int,
    report: Report,
) -> list[Json]:
    """Error at batch 1, 2 and the maximum on each backend; what is required must pass, and at least one."""
    sizes = sorted({1, min(2, max_batch), max_batch})
    rows: list[Json] = []
    sessions = open_all(pairs, {"f32": path}, False)
    lacking = [precision for precision in recipe.required if precision not in {p for _, p in sessions}]
    if lacking:
        raise BackendError(
            f"Nothing here runs {path.name} in {' or '.join(lacking)}, which the recipe requires. "
            "Try another lowering, or change the recipe."
        )
    for (backend, precision), session in sessions.items():
        parity: Parity = measure(session, reference.inputs, reference.images, sizes)
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
    """Trace the mapping, and verify what it does to the pictures: latents have no grey levels.

    Pictures cost time, so on each backend they are compared where the latents differ most.
    """
    module, path = MappingGraph(generator), folder / MAPPING
    opset, identity = recipe.graph.opset, generator.identity()
    trace(module, module.example(), path, module.inputs, "latents", opset, identity)
    count = max(_MAPPING_BATCHES)
    classes = generator.sample_classes(range(count))
    read = generator.class_weights(classes, count, "mapping")
    batch = [generator.sample(range(count)), *([] if read is None else [read])]
    psi = psi_per_layer(0.7, None, generator.num_layers, generator.truncation_rows)
    with torch.inference_mode():
        wanted: Array = module(*batch, psi).numpy()
    rows = np.concatenate([np.arange(size) for size in _MAPPING_BATCHES])
    sizes = np.repeat(_MAPPING_BATCHES, _MAPPING_BATCHES)
    for backend in dict.fromkeys(name for name, _ in pairs):
        session = BACKENDS.load(backend).open(path, "f32", False)
        runs = [[*(each[:size].numpy() for each in batch), psi.numpy()] for size in _MAPPING_BATCHES]
        found = np.concatenate([session.run(inputs) for inputs in runs])
        worst = int(np.abs(found - wanted[rows]).max(axis=(1, 2)).argmax())
        weights = generator.class_weights(classes, count, "synthesis")
        c = [] if weights is None else [weights[rows[[worst, worst]]].numpy()]
        images = _torch_images(generator, [np.stack([found[worst], wanted[rows[worst]]]), *c])
        parity = compare(images[:1], images[1:])
        what = f"{MAPPING} on {backend} at batch {sizes[worst]}"
        require(parity, recipe.accept.get("f32", DEFAULT_ACCEPT["f32"]), what)
        session.close()
        report(f"{MAPPING} on {backend}: {parity}: accepted")


def _write_reference(reference: Reference, count: int, path: Path) -> None:
    """A few latents and torch's images: an artefact can be verified where there is no checkpoint."""
    tensors = {"latents": reference.latents, "images": reference.images}
    if reference.c is not None:
        tensors["c"] = reference.c
    write_bytes(path, save({name: np.ascontiguousarray(each[:count]) for name, each in tensors.items()}))
