"""Options and arguments that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fastdirs.errors import BankError, OutputError

if TYPE_CHECKING:
    from fastdirs.cluster import RayCluster
    from fastdirs.generators import Generator
    from fastdirs.runtime import Runtime

F = TypeVar("F", bound=Callable[..., Any])

OUT = click.option(
    "--out", metavar="PATH", required=True, type=click.Path(path_type=Path), help="Where to write."
)
PSI = click.option(
    "--psi", metavar="FACTOR", type=float, default=1.0, show_default=True, help="Truncation; 1 = off."
)
CUTOFF = click.option(
    "--cutoff",
    metavar="LAYERS",
    type=click.IntRange(min=0),
    help="Truncate only the first layers. [default: all]",
)
BACKEND = click.option(
    "--backend",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="auto measures what is here and says what it chose.",
)
PRECISION = click.option(
    "--precision", metavar="NAME", help="f32, bf16, f16 or int8; the fastest that is accepted if left out."
)
FORCE = click.option("--force", is_flag=True, help="Replace what an earlier run of this command wrote there.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON to standard output.")


def key_values(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Repeated KEY=VALUE options as a dictionary."""
    pairs = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE.")
        pairs[key] = rest
    return pairs


def factory_name(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """PACKAGE.MODULE:FUNCTION, if given."""
    if value is not None:
        module, _, function = value.partition(":")
        if not module or not function:
            raise click.BadParameter(f"{value!r} is not PACKAGE.MODULE:FUNCTION.")
    return value


def model_options(command: F) -> F:
    """--family, --generator and --generator-option: how MODEL becomes a generator."""
    for option in (
        click.option(
            "--generator-option",
            "options",
            metavar="KEY=VALUE",
            multiple=True,
            callback=key_values,
            help="Settle what a checkpoint leaves open; `fastdirs list generators` shows the keys.",
        ),
        click.option(
            "--generator",
            "factory",
            metavar="PACKAGE.MODULE:FUNCTION",
            callback=factory_name,
            help="Your own code that makes the generator (from MODEL, if it takes a path).",
        ),
        click.option(
            "--family",
            metavar="NAME",
            help="Family of a checkpoint; recognised from its content if left out.",
        ),
    ):
        command = option(command)
    return command


def _cluster_name(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Ray, or ray:ADDRESS, if given."""
    if value is not None:
        name, colon, address = value.partition(":")
        if name != "ray" or (colon and not address):
            raise click.BadParameter(f"{value!r} is no cluster. Expected ray, ray:auto or ray:HOST:PORT.")
    return value


def cluster_options(command: F) -> F:
    """--on and --worker-cores: who does the work."""
    for option in (
        click.option(
            "--worker-cores",
            metavar="COUNT",
            type=click.IntRange(min=1),
            help="Cores of each worker on Ray. [default: all of the smallest machine]",
        ),
        click.option(
            "--on",
            metavar="ray[:ADDRESS]",
            callback=_cluster_name,
            help="Work on a Ray cluster at ADDRESS (auto or HOST:PORT); ray alone starts one here.",
        ),
    ):
        command = option(command)
    return command


def open_cluster(on: str | None, worker_cores: int | None) -> "RayCluster | None":
    """The cluster that the options above name; None for this process.

    Raises:
        click.UsageError: Cores of workers without a cluster.
        FastdirsError: Ray is not installed, or nothing answers there.
    """
    if on is None:
        if worker_cores is not None:
            raise click.UsageError("--worker-cores is an option of --on ray.")
        return None
    from fastdirs.cluster import RayCluster

    return RayCluster(address=on.partition(":")[2] or None, cores=worker_cores)


def load_model(
    model: str | None, family: str | None, factory: str | None, options: dict[str, str]
) -> "Generator":
    """The generator that MODEL and the options above name.

    Raises:
        click.UsageError: Neither a model nor a factory.
    """
    from fastdirs.cli._console import note
    from fastdirs.loading import load_generator

    if model is None:
        if factory is None:
            raise click.UsageError(
                "Missing argument 'MODEL': a zoo name, a checkpoint file, or package.module:function."
            )
        generator = load_generator(factory, family, options)
    else:
        generator = load_generator(model, family, options, factory)
    if generator.provenance.assumed:
        note(
            f"{generator.provenance.name} does not say, so assumed: {', '.join(generator.provenance.assumed)}"
        )
    return generator


def check_bank_out(out: Path, force: bool) -> None:
    """Before the work, not after it: whether there is room for a bank.

    Raises:
        OutputError: There is a file, and `force` is off or it is no bank.
    """
    from fastdirs.directions import load_bank

    if not out.exists():
        return
    if not force:
        raise OutputError(f"{out} exists already. Choose another --out, or pass --force to replace it.")
    try:
        load_bank(out)
    except BankError as error:
        raise OutputError(f"{error} It is left alone, even with --force. Choose another --out.") from error


def show_runtime(runtime: "Runtime") -> None:
    """Say what was opened, why, and how far it is from torch here."""
    from fastdirs.cli._console import note

    details = "; ".join(filter(None, (runtime.provider, runtime.detail)))
    note(f"{runtime.backend} {runtime.precision} ({details}): {runtime.reason}")
    if runtime.parity is not None:
        note(f"error against torch fp32 on this machine: {runtime.parity}")
