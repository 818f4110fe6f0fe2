"""`fastdirs pull`: fetch a real generator, or take in one that was fetched by hand."""

from pathlib import Path

import click

from fastdirs.cli._options import FORCE, JSON

_MIB = 2**20


@click.command()
@click.argument("name")
@click.option(
    "--from",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The file that the zoo describes, fetched by you; its hash is checked where it is known.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to write; the cache folder if left out.",
)
@FORCE
@JSON
def pull(name: str, file: Path | None, out: Path | None, force: bool, as_json: bool) -> None:
    """Download the zoo generator NAME.

    Its hash is checked, and it is kept as safetensors, with licence and source. A download that breaks off
    continues when the same command is given again. Where `fastdirs list zoo` says "bring", the file has to be
    downloaded by hand and passed as --from FILE.

    \b
    Example:
      fastdirs pull digiface-64
    """
    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.download import pull as pull_generator
    from fastdirs.zoo import ZOO

    with progress_bar() as move:

        def advance(done: int, total: int) -> None:
            move("MiB", done // _MIB, -(-total // _MIB))

        path = pull_generator(name, force=force, out=out, progress=note, file=file, advance=advance)
    if as_json:
        show_json({"name": name, "path": str(path), "licence": ZOO.load(name).licence})
    else:
        click.echo(f"{name}: {path} (licence: {ZOO.load(name).licence})")


COMMAND = pull
