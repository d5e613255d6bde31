"""The command line: finds its verbs in ``curvbench/cli/verbs``, and turns how they end into exit codes."""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

import click

from curvbench.cli import verbs
from curvbench.cli.exits import INTERRUPTED, OK, USAGE
from curvbench.words import near_misses, one_line


class Verbs(click.Group):
    """The verbs by name; each file is read when its verb is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in alphabetical order."""
        return sorted(module.name for module in pkgutil.iter_modules(verbs.__path__))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their first sentences, uncut."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Verbs"):
            formatter.write_dl([(name, c.get_short_help_str(limit=200)) for name, c in commands.items() if c])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of this name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = vars(importlib.import_module(f"curvbench.cli.verbs.{cmd_name}"))
        command = module.get(cmd_name, module.get(f"{cmd_name}_"))
        assert isinstance(command, click.Command), f"verbs/{cmd_name}.py binds no command {cmd_name}"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that is asked for; an unknown one is refused with those that it may have been."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise click.UsageError(f"unknown verb {args[0]!r}: {near_misses(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="curvbench")
def cli() -> None:
    """Measure curvature approximations of neural networks against the exact Fisher matrix."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point ``curvbench``: runs a verb and exits with its code."""
    warnings.showwarning = _show_warning
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _interrupt)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(_with_values(given), prog_name="curvbench", standalone_mode=False, obj=given)
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    except OSError as error:
        code = _complain(str(error), USAGE)
    sys.exit(code if isinstance(code, int) else OK)


def _complain(text: str, code: int) -> int:
    click.echo(f"curvbench: {one_line(text)}", err=True)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _complain(f"warning: {message}", OK)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _with_values(arguments: list[str]) -> list[str]:
    """``--rerun-failed`` alone means all of them; click has no option whose value may be left out before others."""
    return ["--rerun-failed=all" if argument == "--rerun-failed" else argument for argument in arguments]
