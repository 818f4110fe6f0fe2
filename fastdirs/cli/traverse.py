"""`fastdirs traverse`: strips, grids, atlas, video."""

from collections.abc import Sequence
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
    cluster_options,
    load_model,
    model_options,
    open_cluster,
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
@click.option(
    "--layers",
    metavar="LIST",
    default="all",
    show_default=True,
    help="Latent layers to edit, such as 6-13. What lies before them is computed once for a seed.",
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
@cluster_options
@BACKEND
@PRECISION
@model_options
@OUT
@FORCE
@JSON
def traverse(
    model: str, bank: str | None, seeds: str, directions: str, epsilons: str, layers: str, psi: float,
    cutoff: int | None, c: int | None, batch: int | None, image_format: str, write: str, on: str | None,
    worker_cores: int | None, backend: str, precision: str | None, family: str | None, factory: str | None,
    options: dict[str, str], out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Render the directions of BANK on MODEL or ARTIFACT.

    Every seed, direction and epsilon. A run that was interrupted continues when the same command is given
    again.

    \b
    Example:
      fastdirs traverse artifact bank.safetensors --seeds 0-3 --epsilons -6:6:9 --batch --out out
    """
    from dataclasses import replace

    from fastdirs.artifact import is_artifact, open_artifact
    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.directions import load_bank
    from fastdirs.gallery import traverse as render
    from fastdirs.latents import parse_epsilons, parse_indices, parse_seeds
    from fastdirs.runtime import Runtime
    from fastdirs.traversal import Portion

    if bank is None and factory is None:
        raise click.UsageError("Missing argument 'BANK': a file made by `fastdirs discover`.")
    chosen_seeds, chosen_epsilons = parse_seeds(seeds), parse_epsilons(epsilons)
    cluster = open_cluster(on, worker_cores)
    # With --generator, MODEL may be left out: the only argument is the bank.
    source, bank_path = (model, bank) if bank is not None else (None, model)
    loaded = load_bank(str(bank_path))
    chosen = parse_indices(directions, len(loaded), "direction")

    num_layers = int(loaded.generator["num_layers"])
    edited = None if layers.strip() == "all" else parse_indices(layers, num_layers, "layer")

    def opened(runtime: Runtime, planned: Sequence[Portion]) -> None:
        show_runtime(runtime)
        plans, stages = [portion.plan for portion in planned], len(runtime.reads)
        shown, rendered = sum(plan.num_images for plan in plans), sum(plan.num_rendered for plan in plans)
        uncut = replace(plans[0], directions=tuple(d for plan in plans for d in plan.directions)).num_rendered
        note(f"{shown} images, {rendered} rendered, in batches of {plans[0].batch_size}")
        needed = sum(portion.evaluations(stages) for portion in planned)
        if needed < uncut * stages:
            cuts = ", ".join(f"{len(p.plan.directions)} from stage {p.stage} on" for p in planned)
            note(
                f"{needed} of {uncut * stages} stage evaluations, {uncut * stages - needed} saved: "
                f"a seed's images share them (directions: {cuts}, of {stages} stages)"
            )

    known = source is not None and factory is None and is_artifact(Path(source))
    opened_source = open_artifact(str(source)) if known else load_model(source, family, factory, options)
    with progress_bar() as progress:
        gallery = render(
            opened_source, loaded, out, chosen_seeds, chosen, chosen_epsilons, layers=edited, psi=psi,
            cutoff=cutoff, c=c, image_format=image_format, backend=backend, precision=precision,
            writers=[name.strip() for name in write.split(",")], batch_size=batch, force=force,
            progress=progress, opened=opened, filler=cluster.write_strips if cluster else None,
        )  # fmt: skip
    page = out / "index.html"
    if as_json:
        show_json({"folder": str(out), **gallery.content})
    else:
        click.echo(page if page.exists() else out)


COMMAND = traverse
