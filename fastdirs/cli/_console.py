"""Printing: results to standard output, everything else to standard error."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 240
CONSOLE = Console(stderr=True, highlight=False, soft_wrap=True)


def note(message: str) -> None:
    """A line about what is going on."""
    CONSOLE.print(Text(message))


def show_json(value: object) -> None:
    """A machine-readable result."""
    click.echo(json.dumps(value, indent=2))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A result as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    # In a pipe or a file there is no window whose width would have to be kept.
    Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def show_facts(facts: Mapping[str, object], indent: int = 0) -> None:
    """A result as nested lines of name and value."""
    for name, value in facts.items():
        lead = "  " * indent + str(name)
        if isinstance(value, Mapping):
            click.echo(f"{lead}:")
            show_facts(value, indent + 1)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            click.echo(f"{lead}:")
            for item in value:
                click.echo("  " * (indent + 1) + ", ".join(f"{k} {v}" for k, v in item.items()))
        elif isinstance(value, list | tuple):
            click.echo(f"{lead}: {', '.join(map(str, value))}")
        else:
            click.echo(f"{lead}: {value}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar with rate and time left on standard error; yields what moves it: (phase, done, total)."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=CONSOLE,
    )
    tasks: dict[str, TaskID] = {}

    def move(phase: str, done: int, total: int) -> None:
        if phase not in tasks:
            # Not before there is something to show: an error met earlier stands alone.
            bar.start()
            tasks[phase] = bar.add_task(phase, total=total)
        bar.update(tasks[phase], completed=done, total=total)

    try:
        yield move
    finally:
        if tasks:
            bar.stop()
