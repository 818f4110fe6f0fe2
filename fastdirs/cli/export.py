"""`fastdirs export`: a verified compiled graph."""

from pathlib import Path

import click

from fastdirs.cli._options import FORCE, JSON, OUT, load_model, model_options


@click.command()
@click.argument("model", required=False, metavar="MODEL|RECIPE|RECONSTRUCTOR")
@click.option(
    "--lowering", metavar="FORM", help="plain, folded, subpixel, or auto (default) for the fastest here."
)
@click.option(
    "--max-batch",
    metavar="IMAGES",
    type=click.IntRange(min=1),
    help="Largest batch to verify. [default: by image size, such as 128 at 64 pixels and 4 at 1024]",
)
@click.option(
    "--precision",
    "precisions",
    metavar="LIST",
    help="Graphs to write beside the float32 one, which OpenVINO runs in bf16 as well: f16, bf16, int8.",
)
@click.option(
    "--to", type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx"]), help="Build engines of the graphs, too."
)
@click.option(
    "--compute-capability",
    "capabilities",
    metavar="LIST",
    help="GPUs to build engines for, such as 8.6,8.9,12.0. [default: the one here; else all]",
)
@model_options
@OUT
@FORCE
@JSON
def export(
    model: str | None, lowering: str | None, max_batch: int | None, precisions: str | None, to: str | None,
    capabilities: str | None, family: str | None, factory: str | None, options: dict[str, str], out: Path,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Export MODEL to ONNX or TensorRT, and verify it against torch.

    RECIPE is a .toml file that describes an export. RECONSTRUCTOR is the file in which a discovery method
    keeps the network that tells its directions apart, or the folder of its run. Verified at batch 1, 2 and
    the largest; beyond the tolerance the export fails and leaves nothing but a picture of the worst image.

    \b
    Example:
      fastdirs export toy --out artifact
      fastdirs export toy --to tensorrt-rtx --compute-capability 8.6,8.9,12.0 --out engines
    """
    from fastdirs.artifact import Artifact
    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.export import export_generator, export_recipe
    from fastdirs.recipe import Batch, Engine, Graph, Recipe, load_recipe, usual_accept, usual_batch
    from fastdirs.reconstructor_export import ReconstructorArtifact, export_reconstructor
    from fastdirs.reconstructor_runtime import is_run, reconstructor_of_run
    from fastdirs.reconstructors import is_reconstructor, load_reconstructor
    from fastdirs.segmenters import is_segmenter

    given = {
        "--lowering": lowering,
        "--family": family,
        "--generator": factory,
        "--generator-option": options,
        "--max-batch": max_batch,
        "--precision": precisions,
        "--to": to,
        "--compute-capability": capabilities,
    }
    clash = [name for name, value in given.items() if value]
    if model is not None and is_run(Path(model)):
        model = str(reconstructor_of_run(Path(model)))
    if model is not None and is_segmenter(Path(model)):
        raise click.UsageError(f"{model} is a saliency model: fastdirs saliency export {model} --out {out}")
    engine = Engine(to=to or "onnx", compute_capability=_items(capabilities))
    artifact: Artifact | ReconstructorArtifact
    if model is not None and model.endswith(".toml"):
        if clash:
            raise click.UsageError(
                f"A recipe says everything itself: leave out {', '.join(clash)}, or edit the recipe."
            )
        with progress_bar() as progress:
            recipe = load_recipe(Path(model))
            artifact = export_recipe(recipe, Path(model).parent, out, force, note, progress)
    elif model is not None and is_reconstructor(Path(model)):
        foreign = [name for name in clash if name not in ("--max-batch", "--to", "--compute-capability")]
        if foreign:
            raise click.UsageError(
                f"{model} is a reconstructor, not a generator: leave out {', '.join(foreign)}."
            )
        reconstructor, content = load_reconstructor(model)
        with progress_bar() as progress:
            artifact = export_reconstructor(
                reconstructor, content, out, force, note, max_batch, engine, progress
            )
    else:
        generator = load_model(model, family, factory, options)
        usual = usual_batch(generator.img_resolution)
        largest = max_batch or usual.max
        graphs = ("f32", *(name for name in _items(precisions) if name != "f32"))
        recipe = Recipe(
            generator=generator.provenance.name,
            graph=Graph(lowering=lowering or "auto", precisions=graphs), accept=usual_accept(graphs),
            batch=Batch(opt=min(usual.opt, largest), max=largest),
            engine=engine,
        )  # fmt: skip
        with progress_bar() as progress:
            artifact = export_generator(generator, out, recipe, force, note, progress)
    if as_json:
        show_json({"artifact": str(out), **artifact.content})
    else:
        click.echo(out)


def _items(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.strip() for item in (text or "").split(",") if item.strip()))


COMMAND = export
