"""`fastdirs masks`: pairs of images and masks along a background direction, or which direction is one."""

from pathlib import Path
from typing import Any

import click

from fastdirs.cli._options import (
    BACKEND,
    CUTOFF,
    FORCE,
    JSON,
    OUT,
    PRECISION,
    PSI,
    cluster_options,
    load_model,
    model_options,
    open_cluster,
    show_runtime,
)
from fastdirs.registry import Registry

_RULES: Registry[object] = Registry("fastdirs.mask_rules", "RULE", "mask rule")
_PRESETS = ("published", "bgw")
_MOST = 10**12


def _range(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float] | None:
    """LOW:HIGH, if given."""
    if value is None:
        return None
    try:
        low, high = map(float, value.split(":"))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not LOW:HIGH, such as 0.05:0.5.") from error
    return low, high


def _classes(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """One index, several with commas, "random", or None."""
    if value is None or value == "random":
        return value
    parts = value.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is no class. Expected an index, several such as 3,8, or random.")
    return int(value) if len(parts) == 1 else tuple(map(int, parts))


@click.command()
@click.argument("model", metavar="MODEL|ARTIFACT")
@click.argument("bank", required=False)
@click.option(
    "--direction", metavar="INDEX", type=click.IntRange(min=0), help="The one that removes backgrounds."
)
@click.option("--epsilon", metavar="LENGTH", type=float, help="Signed length of the shift.")
@click.option(
    "--count",
    metavar="PAIRS",
    type=click.IntRange(1, _MOST),
    default=10_000,
    show_default=True,
    help="Pairs to make.",
)
@click.option("--rule", metavar="NAME", help=f"How a mask is read off: {', '.join(_RULES.names())}.")
@click.option("--threshold", metavar="VALUE", type=float, help="Of the rule. [default: the usual one]")
@click.option("--preset", type=click.Choice(_PRESETS), help="Published settings, which other options change.")
@click.option("--find", is_flag=True, help="Rank the directions of BANK as background removers instead.")
@click.option(
    "--area",
    metavar="LOW:HIGH",
    callback=_range,
    help="Share of the image that a mask covers. [default: 0.05:0.5]",
)
@click.option(
    "--peaks", metavar="COUNT", type=int, help="Peaks in the shifted image's histogram. [default: any]"
)
@click.option(
    "--component",
    metavar="SHARE",
    type=float,
    help="Drop connected parts that are not larger than this share of the largest. [default: none]",
)
@click.option("--refine", is_flag=True, help="Lead masks to the edges of the picture (GrabCut).")
@click.option(
    "--agreement",
    metavar="SHARE",
    type=float,
    help="Keep refined masks that agree with the unrefined ones by more, as IoU. [default: 0]",
)
@click.option(
    "--class",
    "classes",
    metavar="INDEX",
    callback=_classes,
    help="Class of the images: one, several such as 3,8, or random, if it has classes.",
)
@PSI
@CUTOFF
@click.option(
    "--first-seed",
    metavar="SEED",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seeds from here on are tried, up to 100 for each pair.",
)
@click.option(
    "--per-shard", metavar="PAIRS", type=int, help="Pairs in a shard. [default: 1000, fewer above 128 px]"
)
@click.option(
    "--image-format",
    type=click.Choice(["jpg", "png", "webp"]),
    default="jpg",
    show_default=True,
    help="Of the images; masks are PNG.",
)
@click.option("--batch", metavar="PAIRS", type=int, help="Pairs rendered at a time.")
@cluster_options
@BACKEND
@PRECISION
@model_options
@OUT
@FORCE
@JSON
def masks(
    model: str, bank: str | None, direction: int | None, epsilon: float | None, count: int, rule: str | None,
    threshold: float | None, preset: str | None, find: bool, area: tuple[float, float] | None,
    peaks: int | None, component: float | None, refine: bool, agreement: float | None, classes: Any,
    psi: float, cutoff: int | None,
    first_seed: int, per_shard: int | None, image_format: str, batch: int | None, on: str | None,
    worker_cores: int | None, backend: str, precision: str | None, family: str | None, factory: str | None,
    options: dict[str, str], out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make pairs of images and masks along a background direction.

    One direction of BANK has to treat object and background differently. The pairs are WebDataset shards in
    a folder, with a page that shows the first ones. A run that was interrupted continues when the same
    command is given again. With --find, a ranking of all directions instead.

    \b
    Example:
      fastdirs masks artifact bank.safetensors --find --out ranking
      fastdirs masks artifact bank.safetensors --direction 4 --epsilon 4 --rule mean --count 200 --out pairs
    """
    from fastdirs.artifact import is_artifact, open_artifact
    from fastdirs.cli._console import note, progress_bar, show_json
    from fastdirs.directions import load_bank
    from fastdirs.mask_page import PAGE_FILE
    from fastdirs.mask_pairs import PairSource
    from fastdirs.mask_settings import PRESETS, MaskSettings, filters_of
    from fastdirs.masks import make_masks
    from fastdirs.runtime import Runtime

    if bank is None and factory is None:
        raise click.UsageError("Missing argument 'BANK': a file made by `fastdirs discover`.")
    # With --generator, MODEL may be left out: the only argument is the bank.
    source, bank_path = (model, bank) if bank is not None else (None, model)
    cluster = open_cluster(on, worker_cores)
    loaded = load_bank(str(bank_path))
    known = source is not None and factory is None and is_artifact(Path(source))

    given = {
        "direction": direction,
        "epsilon": epsilon,
        "rule": rule,
        "threshold": threshold,
        "classes": classes,
    }
    opened_source = open_artifact(str(source)) if known else load_model(source, family, factory, options)
    published = dict(PRESETS[preset].values) if preset else {}
    if not int(opened_source.identity().get("c_dim", 0)):
        # What was published for a generator with classes serves one without.
        published.pop("classes", None)
    low, high = area or (None, None)
    filters = filters_of(
        published, min_area=low, max_area=high, min_peaks=peaks, min_component=component,
        min_agreement=agreement,
    )  # fmt: skip
    values = {
        **published, **{name: value for name, value in given.items() if value is not None},
        "filters": filters, "refine": refine, "psi": psi, "cutoff": cutoff,
    }  # fmt: skip
    if find:
        unused = {
            "--direction": direction, "--threshold": threshold, "--peaks": peaks, "--component": component,
            "--refine": refine, "--agreement": agreement, "--batch": batch, "--per-shard": per_shard,
            "--on": on,
        }  # fmt: skip
        clash = [name for name, value in unused.items() if value]
        if clash:
            raise click.UsageError(f"A ranking does not look at {', '.join(clash)}. Leave it out.")
        again = {
            "--class": classes, "--psi": None if psi == 1 else psi, "--cutoff": cutoff, "--family": family,
            "--generator": factory, "--backend": None if backend == "auto" else backend,
            "--precision": precision,
        }  # fmt: skip
        command = ["fastdirs", "masks", model, *([bank] if bank else [])]
        command += [str(part) for name, value in again.items() if value is not None for part in (name, value)]
        for key, value in options.items():
            command += ["--generator-option", f"{key}={value}"]
        _rank(opened_source, loaded, values, out, command, backend, precision, force, as_json)
        return
    missing = [name for name in ("direction", "epsilon") if name not in values]
    if missing:
        raise click.UsageError(
            f"Missing option '--{missing[0]}'. Rank the directions first: the same command with --find."
        )
    settings = MaskSettings(**values)

    def opened(runtime: Runtime, pairs: PairSource) -> None:
        show_runtime(runtime)
        note(f"{count:,} pairs, {pairs.batch_size} rendered at a time, rule {settings.rule}")

    with progress_bar() as progress:
        dataset = make_masks(
            opened_source, loaded, out, settings, count, first_seed=first_seed, per_shard=per_shard,
            image_format=image_format, backend=backend, precision=precision, batch_size=batch, force=force,
            progress=progress, opened=opened, filler=cluster.fill_shards if cluster else None,
        )  # fmt: skip
    content = dataset.content
    rejected = ", ".join(f"{number:,} {reason}" for reason, number in content["rejected"].items())
    note(
        f"{content['acceptance']:.1%} of {content['tried']:,} candidates make a pair; "
        f"rejected: {rejected or 'none'}"
    )
    if as_json:
        show_json({"folder": str(out), **content})
    else:
        click.echo(out / PAGE_FILE)


def _rank(
    source: Any, bank: Any, values: dict[str, Any], out: Path, command: list[str], backend: str,
    precision: str | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Rank all directions, show the page, and say how to go on with the best one."""
    import shlex

    from fastdirs.cli._console import note, progress_bar, show_json, show_table
    from fastdirs.manifest import check_replaceable
    from fastdirs.mask_scores import KIND, PAGE_FILE, RANKING_FILE, rank_removers, save_ranking
    from fastdirs.runtime import open_runtime

    classes = values.get("classes")
    if isinstance(classes, tuple) or classes == "random":
        raise click.UsageError("A ranking looks at one class. Name it with --class.")
    epsilon, rule = values.get("epsilon"), values.get("rule")
    # Before the work, not after it.
    check_replaceable(out, RANKING_FILE, KIND, force)
    with open_runtime(source, backend, precision, streaming=True) as runtime, progress_bar() as progress:
        show_runtime(runtime)
        ranking = rank_removers(
            runtime, bank, epsilon=epsilon, rules=None if rule is None else [rule],
            filters=values["filters"], psi=values["psi"], cutoff=values["cutoff"], c=classes,
            progress=lambda done, total: progress("directions", done, total),
        )  # fmt: skip
    best, filters = ranking.removers[0], values["filters"]
    command += ["--direction", str(best.direction), "--epsilon", f"{best.epsilon:g}", "--rule", best.rule]
    command += ["--area", f"{filters.min_area:g}:{filters.max_area:g}", "--out", "PAIRS"]
    line = shlex.join(command)
    save_ranking(ranking, out, line, force)
    if as_json:
        removers = [vars(remover) for remover in ranking.removers]
        show_json({"folder": str(out), "command": line, "removers": removers})
        return
    figures = ("score", "separation", "polarity", "stability", "area")
    rows = [
        [
            str(r.direction), r.label, f"{r.epsilon:+g}", r.rule, f"{r.score:.3f}", f"{r.separation:.2f}",
            f"{r.polarity:.2f}", f"{r.stability:.2f}", f"{r.area:.2f}",
        ]
        for r in ranking.removers[:10]
    ]  # fmt: skip
    show_table(["direction", "label", "epsilon", "rule", *figures], rows)
    note(f"pictures: {out / PAGE_FILE}")
    note(f"go on with: {line}")


COMMAND = masks
