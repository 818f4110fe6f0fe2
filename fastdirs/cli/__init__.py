"""The command line: one file per command; each parses, calls one library function, and prints."""

import errno
from typing import Any

import click

from fastdirs import __version__
from fastdirs.cli._interrupt import Interruptible
from fastdirs.errors import FastdirsError
from fastdirs.registry import Registry, unknown_name

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
        try:
            with Interruptible():
                return super().invoke(ctx)
        except FastdirsError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            # What no command foresaw, such as a name too long for the file system.
            what = error.filename or "The system refused"
            raise click.ClickException(f"{what}: {error.strerror}.") from error
        except KeyboardInterrupt:
            raise click.ClickException(
                "Interrupted. Nothing half-written was kept; traversals continue with the same command."
            ) from None


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
