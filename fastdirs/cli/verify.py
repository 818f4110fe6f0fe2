"""`fastdirs verify`: an artefact against its reference images, on this machine."""

from pathlib import Path

import click

from fastdirs.cli._options import JSON


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@JSON
def verify(artifact: Path, as_json: bool) -> None:
    """Compare ARTIFACT with what torch made of the inputs kept in it.

    Done on every backend and precision of this machine; no checkpoint is needed.

    \b
    Example:
      fastdirs verify artifact
    """
    from fastdirs.artifact import open_artifact
    from fastdirs.cli._console import note, show_json
    from fastdirs.reconstructor_export import (
        is_reconstructor_artifact,
        open_reconstructor_artifact,
        verify_reconstructor,
    )
    from fastdirs.saliency.export import is_segmenter_artifact, open_segmenter_artifact, verify_segmenter
    from fastdirs.verification import verify_artifact

    if is_reconstructor_artifact(artifact):
        rows = verify_reconstructor(open_reconstructor_artifact(artifact), note)
    elif is_segmenter_artifact(artifact):
        rows = verify_segmenter(open_segmenter_artifact(artifact), note)
    else:
        rows = verify_artifact(open_artifact(artifact), note)
    if as_json:
        show_json(rows)
    else:
        accepted = [f"{row['backend']} {row['precision']}" for row in rows if row["accepted"]]
        click.echo(f"{artifact}: verified on {', '.join(accepted)}")


COMMAND = verify
