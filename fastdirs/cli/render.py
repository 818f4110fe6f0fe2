"""`fastdirs render`: plain images of seeds or given latents."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

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

if TYPE_CHECKING:
    from fastdirs.runtime import Runtime
    from fastdirs.samples import Sample


@click.command()
@click.argument("model", required=False, metavar="MODEL|ARTIFACT")
@click.option("--seeds", metavar="LIST", help="Seeds, such as 0-63 or 5,9. [default: 0-15]")
@click.option(
    "--latents",
    metavar="FILE.npz",
    type=click.Path(path_type=Path),
    help="Instead of seeds: a file with latents [images, layers, dim] or z [images, z_dim], and maybe c.",
)
@PSI
@CUTOFF
@click.option(
    "--class",
    "c",
    metavar="LIST",
    help="Class of all images, or classes such as 0,4,7 or 0-9 that they take in turn; or random, by seed.",
)
@BACKEND
@PRECISION
@click.option("--batch", metavar="IMAGES", type=click.IntRange(min=1), help="Images rendered at a time.")
@click.option(
    "--image-format",
    type=click.Choice(["png", "jpg", "webp"]),
    help="Of the files in a folder. [default: png]",
)
@model_options
@OUT
@FORCE
@JSON
def render(
    model: str | None, seeds: str | None, latents: Path | None, psi: float, cutoff: int | None, c: str | None,
    backend: str, precision: str | None, batch: int | None, image_format: str | None, family: str | None,
    factory: str | None, options: dict[str, str], out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Render images of seeds with MODEL or ARTIFACT.

    PATH is a folder for one file per image, a grid of the first ones and a manifest; or FILE.npy for one
    float32 array [images, channels, height, width] that is not clipped.

    \b
    Example:
      fastdirs render artifact --seeds 0-15 --out images
      fastdirs render toy --seeds 0-3 --psi 0.7 --out images.npy
    """
    from fastdirs.artifact import is_artifact, open_artifact
    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.latents import parse_seeds
    from fastdirs.rendering import render as render_images

    if latents is not None and seeds is not None:
        raise click.UsageError("--seeds and --latents exclude each other. Give one of them.")
    if image_format is not None and out.suffix == ".npy":
        raise click.UsageError("--image-format does not apply to an array. Leave it out.")
    chosen = None if latents is not None else parse_seeds(seeds or "0-15")
    classes = _classes(c)

    def opened(runtime: "Runtime", sample: "Sample") -> None:
        show_runtime(runtime)
        note(f"{len(sample)} images")

    known = model is not None and factory is None and is_artifact(Path(model))
    source = open_artifact(str(model)) if known else load_model(model, family, factory, options)
    with progress_bar() as progress:
        content = render_images(
            source, out, chosen, latents, psi=psi, cutoff=cutoff, c=classes,
            image_format=image_format or "png", backend=backend, precision=precision, batch_size=batch,
            force=force, progress=lambda done, total: progress("rendering", done, total), opened=opened,
        )  # fmt: skip
    if as_json:
        show_json({"out": str(out), **content})
    else:
        click.echo(out if out.suffix == ".npy" else out / content["files"][-1])


def _classes(text: str | None) -> "tuple[int, ...] | Literal['random'] | None":
    """Classes of the command line; whether the generator has them is checked with it."""
    from fastdirs.latents import MAX_INDICES, parse_indices

    if text is None or text.strip() == "random":
        return None if text is None else "random"
    if text.strip() == "all":
        raise click.UsageError("--class has no 'all'. Expected a list such as 0,4,7 or 0-9, or random.")
    return parse_indices(text, MAX_INDICES, "class number")


COMMAND = render
