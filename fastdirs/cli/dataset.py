"""`fastdirs dataset`: what a folder of images and masks holds, and whether it is what was written."""

from pathlib import Path

import click

from fastdirs.cli._options import JSON


@click.group()
def dataset() -> None:
    """Check a dataset that `fastdirs masks` made.

    \b
    Example:
      fastdirs dataset check pairs
    """


@dataset.command("check")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@JSON
def check(folder: Path, as_json: bool) -> None:
    """Compare every shard in DIR with the hash that was written for it.

    \b
    Example:
      fastdirs dataset check pairs
    """
    from fastdirs.cli._console import progress_bar, show_json
    from fastdirs.mask_dataset import open_mask_dataset

    opened = open_mask_dataset(folder, unfinished=True)
    complete = bool(opened.content["complete"])
    with progress_bar() as progress:
        opened.check(lambda done, total: progress("shards", done, total))
    if as_json:
        show_json({"folder": str(folder), "shards": len(opened.shards), "pairs": len(opened), "intact": True,
                   "complete": complete})  # fmt: skip
    else:
        wanted = "" if complete else f"; unfinished, {opened.content['count']:,} were asked for"
        click.echo(
            f"{len(opened):,} pairs in {len(opened.shards):,} shards, all as they were written{wanted}"
        )


COMMAND = dataset
