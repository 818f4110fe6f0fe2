"""`fastdirs bench`: every backend and precision of this machine."""

import click

from fastdirs.cli._options import JSON, load_model, model_options


@click.command()
@click.argument("model", required=False)
@click.option(
    "--batch",
    metavar="IMAGES",
    type=click.IntRange(min=1),
    help="Images in a batch. [default: by image size, such as 64 at 64 pixels and 2 at 1024]",
)
@click.option(
    "--rounds",
    metavar="COUNT",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="Timings of each candidate.",
)
@click.option(
    "--precision",
    "graphs",
    metavar="LIST",
    default="f32",
    show_default=True,
    help="Graphs to measure: f32 (which OpenVINO runs in bf16 as well), f16, bf16, int8.",
)
@click.option(
    "--compile", "compiled", is_flag=True, help="Measure torch.compile, too: it takes a minute or more."
)
@model_options
@JSON
def bench(
    model: str | None,
    batch: int | None,
    rounds: int,
    graphs: str,
    compiled: bool,
    family: str | None,
    factory: str | None,
    options: dict[str, str],
    as_json: bool,
) -> None:
    """Measure MODEL on every backend and precision here.

    Images per second, latency of a single image, error against torch, memory. A conditional model is measured
    on various classes.

    \b
    Example:
      fastdirs bench toy --batch 8 --rounds 3
    """
    from dataclasses import asdict

    from fastdirs.bench import bench as measure
    from fastdirs.bench import conditions
    from fastdirs.cli._console import note, progress_bar, show_json, show_table
    from fastdirs.recipe import usual_batch

    generator = load_model(model, family, factory, options)
    batch = batch or usual_batch(generator.img_resolution).opt
    with progress_bar() as progress:
        named = [name.strip() for name in graphs.split(",") if name.strip()]
        rows = measure(
            generator, batch, rounds, named, compiled, lambda done, total: progress("timing", done, total)
        )
    if as_json:
        show_json({**conditions(generator, batch), "rows": [asdict(row) for row in rows]})
        return
    machine = conditions(generator, batch)["machine"]
    note(
        f"{generator.provenance.name}, batch {batch}, {machine['cores']} cores of {machine['processor']}, "
        f"bf16 unit: {machine['bf16_unit'] or 'none'}"
    )
    columns = [
        "backend", "precision", "images/s", "batch ms", "one image ms", "error (mean, max grey levels)",
        "added MiB", "provider",
    ]  # fmt: skip
    cells = []
    for row in rows:
        if row.batch_ms is None or row.latency_ms is None or row.parity is None:
            cells.append([row.backend, row.precision, "not measured", "", "", "", "", row.failure or ""])
            continue
        cells.append([
            row.backend, row.precision, f"{row.images_per_second:,.0f}",
            f"{row.batch_ms.median_ms:.1f} ({row.batch_ms.low_ms:.1f}-{row.batch_ms.high_ms:.1f})",
            f"{row.latency_ms.median_ms:.2f}", f"{row.parity.mean:.2g}, {row.parity.max:.2g}",
            f"{row.memory_mib:.0f}", row.provider,
        ])  # fmt: skip
    show_table(columns, cells)


COMMAND = bench
