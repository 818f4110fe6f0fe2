"""`fastdirs pull`: fetch a real generator."""

from pathlib import Path

import click

from fastdirs.cli._options import FORCE, JSON


@click.command()
@click.argument("name")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to write; the cache folder if left out.",
)
@FORCE
@JSON
def pull(name: str, out: Path | None, force: bool, as_json: bool) -> None:
    """Download the zoo generator NAME.

    Its hash is checked, and it is kept as safetensors, with licence and source.

    \b
    Example:
      fastdirs pull digiface-64
    """
    from fastdirs.cli._console import note, show_json
    from fastdirs.download import pull as pull_generator
    from fastdirs.zoo import ZOO

    path = pull_generator(name, force=force, out=out, progress=note)
    if as_json:
        show_json({"name": name, "path": str(path), "licence": ZOO.load(name).licence})
    else:
        click.echo(f"{name}: {path} (licence: {ZOO.load(name).licence})")


COMMAND = pull
