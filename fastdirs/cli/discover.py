"""`fastdirs discover`: find directions."""

from pathlib import Path

import click

from fastdirs.cli._options import FORCE, JSON, OUT, check_bank_out, key_values, load_model, model_options


@click.command()
@click.argument("model", required=False)
@click.option(
    "--method",
    metavar="NAME",
    default="sefa",
    show_default=True,
    help="Discovery method; see `fastdirs list methods`.",
)
@click.option(
    "--directions",
    metavar="COUNT",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many, best first.",
)
@click.option(
    "--layers", metavar="LIST", default="all", show_default=True, help="Latent layers to edit, such as 6-13."
)
@click.option(
    "-o",
    "--option",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    callback=key_values,
    help="Option of the method.",
)
@click.option(
    "--folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where a training keeps its checkpoint, log and pictures. [default: OUT without suffix, .run]",
)
@model_options
@OUT
@FORCE
@JSON
def discover(
    model: str | None, method: str, directions: int, layers: str, settings: dict[str, str],
    folder: Path | None, family: str | None, factory: str | None, options: dict[str, str], out: Path,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Find directions in the latent space of MODEL.

    They are written as one safetensors file, a direction bank. A method that trains shows its losses and
    strips in DIR (TensorBoard reads it too); after a kill the same command continues there. On several GPUs:
    torchrun --nproc-per-node 4 -m fastdirs discover ...

    \b
    Example:
      fastdirs discover toy --method sefa --directions 5 --out bank.safetensors
      fastdirs discover toy --method voynov -o steps=50 --directions 5 --out learned.safetensors
    """
    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.discovery import METHODS
    from fastdirs.discovery import discover as find
    from fastdirs.latents import parse_indices
    from fastdirs.machine import process_rank

    plugin = METHODS.load(method)
    check_bank_out(out, force)
    if folder is not None and not plugin.trains:
        raise click.UsageError(f"{method} keeps nothing in a folder: it does not train. Leave --folder out.")
    if plugin.trains:
        folder = folder or out.with_suffix(".run")
        if folder.resolve() == out.resolve():
            raise click.UsageError(f"{out} cannot be the bank and the folder of its run. Name another --out.")
    generator = load_model(model, family, factory, options)
    # None = all that can be edited.
    chosen = None if layers.strip() == "all" else parse_indices(layers, generator.num_layers, "layer")
    # Of the processes that torchrun starts, one speaks and writes.
    first = process_rank() == 0
    with progress_bar() as progress:
        bank = find(
            generator, method, directions, chosen, settings,
            (lambda done, total: progress(method, done, total)) if first else (lambda done, total: None),
            folder, note if first else (lambda line: None),
        )  # fmt: skip
    if not first:
        return
    bank.save(out)
    reach = bank.ranges[:, 1].max()
    note(f"{len(bank)} directions of {generator.provenance.name} by {method}; suggested range ±{reach:.1f}")
    if plugin.trains:
        note(f"checkpoint, log, strips and reconstructor: {folder}")
    if as_json:
        found = {"bank": str(out), "method": method, "directions": len(bank), "scores": bank.scores.tolist()}
        show_json({**found, "run": str(folder)} if plugin.trains else found)
    else:
        click.echo(out)


COMMAND = discover
