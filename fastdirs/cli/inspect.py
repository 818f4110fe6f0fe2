"""`fastdirs inspect`: what a file holds."""

from pathlib import Path

import click

from fastdirs.cli._options import JSON


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@JSON
def inspect(file: Path, as_json: bool) -> None:
    """Say what FILE holds.

    A checkpoint, direction bank, reconstructor, ONNX graph, artefact or traversal (a folder), TensorRT
    engine, or recipe.

    \b
    Example:
      fastdirs inspect bank.safetensors
    """
    from fastdirs.cli._console import show_facts, show_json
    from fastdirs.inspection import inspect_file

    facts = inspect_file(file)
    if as_json:
        show_json(facts)
    else:
        show_facts(facts)


COMMAND = inspect
