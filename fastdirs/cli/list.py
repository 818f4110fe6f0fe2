"""`fastdirs list`: what is there."""

from dataclasses import fields
from typing import Any

import click

from fastdirs.cli._options import JSON
from fastdirs.errors import MissingDependencyError


@click.command("list")
@click.argument("what", type=click.Choice(["generators", "methods", "backends", "zoo"]))
@JSON
def list_command(what: str, as_json: bool) -> None:
    """Show generator families, methods, backends, or the zoo.

    For backends it says what this machine can run; for the zoo, which generators were pulled.

    \b
    Example:
      fastdirs list zoo
    """
    from fastdirs.cli._console import show_json, show_table

    rows = {"generators": _generators, "methods": _methods, "backends": _backends, "zoo": _zoo}[what]()
    if as_json:
        show_json(rows)
    else:
        show_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])


def _generators() -> list[dict[str, str]]:
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


def _methods() -> list[dict[str, str]]:
    from fastdirs.discovery import METHODS

    rows = []
    for name in METHODS.names():
        method = METHODS.load(name)
        settings: list[Any] = list(fields(method.settings))
        options = "; ".join(f"{f.name}={f.default}: {f.metadata['help']}" for f in settings)
        rows.append({"name": name, "summary": method.summary, "options": options})
    return rows


def _backends() -> list[dict[str, str]]:
    from fastdirs.backends import BACKENDS

    rows = []
    for name in BACKENDS.names():
        try:
            backend = BACKENDS.load(name)
            rows.append({"name": name, "summary": backend.summary, "here": ", ".join(backend.precisions())})
        except MissingDependencyError as error:
            rows.append({"name": name, "summary": "", "here": f"not installed: {error}"})
    return rows


def _zoo() -> list[dict[str, str]]:
    from fastdirs.zoo import ZOO, pulled_path

    entries = [ZOO.load(name) for name in ZOO.names()]
    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            "licence": entry.licence,
            "download": f"{entry.package.size_mib} MiB",
            "pulled": "yes" if pulled_path(entry.name).exists() else "no",
        }
        for entry in entries
    ]


COMMAND = list_command
