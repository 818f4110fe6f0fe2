"""`fastdirs bank`: direction banks from and for other programs, and edited."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastdirs.cli._options import FORCE, JSON, OUT, check_bank_out, key_values, load_model, model_options

if TYPE_CHECKING:
    from fastdirs.directions import DirectionBank

BANK = click.argument("bank_file", metavar="BANK", type=click.Path(path_type=Path))
FORMAT = click.option("--format", "format_name", metavar="NAME", help="See `fastdirs list formats`.")


def limits(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float] | None:
    """LOW:HIGH, if given."""
    if value is None:
        return None
    try:
        low, high = map(float, value.split(":"))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not LOW:HIGH, such as -4:6.") from error
    return low, high


@click.group()
def bank() -> None:
    """Import, export, label, merge and select directions.

    \b
    Example:
      fastdirs bank label bank.safetensors --index 0 --name "lighting" --tag light
      fastdirs bank select bank.safetensors --tag light --out light.safetensors
      fastdirs bank export bank.safetensors --out directions.npy
    """


@bank.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("model", required=False)
@click.option(
    "--layers", metavar="LIST", help="Latent layers to edit. [default: those that FILE says, else all]"
)
@FORMAT
@click.option(
    "-o",
    "--option",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    callback=key_values,
    help="Option of the format.",
)
@model_options
@OUT
@FORCE
@JSON
def import_command(
    file: Path, model: str | None, layers: str | None, format_name: str | None, settings: dict[str, str],
    family: str | None, factory: str | None, options: dict[str, str], out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Read directions of MODEL from another program's FILE.

    FILE is a file or the folder of a run, in a format that is recognised from its content: GANSpace,
    GANLatentDiscovery, InterFaceGAN, HiGAN, factor.pt, and others. Nothing in it is run.

    \b
    Example:
      fastdirs bank import directions.npy toy --out imported.safetensors
    """
    from fastdirs.cli._console import note
    from fastdirs.interchange import import_bank
    from fastdirs.latents import parse_indices

    check_bank_out(out, force)
    generator = load_model(model, family, factory, options)
    chosen = None if layers is None else generator.editable
    if layers is not None and layers.strip() != "all":
        chosen = parse_indices(layers, generator.num_layers, "layer")
    made = import_bank(file, generator, chosen, format_name, settings)
    made.save(out)
    kind = "curved" if made.curved else "straight"
    note(f"{len(made)} {kind} directions of {generator.provenance.name} from {file} ({made.method})")
    _report(out, made, as_json)


@bank.command("export")
@BANK
@FORMAT
@click.option(
    "--direction", metavar="INDEX", type=click.IntRange(min=0), help="This one alone. [default: all]"
)
@OUT
@FORCE
@JSON
def export_command(
    bank_file: Path, format_name: str | None, direction: int | None, out: Path, force: bool, as_json: bool
) -> None:
    """Write BANK for another program.

    The ending of --out says the format: .npy (straight directions, [K, layers, dim], or [layers, dim] of one
    --direction), .npz (everything, as plain arrays) or .pt (factor.pt of rosinality/stylegan2-pytorch).

    \b
    Example:
      fastdirs bank export bank.safetensors --out directions.npz
    """
    from fastdirs.bank_editing import select
    from fastdirs.directions import load_bank
    from fastdirs.interchange import export_bank

    whole = load_bank(bank_file)
    chosen = whole if direction is None else select(whole, [direction])
    export_bank(chosen, out, format_name, force)
    _report(out, chosen, as_json)


@bank.command("label")
@BANK
@click.option("--index", metavar="INDEX", type=click.IntRange(min=0), help="The direction.")
@click.option("--name", metavar="TEXT", help="What it does.")
@click.option("--tag", "tags", metavar="WORD", multiple=True, help="A word to find it by; may be repeated.")
@click.option(
    "--range", "reach", metavar="LOW:HIGH", callback=limits, help="Epsilons to suggest, such as -4:6."
)
@click.option("--by", "judge", metavar="PERSON", help="Who looked at it.")
@click.option(
    "--from",
    "names",
    metavar="NAMES.json",
    type=click.Path(path_type=Path),
    help="Names that the page of an atlas downloads, for all directions.",
)
@JSON
def label_command(
    bank_file: Path, index: int | None, name: str | None, tags: tuple[str, ...],
    reach: tuple[float, float] | None, judge: str | None, names: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Say what a direction of BANK does, in the file itself.

    \b
    Example:
      fastdirs bank label bank.safetensors --index 3 --name "smile" --tag face --by Ada --range -4:6
    """
    from fastdirs.bank_editing import label, label_all, read_names
    from fastdirs.directions import load_bank

    one = any(value for value in (name, tags, reach))
    if (names is None) == (index is None) or (names is not None and one):
        raise click.UsageError(
            "Say --index and what that direction does, or --from and nothing else but --by."
        )
    if index is not None and not one and judge is None:
        raise click.UsageError("Say what the direction does: --name, --tag, --range or --by.")
    made = load_bank(bank_file)
    if names is not None:
        made, changed = label_all(made, read_names(names), judge)
    else:
        assert index is not None
        made, changed = label(made, index, name, tags, judge, reach), [index]
    made.save(bank_file)
    _report(bank_file, made, as_json, changed)


@bank.command("rename")
@BANK
@click.argument("old")
@click.argument("new")
@JSON
def rename_command(bank_file: Path, old: str, new: str, as_json: bool) -> None:
    """Call the directions named OLD in BANK NEW, in the file itself.

    \b
    Example:
      fastdirs bank rename bank.safetensors "direction 1" "hair colour"
    """
    from fastdirs.bank_editing import rename
    from fastdirs.directions import load_bank

    made, changed = rename(load_bank(bank_file), old, new)
    made.save(bank_file)
    _report(bank_file, made, as_json, changed)


@bank.command("merge")
@click.argument(
    "bank_files", metavar="BANK BANK...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@OUT
@FORCE
@JSON
def merge_command(bank_files: tuple[Path, ...], out: Path, force: bool, as_json: bool) -> None:
    """Join the directions of several banks of one generator.

    Straight and curved ones may be mixed: all become paths whose shifts stay what they were.

    \b
    Example:
      fastdirs bank merge bank.safetensors light.safetensors --out merged.safetensors
    """
    from fastdirs.bank_editing import merge
    from fastdirs.directions import load_bank

    check_bank_out(out, force)
    made = merge([load_bank(file) for file in bank_files])
    made.save(out)
    _report(out, made, as_json)


@bank.command("select")
@BANK
@click.option("--directions", metavar="LIST", help="Which, such as 0,4,7-9.")
@click.option("--tag", metavar="WORD", help="Those with this tag.")
@click.option(
    "--top", metavar="COUNT", type=click.IntRange(min=1), help="Those with the highest scores, best first."
)
@OUT
@FORCE
@JSON
def select_command(
    bank_file: Path, directions: str | None, tag: str | None, top: int | None,
    out: Path, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Keep some directions of BANK.

    \b
    Example:
      fastdirs bank select bank.safetensors --directions 0,2-3 --out chosen.safetensors
    """
    from fastdirs.bank_editing import best, select, tagged
    from fastdirs.directions import load_bank
    from fastdirs.latents import parse_indices

    if sum(value is not None for value in (directions, tag, top)) != 1:
        raise click.UsageError("Say which directions to keep: one of --directions, --tag and --top.")
    check_bank_out(out, force)
    whole = load_bank(bank_file)
    chosen: Sequence[int]
    if directions is not None:
        chosen = parse_indices(directions, len(whole), "direction")
    elif tag is not None:
        chosen = tagged(whole, tag)
    else:
        chosen = best(whole, top or 0)
    made = select(whole, chosen)
    made.save(out)
    _report(out, made, as_json)


def _report(path: Path, made: "DirectionBank", as_json: bool, changed: Sequence[int] | None = None) -> None:
    """Where the result is, and what it holds."""
    from fastdirs.cli._console import show_json

    if not as_json:
        click.echo(path)
        return
    facts = {"path": str(path), "method": made.method, "directions": len(made), "labels": list(made.labels)}
    show_json(facts if changed is None else {**facts, "changed": list(changed)})


COMMAND = bank
