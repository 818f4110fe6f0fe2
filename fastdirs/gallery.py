"""Fill a folder with a traversal: latents -> runtime -> pixels -> files, resumable, in constant memory."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fastdirs.artifact import Artifact, open_artifact
from fastdirs.bank_editing import restrict
from fastdirs.directions import DirectionBank
from fastdirs.errors import ContractError, OutputError, SelectionError
from fastdirs.generators import Generator
from fastdirs.images import ENCODERS, MAX_SIDE
from fastdirs.latents import check_class, sample_z
from fastdirs.manifest import Json, manifest, write_json
from fastdirs.recipe import usual_batch
from fastdirs.registry import unknown_name
from fastdirs.runtime import Runtime, open_runtime
from fastdirs.selection import AUTO
from fastdirs.strips import Piece, StripSource, TraverseJob
from fastdirs.throughput import time_sessions
from fastdirs.traversal import Plan, Portion, portions
from fastdirs.traversal_folder import (
    KIND,
    as_json,
    earlier_run,
    other_settings,
    remove_leftovers,
    remove_traversal,
    sole_run,
)
from fastdirs.writers import PLAN_FILE, WRITERS, Gallery, View

Progress = Callable[[str, int, int], None]
Filler = Callable[[TraverseJob, Sequence[Piece], Callable[[int], None]], None]
"""How the missing strips are written: (job, where they are, progress)."""

_BATCH_CANDIDATES = (8, 16, 32, 64, 128)
# A smaller batch within this share of the best speed is preferred: less memory, less filling up of the last.
_GOOD_ENOUGH = 0.97


def traverse(
    source: Artifact | Generator | str | Path,
    bank: DirectionBank,
    out: str | Path,
    seeds: Sequence[int],
    directions: Sequence[int] | None = None,
    epsilons: Sequence[float] = (-6.0, -4.5, -3.0, -1.5, 0.0, 1.5, 3.0, 4.5, 6.0),
    *,
    layers: Sequence[int] | None = None,
    psi: float = 1.0,
    cutoff: int | None = None,
    c: int | None = None,
    image_format: str = "jpg",
    writers: Sequence[str] = ("strips", "atlas"),
    backend: str = AUTO,
    precision: str | None = None,
    batch_size: int | None = None,
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
    opened: Callable[[Runtime, Sequence[Portion]], None] = lambda runtime, planned: None,
    filler: Filler | None = None,
) -> Gallery:
    """Render seeds x directions x epsilons into a folder.

    What a seed's images share is computed once where that saves work: the stages of the generator before the
    first one that the directions touch.
    A run that was killed continues when it is called again in the same way, and ends with the same bytes.

    Args:
        source: An artefact, its folder, or a generator.
        bank: Directions of the same generator.
        out: The folder.
        seeds: One strip per seed and direction.
        directions: Indices into the bank; None = all.
        epsilons: Signed lengths of the shifts; sorted here, repeats dropped.
        layers: Latent layers that may be shifted; None = those that the directions shift.
        psi: Truncation, 1 = off.
        cutoff: How many of the first layers to truncate; None = all.
        c: Class of all images; None if unconditional.
        image_format: "jpg", "png" or "webp".
        writers: Registered names of what to write.
        backend: Registered name, or "auto".
        precision: "f32", "bf16", "f16", "int8", or None for the fastest that is accepted.
        batch_size: Images rendered at a time; None takes the usual one, 0 measures which is best here.
        force: Replace an earlier traversal in this folder.
        progress: Called with what is going on, images (or files) done, and how many in all.
        opened: Called once, before the first image, with what was opened and what is planned.
        filler: Writes the missing strips; None does so here.

    Returns:
        The finished gallery.

    Raises:
        BankError: The bank belongs to another generator.
        SelectionError: A seed, direction, epsilon, layer, psi, class or batch size out of range, or layers
            that a direction does not shift.
        ContractError: A class for an unconditional generator, or none for a conditional one; pictures that
            hold chance.
        UnknownNameError: No such writer, image format or backend.
        OutputError: The folder holds something else or a traversal with other settings, or cannot be written.
    """
    out = Path(out)
    if image_format not in ENCODERS:
        raise unknown_name("image format", image_format, ENCODERS)
    plugins = {name: WRITERS.load(name) for name in dict.fromkeys(writers)}
    # Views are built from the strip pictures.
    if any(isinstance(plugin, View) for plugin in plugins.values()):
        plugins = {"strips": WRITERS.load("strips"), **plugins}
    if batch_size is not None and batch_size < 0:
        raise SelectionError(
            f"Batch size {batch_size} is out of range. Expected 1 or more, or 0 to measure which is best."
        )
    if not isinstance(source, Artifact | Generator):
        source = open_artifact(source)
    identity = source.generator if isinstance(source, Artifact) else source.identity()
    if isinstance(source, Generator) and not source.exportable:
        raise ContractError(
            f"The pictures of {source.provenance.name} hold chance, which strips would show beside the "
            "directions, and a resumed run could not repeat. Load it with noise=const or noise=none."
        )
    bank.check_generator(identity)
    check_class(identity, c)
    c = None if c is None else int(c)
    out = out.resolve()
    psi = float(psi)
    plan = Plan(
        seeds=_whole(seeds, "seed"),
        directions=_whole(range(len(bank)) if directions is None else directions, "direction"),
        # -0.0 and 0.0 are one epsilon.
        epsilons=tuple(sorted({float(epsilon) + 0.0 for epsilon in epsilons})),
        batch_size=1,
    )
    if layers is not None:
        bank = restrict(bank, layers, plan.directions)
    _check_selection(plan, bank)
    widest = MAX_SIDE[image_format] // int(identity["img_resolution"])
    if "strips" in plugins and len(plan.epsilons) > widest:
        raise SelectionError(
            f"A strip of {len(plan.epsilons)} epsilons is too wide for {image_format}, which holds {widest} "
            "of these images. Choose fewer epsilons or another image format."
        )
    asked = as_json({
        "generator": identity,
        "artifact": source.sha256 if isinstance(source, Artifact) else None,
        "bank": _describe_bank(bank),
        "seeds": plan.seeds,
        "directions": plan.directions,
        "epsilons": plan.epsilons,
        "psi": psi,
        "cutoff": cutoff,
        "class": c,
        "image_format": image_format,
        "writers": list(plugins),
    })  # fmt: skip
    earlier = earlier_run(out, asked, force)
    replaces = force and (out / PLAN_FILE).exists()
    if earlier is not None:
        # What was measured and chosen for the first part holds for the rest, or the bytes would differ.
        chosen = {**earlier["runtime"], "batch_size": earlier["batch_size"]}
        wanted = {
            "backend": None if backend == AUTO else backend,
            "precision": precision,
            "batch_size": min(batch_size, plan.num_rendered) if batch_size else None,
        }
        for name, value in wanted.items():
            if value not in (None, chosen[name]):
                raise other_settings(out, name)
        backend, precision, batch_size = chosen["backend"], chosen["precision"], chosen["batch_size"]
    with open_runtime(source, backend, precision, batch_size or None, streaming=True) as runtime:
        runtime.latents_of(psi, cutoff, c)
        size = _batch_size(runtime, batch_size, plan.num_rendered, c)
        planned = portions(
            replace(plan, batch_size=size),
            lambda direction: runtime.first_stage(bank.edited_layers(direction)),
            len(runtime.reads),
        )
        if earlier is not None and as_json(runtime.describe()) != earlier["runtime"]:
            raise OutputError(
                f"{out} was begun with {earlier['runtime']['provider']}, but here is {runtime.provider}. "
                "Pass --force to begin again."
            )
        opened(runtime, planned)
        in_effect = {"batch_size": size, "runtime": runtime.describe(), "complete": False}
        content = manifest(KIND, {**asked, **in_effect})
        gallery = Gallery(out, content)
        job = TraverseJob(
            source=source, bank=bank, gallery=gallery, portions=tuple(planned), backend=runtime.backend,
            precision=runtime.precision, usual_batch=runtime.usual_batch,
        )  # fmt: skip
        with sole_run(out):
            if replaces:
                # Only now, when all is checked: a mistake must not cost an earlier traversal.
                remove_traversal(out)
            elif earlier is None and (out / PLAN_FILE).exists():
                raise OutputError(f"{out} was filled by another run in the meantime. Give the command again.")
            remove_leftovers(out)
            write_json(out / PLAN_FILE, content)
            _fill(job, runtime, filler, partial(progress, "rendering"))
            for name, plugin in plugins.items():
                if isinstance(plugin, View):
                    plugin.build(gallery, partial(progress, name))
            finished = {**content, "complete": True}
            write_json(out / PLAN_FILE, finished)
    return Gallery(out, finished)


def _whole(values: Sequence[int], noun: str) -> tuple[int, ...]:
    """Whole numbers of any library as plain ones, repeats dropped."""
    try:
        return tuple(dict.fromkeys(operator.index(value) for value in values))
    except TypeError as error:
        raise SelectionError(f"{list(values)} are no {noun}s. Expected whole numbers.") from error


def _check_selection(plan: Plan, bank: DirectionBank) -> None:
    """Raises SelectionError before anything is written, where the rendering would only raise it later."""
    sample_z((min(plan.seeds), max(plan.seeds)), 1)
    for direction in plan.directions:
        for epsilon in plan.epsilons:
            bank.shift(direction, epsilon)


def _describe_bank(bank: DirectionBank) -> Json:
    return {
        "method": bank.method,
        "settings": bank.settings,
        "layers": bank.layers,
        "labels": bank.labels,
        "scores": bank.scores.tolist(),
        "ranges": bank.ranges.tolist(),
        "sha256": bank.sha256,
    }


def _batch_size(runtime: Runtime, asked: int | None, num_rendered: int, c: int | None) -> int:
    largest = runtime.max_batch or usual_batch(int(runtime.generator["img_resolution"])).max
    if asked is not None and asked > largest and runtime.max_batch:
        raise SelectionError(
            f"A batch of {asked} is out of range. This artefact was verified for 1 to {largest}."
        )
    if asked == 0:
        return min(_best_batch(runtime, largest, c), num_rendered)
    return min(asked or runtime.usual_batch, num_rendered)


def _best_batch(runtime: Runtime, largest: int, c: int | None) -> int:
    """The smallest batch whose speed is as good as the best one's."""
    latents = runtime.latents_of(c=c)(range(largest)).numpy()
    speeds = {}
    for size in [size for size in _BATCH_CANDIDATES if size <= largest] or [largest]:
        timing = time_sessions({"": runtime.session}, runtime.inputs(latents[:size], c), rounds=3)[""]
        speeds[size] = size / timing.median_ms
    return min(size for size, speed in speeds.items() if speed >= _GOOD_ENOUGH * max(speeds.values()))


def _fill(
    job: TraverseJob, runtime: Runtime, filler: Filler | None, progress: Callable[[int, int], None]
) -> None:
    """Write the strips that are missing, here or wherever the filler does."""
    missing = job.missing()
    done = job.num_images - sum(map(job.images, missing))

    def added(images: int) -> None:
        nonlocal done
        done += images
        progress(done, job.num_images)

    if filler is not None:
        if missing:
            filler(job, missing, added)
        return
    with StripSource(job, runtime) as strips:
        for piece in missing:
            strips.write(piece, added)
