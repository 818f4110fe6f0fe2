"""`fastdirs saliency`: train a saliency model on pairs of images and masks, measure, export and use it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastdirs.cli._options import BACKEND, FORCE, JSON, OUT, PRECISION, key_values

if TYPE_CHECKING:
    from fastdirs.saliency.runtime import SaliencyRuntime

_PRESETS = ("quick", "published", "bgw")
_OUTPUTS = ("masks", "saliency", "cutouts")
_FOLDER = click.Path(path_type=Path)
RECURSIVE = click.option("--recursive", is_flag=True, help="Look into subfolders, too.")


@click.group()
def saliency() -> None:
    """Train, measure, export and use a saliency model.

    \b
    Example:
      fastdirs saliency train pairs --preset quick -o steps=20 -o width=8 --out quick.safetensors
      fastdirs saliency run quick.safetensors images --out cutouts
    """


@saliency.command()
@click.argument("dataset", metavar="DATASET", type=_FOLDER)
@click.option(
    "--preset",
    type=click.Choice(_PRESETS),
    default="quick",
    show_default=True,
    help="Schedules: for CPUs, or as published for BigGAN and BigBiGAN.",
)
@click.option(
    "-o", "--option", "settings", metavar="KEY=VALUE", multiple=True, callback=key_values,
    help="Change a setting of the preset; --settings shows all.",
)  # fmt: skip
@click.option("--settings", "listed", is_flag=True, help="Show the settings in effect, and train nothing.")
@click.option(
    "--folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where checkpoint, log and pictures are kept. [default: OUT without suffix, .run]",
)
@OUT
@FORCE
@JSON
def train(
    dataset: Path, preset: str, settings: dict[str, str], listed: bool, folder: Path | None, out: Path,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train a saliency model on images and masks.

    DATASET is a folder that `fastdirs masks` made. Its images and masks are streamed from its shards. After a
    kill the same command continues. --force replaces a model, and the folder of a run with other settings.
    On several GPUs: torchrun --nproc-per-node 4 -m fastdirs saliency train ...

    \b
    Example:
      fastdirs saliency train pairs --preset quick -o steps=20 -o width=8 --out model.safetensors
    """
    from dataclasses import asdict

    from fastdirs.cli._console import note, progress_bar, show_facts, show_json
    from fastdirs.machine import process_rank
    from fastdirs.mask_dataset import open_mask_dataset
    from fastdirs.saliency.settings import PRESETS, saliency_settings
    from fastdirs.saliency.training import train_saliency

    chosen = saliency_settings(preset, settings)
    opened = open_mask_dataset(dataset)
    if listed:
        resolved = asdict(chosen.resolved(opened))
        if as_json:
            show_json(resolved)
        else:
            show_facts({"preset": PRESETS[preset].source, **resolved})
        return
    folder = folder or out.with_suffix(".run")
    if folder.resolve() == out.resolve():
        raise click.UsageError(f"{out} cannot be the model and the folder of its run. Name another --out.")
    _check_model_out(out, force)
    # Of the processes that torchrun starts, one speaks and writes.
    first = process_rank() == 0
    with progress_bar() as progress:
        trained = train_saliency(
            opened, out, chosen, folder=folder, force=force, report=note if first else lambda line: None,
            progress=(lambda done, total: progress("training", done, total)) if first else lambda d, t: None,
        )  # fmt: skip
    if not first:
        return
    held_out = {name: round(value, 4) for name, value in trained.held_out.items()}
    note(f"on pairs that were never trained on: {', '.join(f'{k} {v:g}' for k, v in held_out.items())}")
    note(f"checkpoint, log and pictures: {folder}")
    if as_json:
        show_json({"model": str(out), "run": str(folder), "steps": trained.steps, "held_out": held_out})
    else:
        click.echo(out)


@saliency.command("eval")
@click.argument("predictions", metavar="MODEL|MAPS", type=_FOLDER)
@click.argument("masks", metavar="MASKS", type=_FOLDER)
@click.option("--images", metavar="DIR", type=_FOLDER, help="The pictures; a model needs them.")
@click.option("--ignore-unpaired", is_flag=True, help="Leave out what has no partner of the same name.")
@click.option("--no-stretch", is_flag=True, help="Do not stretch each map to 0 to 1 first.")
@RECURSIVE
@BACKEND
@PRECISION
@OUT
@FORCE
@JSON
def evaluate(
    predictions: Path, masks: Path, images: Path | None, ignore_unpaired: bool, no_stretch: bool,
    recursive: bool, backend: str, precision: str | None, out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Score a model, or saliency maps, against a folder of masks.

    F-measures (beta² 0.3), MAE, S- and E-measure, IoU and accuracy; as JSON, a page and a sheet of the best
    and worst cases. Files pair by name.

    \b
    Example:
      fastdirs saliency run model.safetensors images --write masks --out found
      fastdirs saliency eval model.safetensors found/masks --images images --ignore-unpaired --out scores
    """
    from fastdirs.cli._console import note, progress_bar, show_json, show_table
    from fastdirs.saliency.evaluation import evaluate_folder, predict_pairs, read_predictions, table
    from fastdirs.saliency.folders import pair_folders
    from fastdirs.saliency.metrics import MetricSettings
    from fastdirs.saliency.report import PAGE_FILE, check_report_folder, write_report
    from fastdirs.saliency.runtime import open_saliency

    settings = MetricSettings(stretch=not no_stretch)
    check_report_folder(out, force)
    runtime = None
    if _is_model(predictions):
        if images is None:
            raise click.UsageError("Missing option '--images': the pictures that the model is to look at.")
        # Before the work, not after it: whether they pair.
        pairs = pair_folders(images, masks, ignore_unpaired=ignore_unpaired, recursive=recursive)
        runtime = open_saliency(predictions, backend, precision)
        _show(runtime)
        given = predict_pairs(runtime, pairs)
        facts = {"Model": str(predictions), "Runtime": f"{runtime.backend} {runtime.precision}"}
    else:
        given = read_predictions(
            predictions, masks, images, ignore_unpaired=ignore_unpaired, recursive=recursive
        )
        facts = {"Maps": str(predictions)}
    try:
        with progress_bar() as progress:
            results = evaluate_folder(
                given, masks, settings, ignore_unpaired=ignore_unpaired, recursive=recursive,
                progress=lambda done, total: progress("images", done, total),
            )  # fmt: skip
    finally:
        if runtime is not None:
            runtime.close()
    write_report(out, results, facts={**facts, "Masks": str(masks)}, force=force)
    if as_json:
        show_json({"folder": str(out), "figures": results.overall})
    else:
        show_table(["figure", "value", "meaning"], [list(row) for row in table(results)])
        note(f"pictures: {out / PAGE_FILE}")


@saliency.command()
@click.argument("model", metavar="MODEL|ARTIFACT", type=_FOLDER)
@click.argument("images", metavar="DIR", type=_FOLDER)
@click.option(
    "--write", metavar="LIST", default="masks,cutouts", show_default=True,
    help=f"What to write: {', '.join(_OUTPUTS)}.",
)  # fmt: skip
@click.option(
    "--threshold", metavar="VALUE", type=click.FloatRange(0, 1, min_open=True), default=0.5,
    show_default=True, help="Saliency from which a pixel is in the mask.",
)  # fmt: skip
@click.option("--hard", is_flag=True, help="Cut out along the mask instead of fading along the saliency.")
@click.option("--skip-unreadable", is_flag=True, help="Go on where a picture cannot be read, and list it.")
@RECURSIVE
@BACKEND
@PRECISION
@OUT
@FORCE
@JSON
def run(
    model: Path, images: Path, write: str, threshold: float, hard: bool, skip_unreadable: bool,
    recursive: bool, backend: str, precision: str | None, out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Find the salient object in every picture of a folder.

    Writes masks, saliency maps, and cut-outs with alpha. Pictures may have any size and format. A run that
    was interrupted continues with the same command.

    \b
    Example:
      fastdirs saliency run model.safetensors images --write masks,cutouts --out objects
    """
    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.saliency.cutouts import run_folder
    from fastdirs.saliency.folder_run import choice_of
    from fastdirs.saliency.runtime import open_saliency

    earlier = None if force else choice_of(out, model)
    size = None
    if earlier is not None:
        # What was measured and chosen for the first part holds for the rest, or the bytes would differ.
        backend = earlier["backend"] if backend == "auto" else backend
        precision, size = precision or earlier["precision"], earlier["batch_size"]
    with open_saliency(model, backend, precision, size) as runtime, progress_bar() as progress:
        _show(runtime)
        done = run_folder(
            runtime, images, out, what=list(filter(None, map(str.strip, write.split(",")))),
            threshold=threshold, hard=hard, recursive=recursive, skip_unreadable=skip_unreadable, force=force,
            progress=lambda done, total: progress("pictures", done, total),
        )  # fmt: skip
    for name, reason in done.skipped.items():
        note(f"left out: {name}: {reason}")
    if as_json:
        show_json({"folder": str(out), "pictures": done.num_pictures, "written": done.num_written,
                   "skipped": done.skipped})  # fmt: skip
    else:
        note(f"{done.num_pictures} pictures, {done.num_written} of them in this run")
        click.echo(out)


@saliency.command()
@click.argument("model", metavar="MODEL", type=_FOLDER)
@click.option("--images", metavar="DIR", type=_FOLDER, help="Pictures to verify with. [default: drawn ones]")
@click.option("--max-batch", metavar="IMAGES", type=click.IntRange(min=1), help="Largest batch to verify.")
@click.option(
    "--to", metavar="NAME", type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx"]), default="onnx",
    show_default=True, help="Build an engine, too.",
)  # fmt: skip
@click.option("--compute-capability", "capabilities", metavar="LIST", help="GPUs to build for, such as 8.9.")
@OUT
@FORCE
@JSON
def export(
    model: Path, images: Path | None, max_batch: int | None, to: str, capabilities: str | None, out: Path,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write MODEL as a verified ONNX graph.

    Its masks are compared with torch's; beyond the tolerance it fails, and nothing is kept.

    \b
    Example:
      fastdirs saliency export model.safetensors --out saliency
    """
    from itertools import islice

    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.recipe import Batch, Engine, usual_batch
    from fastdirs.saliency.export import export_segmenter
    from fastdirs.saliency.folders import iterate_images, read_photo
    from fastdirs.segmenters import load_segmenter

    pictures = [] if images is None else [read_photo(path) for path in islice(iterate_images(images), 8)]
    segmenter, content = load_segmenter(model)
    usual = usual_batch(segmenter.img_resolution)
    largest = max_batch or usual.max
    listed = tuple(part.strip() for part in (capabilities or "").split(",") if part.strip())
    with progress_bar() as progress:
        artifact = export_segmenter(
            segmenter, out, content=content, images=pictures,
            batch=Batch(opt=min(usual.opt, largest), max=largest),
            engine=Engine(to=to, compute_capability=listed), force=force, report=note, progress=progress,
        )  # fmt: skip
    if as_json:
        show_json({"artifact": str(out), **artifact.content})
    else:
        click.echo(out)


def _is_model(path: Path) -> bool:
    """Whether a path is a saliency model, not a folder of maps."""
    from fastdirs.saliency.export import is_segmenter_artifact

    return path.is_file() or is_segmenter_artifact(path)


def _check_model_out(out: Path, force: bool) -> None:
    """Before the work, not after it: whether there is room for a model.

    Raises:
        OutputError: There is a file, and `force` is off or it is no model.
    """
    from fastdirs.errors import OutputError
    from fastdirs.segmenters import is_segmenter

    if out.exists() and not (force and is_segmenter(out)):
        raise OutputError(f"{out} exists already. Choose another --out, or pass --force to replace a model.")


def _show(runtime: "SaliencyRuntime") -> None:
    """Say what was opened, why, and how far it is from torch here."""
    from fastdirs.cli._console import note

    details = "; ".join(filter(None, (runtime.provider, runtime.detail)))
    note(f"{runtime.backend} {runtime.precision} ({details}): {runtime.reason}")
    if runtime.parity is not None:
        note(f"error against torch fp32 on this machine: {runtime.parity}")


COMMAND = saliency
