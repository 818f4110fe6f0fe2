"""`fastdirs discover`: find directions."""

from pathlib import Path

import click

from fastdirs.cli._options import FORCE, JSON, OUT, key_values, load_model, model_options
from fastdirs.errors import BankError, OutputError


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
@model_options
@OUT
@FORCE
@JSON
def discover(
    model: str | None, method: str, directions: int, layers: str, settings: dict[str, str],
    family: str | None, factory: str | None, options: dict[str, str], out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Find directions in the latent space of MODEL.

    They are written as one safetensors file, a direction bank.

    \b
    Example:
      fastdirs discover toy --method sefa --directions 5 --out bank.safetensors
    """
    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.discovery import METHODS
    from fastdirs.discovery import discover as find
    from fastdirs.latents import parse_indices

    METHODS.load(method)
    _check_out(out, force)
    generator = load_model(model, family, factory, options)
    # None = all that can be edited.
    chosen = None if layers.strip() == "all" else parse_indices(layers, generator.num_layers, "layer")
    with progress_bar() as progress:
        bank = find(
            generator, method, directions, chosen, settings, lambda done, total: progress(method, done, total)
        )
    bank.save(out)
    reach = bank.ranges[:, 1].max()
    note(f"{len(bank)} directions of {generator.provenance.name} by {method}; suggested range ±{reach:.1f}")
    if as_json:
        scores = bank.scores.tolist()
        show_json({"bank": str(out), "method": method, "directions": len(bank), "scores": scores})
    else:
        click.echo(out)


def _check_out(out: Path, force: bool) -> None:
    """Before the work, not after it: whether there is room for the bank."""
    from fastdirs.directions import load_bank

    if not out.exists():
        return
    if not force:
        raise OutputError(f"{out} exists already. Choose another --out, or pass --force to replace it.")
    try:
        load_bank(out)
    except BankError as error:
        raise OutputError(f"{error} It is left alone, even with --force. Choose another --out.") from error


COMMAND = discover
