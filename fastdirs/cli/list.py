"""`fastdirs list`: what is there."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from fastdirs.cli._options import JSON
from fastdirs.errors import MissingDependencyError

if TYPE_CHECKING:
    from fastdirs.zoo import Entry

Row = dict[str, Any]


@click.command("list")
@click.argument("what", type=click.Choice(["generators", "methods", "backends", "formats", "zoo"]))
@JSON
def list_command(what: str, as_json: bool) -> None:
    """Show families, methods, backends, bank formats, or the zoo.

    For backends it says what this machine can run; for the zoo, how generators are got and which were pulled.

    \b
    Example:
      fastdirs list zoo
    """
    from fastdirs.cli._console import show_json

    tables = {"generators": _generators, "methods": _methods, "backends": _backends, "formats": _formats}
    rows = {**tables, "zoo": _zoo}[what]()
    if as_json:
        show_json(rows)
    else:
        _show([{column: str(value) for column, value in row.items() if column != "address"} for row in rows])


def _show(rows: Sequence[dict[str, str]]) -> None:
    """As a table if the window is wide enough for a line each, else a few lines each."""
    from rich.console import Console

    from fastdirs.cli._console import show_table

    window = Console().width
    width = sum(max(len(row[column]) for row in rows) + 2 for column in rows[0])
    if not sys.stdout.isatty() or width <= window:
        show_table(list(rows[0]), [list(row.values()) for row in rows])
        return
    for row in rows:
        click.secho(row.pop("name"), bold=True)
        facts = [
            row.pop("summary"),
            "; ".join(f"{column}: {value}" for column, value in row.items() if value),
        ]
        for fact in filter(None, facts):
            click.echo(click.wrap_text(fact, window, "  ", "    "))


def _generators() -> list[Row]:
    from fastdirs.generators import GENERATORS

    rows = []
    for name in GENERATORS.names():
        try:
            family = GENERATORS.load(name)
            options = "; ".join(f"{key}: {help_text}" for key, help_text in family.options.items())
            rows.append({"name": name, "summary": family.summary, "options": options})
        except MissingDependencyError as error:
            rows.append({"name": name, "summary": str(error), "options": ""})
    return rows


def _methods() -> list[Row]:
    from fastdirs.discovery import METHODS

    rows = []
    for name in METHODS.names():
        try:
            method = METHODS.load(name)
        except MissingDependencyError as error:
            rows.append({"name": name, "summary": str(error), "options": ""})
            continue
        settings: list[Any] = list(fields(method.settings))
        options = "; ".join(f"{f.name}={f.default}: {f.metadata['help']}" for f in settings)
        rows.append({"name": name, "summary": method.summary, "options": options})
    return rows


def _backends() -> list[Row]:
    from fastdirs.backends import BACKENDS

    rows = []
    for name in BACKENDS.names():
        try:
            backend = BACKENDS.load(name)
            rows.append(
                {
                    "name": name,
                    "summary": backend.summary,
                    "here": ", ".join(backend.precisions()) or f"not here: {backend.lacks()}",
                }
            )
        except MissingDependencyError as error:
            rows.append({"name": name, "summary": "", "here": f"not installed: {error}"})
    return rows


def _formats() -> list[Row]:
    from fastdirs.interchange import BANK_FORMATS

    rows = []
    for name in BANK_FORMATS.names():
        plugin = BANK_FORMATS.load(name)
        ways = "import, export" if plugin.write else "import"
        options = "; ".join(f"{key}: {help_text}" for key, help_text in plugin.options.items())
        rows.append({"name": name, "summary": plugin.summary, "ways": ways, "options": options})
    return rows


def _zoo() -> list[Row]:
    from fastdirs.zoo import ZOO, pulled_path

    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            "family": entry.family,
            "resolution": entry.resolution,
            "licence": entry.licence,
            **_way(entry),
            "pulled": "yes" if pulled_path(entry.name).exists() else "no",
        }
        for entry in map(ZOO.load, ZOO.names())
    ]


def _way(entry: "Entry") -> Row:
    """How an entry is got; the whole address is for programs, a table has no room for it."""
    from fastdirs.zoo import Bring, Package

    if isinstance(entry.way, Package):
        return {"how": f"package, {entry.way.size_mib} MiB", "address": ""}
    if isinstance(entry.way, Bring):
        return {"how": f"bring: {urlsplit(entry.way.address).hostname}", "address": entry.way.address}
    return {"how": f"download, {entry.way.size_mib} MiB", "address": entry.way.address}


COMMAND = list_command
