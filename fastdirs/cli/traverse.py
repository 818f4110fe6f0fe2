"""`fastdirs traverse`: strips, grids, atlas, video."""

from pathlib import Path

import click

from fastdirs.cli._options import (
    BACKEND,
    CUTOFF,
    FORCE,
    JSON,
    OUT,
    PRECISION,
    PSI,
    load_model,
    model_options,
    show_runtime,
)
from fastdirs.registry import Registry

_WRITERS: Registry[object] = Registry("fastdirs.writers", "WRITER", "writer")


def _batch(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A number, 0 for `--batch` alone, None if not given."""
    if value is None:
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is not a number of images.")
    return int(value)


@click.command()
@click.argument("model", metavar="MODEL|ARTIFACT")
@click.argument("bank", required=False)
@click.option("--seeds", metavar="LIST", default="0-7", show_default=True, help="Seeds, such as 0-63 or 5,9.")
@click.option(
    "--directions",
    metavar="LIST",
    default="all",
    show_default=True,
    help="Directions of the bank, such as 0-4,7.",
)
@click.option(
    "--epsilons",
    metavar="FIRST:LAST:COUNT",
    default="-6:6:9",
    show_default=True,
    help="Signed lengths of the shift; or a list, -3,0,3.",
)
@PSI
@CUTOFF
@click.option(
    "--class",
    "c",
    metavar="INDEX",
    type=click.IntRange(min=0),
    help="Class of all images, if it has classes.",
)
@click.option(
    "--batch",
    metavar="[IMAGES]",
    is_flag=False,
    flag_value="0",
    callback=_batch,
    help="Images rendered at a time; --batch alone measures which size is best here.",
)
@click.option(
    "--image-format",
    type=click.Choice(["jpg", "png", "webp"]),
    default="jpg",
    show_default=True,
    help="Of strips and grids.",
)
@click.option(
    "--write",
    metavar="LIST",
    default="strips,atlas",
    show_default=True,
    help=f"What to write: {', '.join(_WRITERS.names())}.",
)
@BACKEND
@PRECISION
@model_options
@OUT
@FORCE
@JSON
def traverse(
    model: str, bank: str | None, seeds: str, directions: str, epsilons: str, psi: float, cutoff: int | None,
    c: int | None, batch: int | None, image_format: str, write: str, backend: str, precision: str | None,
    family: str | None, factory: str | None, options: dict[str, str], out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Render the directions of BANK on MODEL or ARTIFACT.

    Every seed, direction and epsilon. A run that was interrupted continues when the same command is given
    again.

    \b
    Example:
      fastdirs traverse artifact bank.safetensors --seeds 0-3 --epsilons -6:6:9 --batch --out out
    """
    from fastdirs.artifact import is_artifact, open_artifact
    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.directions import load_bank
    from fastdirs.gallery import traverse as render
    from fastdirs.latents import parse_epsilons, parse_indices, parse_seeds
    from fastdirs.runtime import Runtime
    from fastdirs.traversal import Plan

    if bank is None and factory is None:
        raise click.UsageError("Missing argument 'BANK': a file made by `fastdirs discover`.")
    chosen_seeds, chosen_epsilons = parse_seeds(seeds), parse_epsilons(epsilons)
    # With --generator, MODEL may be left out: the only argument is the bank.
    source, bank_path = (model, bank) if bank is not None else (None, model)
    loaded = load_bank(str(bank_path))
    chosen = parse_indices(directions, len(loaded), "direction")

    def opened(runtime: Runtime, plan: Plan) -> None:
        show_runtime(runtime)
        note(f"{plan.num_images} images, {plan.num_rendered} rendered, in batches of {plan.batch_size}")

    known = source is not None and factory is None and is_artifact(Path(source))
    opened_source = open_artifact(str(source)) if known else load_model(source, family, factory, options)
    with progress_bar() as progress:
        gallery = render(
            opened_source, loaded, out, chosen_seeds, chosen, chosen_epsilons, psi=psi, cutoff=cutoff, c=c,
            image_format=image_format, writers=[name.strip() for name in write.split(",")], backend=backend,
            precision=precision, batch_size=batch, force=force, progress=progress, opened=opened,
        )  # fmt: skip
    page = out / "index.html"
    if as_json:
        show_json({"folder": str(out), **gallery.content})
    else:
        click.echo(page if page.exists() else out)


COMMAND = traverse
