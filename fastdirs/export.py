"""A generator becomes ONNX graphs: lowered, traced, verified against torch fp32, or not kept at all."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from safetensors.numpy import save

from fastdirs.artifact import KIND, MANIFEST, MAPPING, REFERENCE, SYNTHESIS, Artifact, Reference
from fastdirs.backends import BACKENDS, Array, open_all
from fastdirs.engines import Progress, build_engines, check_engine
from fastdirs.errors import ContractError, RecipeError
from fastdirs.generators import Generator
from fastdirs.graph_parts import mark_boundaries
from fastdirs.graph_precision import typed
from fastdirs.graphs import MappingGraph, StatesGraph, SynthesisGraph, synthesis_inputs
from fastdirs.latents import psi_per_layer
from fastdirs.loading import load_generator
from fastdirs.lowering import FORMS, lower
from fastdirs.machine import describe_machine
from fastdirs.manifest import Json, atomic_folder, manifest, sha256_file, write_bytes, write_json
from fastdirs.parity import compare, measure, require
from fastdirs.quantization import quantize
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, Recipe, usual_batch
from fastdirs.registry import unknown_name
from fastdirs.throughput import time_sessions
from fastdirs.tracing import opset_of, trace
from fastdirs.verification import Report, available, verify
from fastdirs.worst_image import save_worst_image, side_by_side

# Values of images that are kept beside the graphs, and that torch renders at most to verify them.
_REFERENCE_VALUES = 2**21
_VERIFIED_VALUES = 2**25
_MAPPING_BATCHES = (1, 2, 8)
_ROUNDS = 3
# Latents that int8 ranges are taken from, of other seeds than it is verified with.
_CALIBRATED = 128
_CALIBRATION_SEED = 1_000_000


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
    progress: Progress = lambda phase, done, total: None,
) -> Artifact:
    """Export a generator, verify it at batch 1, 2 and the maximum, and write an artefact.

    Args:
        generator: Any generator whose pictures depend on its inputs alone.
        out: Folder to make.
        recipe: What to make; None takes the defaults, and batch sizes that suit the image size.
        force: Replace a folder that exists.
        report: Called with a line for each step.
        progress: Called with what is going on, steps done and steps in all, where engines are built.

    Raises:
        OutputError: The folder exists and `force` is off, or cannot be written.
        MissingDependencyError: No runtime for graphs is installed, so nothing could be verified.
        ParityError: A graph differs from torch by more than the recipe accepts; nothing is kept but a picture
            of the worst image, `<out>.failed.png`.
        RecipeError: The generator is not the one that the recipe names, or has no graph in its opset.
        UnknownNameError: No such lowering form.
        ContractError: The generator draws chance that no graph repeats, or cannot be traced.
        BackendError: Nothing here computes in a precision that the recipe requires, a constant does not fit
            into f16, or TensorRT refuses a graph.
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
    pairs = available(recipe)
    out = Path(out)
    check_engine(recipe.engine)
    with atomic_folder(out, MANIFEST, KIND, force) as folder:
        picture = out.resolve().with_name(f"{out.resolve().name}.failed.png")
        # An earlier attempt's.
        picture.unlink(missing_ok=True)
        graphs = _trace_forms(generator, recipe, folder, report)
        values = generator.img_channels * generator.img_resolution**2
        reference = make_reference(generator, max(2, min(recipe.batch.max, _VERIFIED_VALUES // values)))
        form = _fastest(graphs, pairs, recipe, reference, report)
        graphs.pop(form).replace(folder / SYNTHESIS)
        for path in graphs.values():
            path.unlink()
        written, quantised = _write_precisions(generator, recipe, folder, report)
        verified = verify(written, recipe, pairs, reference, picture, report)
        files = [*(path.name for path in written.values()), REFERENCE]
        if generator.has_mapping:
            _write_mapping(generator, recipe, folder, pairs, picture, report)
            files.append(MAPPING)
        engines: dict[str, Json] = {}
        if recipe.engine.to != "onnx":
            mapping = {"f32": folder / MAPPING} if generator.has_mapping else {}
            for graphs in (written, mapping):
                engines |= build_engines(folder, graphs, recipe.batch, recipe.engine, progress, report)
            files += engines
        _write_reference(reference, max(2, min(8, _REFERENCE_VALUES // values)), folder / REFERENCE)
        accept = {name: asdict(tolerance) for name, tolerance in recipe.accept.items()}
        content = {
            "generator": generator.identity(),
            "graph": {
                "lowering": form,
                "opset": opset_of(onnx.load(str(folder / SYNTHESIS))),
                # What an edit of some layers leaves alone follows from this.
                "reads": [] if isinstance(generator, HasGraph) else [list(each) for each in generator.reads],
            },
            "graphs": {precision: path.name for precision, path in written.items()},
            **({"int8": quantised} if quantised else {}),
            **({"engines": {n: e for n, e in engines.items() if not n.endswith(".json")}} if engines else {}),
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
    recipe: Recipe,
    folder: Path,
    out: str | Path,
    force: bool = False,
    report: Report = lambda message: None,
    progress: Progress = lambda phase, done, total: None,
) -> Artifact:
    """Export what a recipe describes.

    Args:
        recipe: The recipe.
        folder: Where it lies; files that it names are relative to it.
        out: Folder to make.
        force: Replace a folder that exists.
        report: Called with a line for each step.
        progress: Called with what is going on, steps done and steps in all, where engines are built.

    Raises:
        CheckpointError: The generator is missing or broken.
    """
    beside = folder / recipe.generator
    generator = load_generator(beside if beside.is_file() else recipe.generator)
    return export_generator(generator, out, recipe, force, report, progress)


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
    # TensorRT has no transposed convolution in bf16, and none in int8 pays on CPUs.
    tried = ["subpixel"] if {"bf16", "int8"} & set(recipe.graph.precisions) else ["folded", "subpixel"]
    for form in [wanted] if wanted != "auto" else tried:
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
        for (backend, precision), session in open_all(pairs, {"f32": path}, True, recipe.batch).items():
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


def _write_precisions(
    generator: Generator, recipe: Recipe, folder: Path, report: Report
) -> tuple[dict[str, Path], Json]:
    """The graph in every precision asked for, beside the float32 one, and what was done for int8."""
    written, quantised = {"f32": folder / SYNTHESIS}, {}
    for precision in recipe.graph.precisions:
        path = folder / f"synthesis.{precision}.onnx"
        if precision == "int8":
            report(f"calibrating int8 on {_CALIBRATED} latents")
            size = recipe.batch.opt
            seeds = range(_CALIBRATION_SEED, _CALIBRATION_SEED + _CALIBRATED)
            chunks = (seeds[at : at + size] for at in range(0, _CALIBRATED, size))
            batches = (synthesis_inputs(generator, each) for each in chunks)
            # TensorRT takes no zero point.
            quantised = quantize(written["f32"], path, batches, symmetric=recipe.engine.to != "onnx")
        elif precision != "f32":
            report(f"writing {precision}")
            write_bytes(path, typed(onnx.load(str(written["f32"])), precision).SerializeToString())
        written[precision] = path if precision != "f32" else written["f32"]
    return written, quantised


def _write_mapping(
    generator: Generator,
    recipe: Recipe,
    folder: Path,
    pairs: Sequence[tuple[str, str]],
    picture: Path,
    report: Report,
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
        session = BACKENDS.load(backend).open(path, "f32", False, Batch(opt=count, max=count))
        runs = [[*(each[:size].numpy() for each in batch), psi.numpy()] for size in _MAPPING_BATCHES]
        found = np.concatenate([session.run(inputs) for inputs in runs])
        session.close()
        worst = int(np.abs(found - wanted[rows]).max(axis=(1, 2)).argmax())
        weights = generator.class_weights(classes, count, "synthesis")
        c = [] if weights is None else [weights[rows[[worst, worst]]].numpy()]
        images = _torch_images(generator, [np.stack([found[worst], wanted[rows[worst]]]), *c])
        parity = compare(images[:1], images[1:])
        tolerance = recipe.accept.get("f32", DEFAULT_ACCEPT["f32"])
        said = f"{MAPPING} on {backend} at batch {sizes[worst]}"
        if not parity.within(tolerance):
            said = f"{save_worst_image(side_by_side(*images), picture)} {said}"
        require(parity, tolerance, said)
        report(f"{MAPPING} on {backend}: {parity}: accepted")


def _write_reference(reference: Reference, count: int, path: Path) -> None:
    """A few latents and torch's images: an artefact can be verified where there is no checkpoint."""
    tensors = {"latents": reference.latents, "images": reference.images}
    if reference.c is not None:
        tensors["c"] = reference.c
    write_bytes(path, save({name: np.ascontiguousarray(each[:count]) for name, each in tensors.items()}))
