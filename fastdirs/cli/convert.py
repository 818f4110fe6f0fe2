"""`fastdirs convert`: a checkpoint of any known format as safetensors."""

from pathlib import Path

import click

from fastdirs.cli._options import FORCE, JSON, OUT, key_values


@click.command()
@click.argument("source", metavar="CHECKPOINT")
@click.option(
    "--family",
    metavar="NAME",
    help="Family of the checkpoint; recognised from its content if left out.",
)
@click.option(
    "--generator-option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    callback=key_values,
    help="Settle what the checkpoint leaves open; `fastdirs list generators` shows the keys.",
)
@OUT
@FORCE
@JSON
def convert(
    source: str, family: str | None, options: dict[str, str], out: Path, force: bool, as_json: bool
) -> None:
    """Write CHECKPOINT as safetensors, which is safe and quick to load.

    Values are kept bit for bit. The copy holds all settings, so that it needs no options later; its manifest,
    beside it as JSON, says where it came from.

    \b
    Example:
      fastdirs convert generator.pt --out generator.safetensors
    """
    from fastdirs.cli._console import note, show_json
    from fastdirs.loading import convert as convert_checkpoint

    content = convert_checkpoint(source, out, family, options, force)
    identity = content["generator"]
    note(
        f"{identity['name']}: {identity['family']}, {identity['img_resolution']} pixels, "
        f"weights {identity['weights_sha256'][:12]}"
    )
    if content.get("part"):
        note(f"read was its part {content['part']}")
    if content["provenance"]["assumed"]:
        note(f"the file does not say, so assumed: {', '.join(content['provenance']['assumed'])}")
    if as_json:
        show_json({"out": str(out), **content})
    else:
        click.echo(out)


COMMAND = convert
