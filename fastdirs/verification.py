"""Graphs against torch fp32, in grey levels, at three batch sizes, on whatever this machine has."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import onnx

from fastdirs.artifact import MAPPING, Artifact, Reference
from fastdirs.backends import BACKENDS, Session, graph_backends, open_all
from fastdirs.errors import ArtifactError, BackendError, ParityError
from fastdirs.graph_precision import TYPED, emulated
from fastdirs.images import Pixels
from fastdirs.latents import psi_per_layer, sample_z
from fastdirs.manifest import Json
from fastdirs.parity import measure
from fastdirs.recipe import Batch, Graph, Recipe
from fastdirs.worst_image import save_worst_image, worst_image

Report = Callable[[str], None]


def available(recipe: Recipe) -> list[tuple[str, str]]:
    """Backend and precision of every runtime for graphs that is installed, within what the recipe accepts.

    Raises:
        MissingDependencyError: No runtime for graphs is installed.
        BackendError: Nothing here computes in a precision that the recipe requires.
    """
    pairs, missing = graph_backends(recipe.accept)
    # A typed graph can be verified where nothing computes in its precision.
    wanted = [precision for precision in recipe.required if precision not in _typed(recipe)]
    lacking = [precision for precision in wanted if precision not in {p for _, p in pairs}]
    if missing and (lacking or not pairs):
        raise missing
    if lacking or not pairs:
        raise BackendError(
            f"Nothing here computes in {' or '.join(lacking or recipe.accept)}, so an export could not be "
            "verified. Export on another machine, or change the recipe."
        )
    return pairs


def verify(
    graphs: Mapping[str, Path],
    recipe: Recipe,
    pairs: Sequence[tuple[str, str]],
    reference: Reference,
    picture: Path | None,
    report: Report = lambda message: None,
) -> list[Json]:
    """Error at batch 1, 2 and the maximum on each backend.

    What the recipe requires must pass, and so must every graph that it asks for, and one precision at least.

    Args:
        graphs: ONNX file of each precision.
        recipe: What is accepted and required, and the batch sizes.
        pairs: Backends and precisions to run on.
        reference: Torch's images.
        picture: Where to show the worst image if the error is too large; None shows none.
        report: Called with a line for each step.

    Returns:
        One row for each backend and precision: backend, precision, provider, detail, batch_sizes, parity,
        accepted.

    Raises:
        ParityError: The error is beyond the tolerance.
        BackendError: Nothing here runs a precision that the recipe requires.
    """
    largest = recipe.batch.max
    sizes = sorted({1, min(2, largest), largest})
    name = next(iter(graphs.values())).name
    sessions = open_all(pairs, graphs, False, recipe.batch)
    rows: list[Json] = []
    worst: Pixels | None = None
    # A runtime that lowers the precision of a float32 graph by itself says nothing of the typed one.
    ran = {(pair, BACKENDS.load(pair[0]).graph_of(pair[1])) for pair in sessions}
    with ExitStack() as opened:
        for session in sessions.values():
            opened.callback(session.close)
        more = opened.enter_context(_typed_sessions(graphs, recipe, {graph for _, graph in ran}))
        ran |= {(pair, pair[1]) for pair in more}
        unseen = sorted(set(graphs) - {"f32", *(graph for _, graph in ran)})
        if unseen:
            raise BackendError(
                f"Nothing here runs {graphs[unseen[0]].name}, so it could not be verified: it holds no "
                f"layer in {unseen[0]}, or the runtime for it is not installed. Leave {unseen[0]} out, or "
                "export elsewhere."
            )
        lacking = set(recipe.required) - {precision for _, precision in (*sessions, *more)}
        if lacking:
            raise BackendError(
                f"Nothing here runs {name} in {' or '.join(sorted(lacking))}, which the recipe requires. "
                "Try another lowering, or change the recipe."
            )
        for (backend, precision), session in (sessions | more).items():
            parity = measure(session, reference.inputs, reference.images, sizes)
            tolerance = recipe.accept[precision]
            accepted = parity.within(tolerance)
            verdict = "accepted" if accepted else "beyond the tolerance"
            report(f"{backend} {precision} at batch {', '.join(map(str, sizes))}: {parity}: {verdict}")
            graph = dict(ran)[backend, precision]
            must = precision in recipe.required or graph != "f32"
            if not accepted and (must or worst is None):
                worst = worst_image(session, reference.inputs, reference.images, sizes)
            if must and not accepted:
                raise ParityError(
                    f"{graphs[graph].name} on {backend} in {precision} differs from torch fp32 "
                    f"by {parity}; accepted are mean {tolerance.mean:g}, max {tolerance.max:g}, "
                    f"PSNR {tolerance.psnr:g} dB. Try another lowering or precision, or accept more in the "
                    f"recipe.{_shown(worst, picture)}"
                )
            rows.append(
                {
                    "backend": backend,
                    "precision": precision,
                    "provider": session.provider,
                    "detail": session.detail,
                    "batch_sizes": sizes,
                    "parity": parity.to_json(),
                    "accepted": accepted,
                }
            )
    if not any(row["accepted"] for row in rows):
        raise ParityError(
            f"{name} differs from torch fp32 by more than is accepted in every precision. "
            f"Try another lowering, or accept more in the recipe.{_shown(worst, picture)}"
        )
    return rows


def verify_artifact(artifact: Artifact, report: Report = lambda message: None) -> list[Json]:
    """Compare an artefact with the reference images in it, on every backend and precision of this machine.

    Args:
        artifact: The artefact; no checkpoint is needed.
        report: Called with a line for each step.

    Returns:
        One row for each backend and precision: backend, precision, provider, parity, accepted.

    Raises:
        ParityError: The error of what the recipe required, or in every precision, is beyond the tolerance.
        ArtifactError: The artefact lacks what it should hold.
        MissingDependencyError: No runtime for graphs is installed.
    """
    recipe = Recipe(
        generator=artifact.generator["name"], accept=artifact.accept,
        graph=Graph(precisions=tuple(artifact.graphs)), batch=Batch(**artifact.content["batch"]),
        required=tuple(artifact.content["required"]),
    )  # fmt: skip
    reference = artifact.reference()
    if not len(reference.images):
        raise ArtifactError(f"{artifact.folder} holds no reference images. Export again.")
    pairs = available(recipe)
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
    return verify(artifact.graphs, recipe, pairs, reference, None, report)


def _typed(recipe: Recipe) -> list[str]:
    return [precision for precision in recipe.graph.precisions if precision in TYPED]


@contextmanager
def _typed_sessions(
    graphs: Mapping[str, Path], recipe: Recipe, executed: set[str]
) -> Iterator[dict[tuple[str, str], Session]]:
    """Sessions that round as typed graphs do, for those that nothing here executes: what fits is seen."""
    with ExitStack() as stack:
        sessions: dict[tuple[str, str], Session] = {}
        for precision in (each for each in _typed(recipe) if each not in executed):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastdirs-typed-"))
            path = Path(folder) / graphs[precision].name
            onnx.save(emulated(onnx.load(str(graphs[precision]))), str(path))
            session = BACKENDS.load("ort").open(path, "f32")
            stack.callback(session.close)
            session.provider += f", {precision} rounded, computed in f32"
            sessions["ort", precision] = session
        yield sessions


def _shown(worst: Pixels | None, picture: Path | None) -> str:
    return "" if worst is None or picture is None else " " + save_worst_image(worst, picture)
