"""The command line: one file per command; each parses, calls one library function, and prints."""

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from fastdirs import __version__
from fastdirs.errors import FastdirsError
from fastdirs.registry import Registry, unknown_name

_INTERRUPTED = "Interrupted. Nothing half-written was kept; traversals continue with the same command."
COMMANDS: Registry[click.Command] = Registry("fastdirs.cli", "COMMAND", "command")


class _Group(click.Group):
    """Finds commands in the folder; the one place that turns fastdirs errors into a line and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return COMMANDS.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return COMMANDS.load(cmd_name) if cmd_name in COMMANDS.names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS.names():
            ctx.fail(str(unknown_name("command", args[0], COMMANDS.names())))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _interrupts() as interrupts:
            try:
                return super().invoke(ctx)
            except FastdirsError as error:
                # A library that swallows Ctrl-C while it is imported fails later, for want of the rest.
                raise click.ClickException(_INTERRUPTED if interrupts else str(error)) from error
            except OSError as error:
                if error.errno == errno.EPIPE:
                    raise
                # What no command foresaw, such as a name too long for the file system.
                what = error.filename or "The system refused"
                raise click.ClickException(f"{what}: {error.strerror}.") from error
            except KeyboardInterrupt:
                raise click.ClickException(_INTERRUPTED) from None


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C as ever, but noted in the list that this yields."""
    seen: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        # Ignored, as under nohup, or the business of a program that runs these commands.
        yield seen
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@click.command(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="fastdirs")
def main() -> None:
    """Find interpretable directions in pretrained GANs, look at them, and render them on compiled graphs.

    \b
    Example:
      fastdirs pull celeba-faces-64
      fastdirs discover celeba-faces-64 --directions 10 --out bank.safetensors
      fastdirs export celeba-faces-64 --out artifact
      fastdirs traverse artifact bank.safetensors --seeds 0-7 --out out
    """
