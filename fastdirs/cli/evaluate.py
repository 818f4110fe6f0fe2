"""`fastdirs evaluate`: how good each direction of a bank is."""

from pathlib import Path

import click

from fastdirs.cli._options import (
    BACKEND,
    FORCE,
    JSON,
    OUT,
    PRECISION,
    load_model,
    model_options,
    show_runtime,
)

_HIGHEST = 1_000_000


@click.command()
@click.argument("bank")
@click.argument("source", metavar="MODEL|ARTIFACT", required=False)
@click.option(
    "--reconstructor",
    metavar="PATH",
    help="File of the run that found the bank, or its exported folder. [default: one is trained]",
)
@click.option(
    "--real",
    metavar="PATH",
    help="Real pictures, for DVN: an npz file with x, uint8, or a folder. [default: DVN is not measured]",
)
@click.option(
    "--seeds",
    metavar="COUNT",
    type=click.IntRange(2, _HIGHEST),
    default=16,
    show_default=True,
    help="Strips of each direction that scores are taken over.",
)
@click.option(
    "--batches",
    metavar="COUNT",
    type=click.IntRange(1, _HIGHEST),
    default=100,
    show_default=True,
    help="Batches of 32 image pairs that the reconstructor is judged on.",
)
@click.option(
    "--steps",
    metavar="COUNT",
    type=click.IntRange(0, _HIGHEST),
    default=2000,
    show_default=True,
    help="Training steps of a reconstructor, if none is given; 0 leaves out what needs one.",
)
@BACKEND
@PRECISION
@model_options
@OUT
@FORCE
@JSON
def evaluate(
    bank: str, source: str | None, reconstructor: str | None, real: str | None, seeds: int, batches: int,
    steps: int, backend: str, precision: str | None, family: str | None, factory: str | None,
    options: dict[str, str], out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure how good each direction of BANK is.

    RCA and confusions, scores for each direction, DVN; as JSON, and as a page with strips sorted by score.
    Without --reconstructor, one is trained on the directions as they are.

    \b
    Example:
      fastdirs evaluate bank.safetensors toy --steps 100 --batches 10 --out report
    """
    from fastdirs.artifact import is_artifact, open_artifact
    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.directions import load_bank
    from fastdirs.evaluation import EvaluationSettings
    from fastdirs.evaluation.report import PAGE_FILE, report

    loaded = load_bank(bank)
    settings = EvaluationSettings(seeds, batches, steps, backend, precision)
    known = source is not None and factory is None and is_artifact(Path(source))
    opened_source = open_artifact(str(source)) if known else load_model(source, family, factory, options)
    with progress_bar() as progress:
        evaluation = report(
            opened_source,
            loaded,
            out,
            settings,
            reconstructor=reconstructor,
            real=real,
            force=force,
            progress=progress,
            opened=show_runtime,
        )
    content = evaluation.content
    if content["rca"] is not None:
        low, high = content["rca"]["interval"]
        note(f"RCA {content['rca']['accuracy']:.3f} (95%: {low:.3f} to {high:.3f}) on held-out seeds")
    if as_json:
        show_json({"folder": str(out), **content})
    else:
        click.echo(out / PAGE_FILE)


COMMAND = evaluate
