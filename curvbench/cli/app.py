"""The command line: finds its verbs in ``curvbench/cli/verbs``, and turns their endings into exit codes."""

from __future__ import annotations

import codecs
import errno
import importlib
import io
import os
import pkgutil
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence

import click

from curvbench.cli import actions, verbs
from curvbench.cli.exits import INTERRUPTED, OK, USAGE
from curvbench.registry.patience import interrupt
from curvbench.words import near_misses, one_line


class Verbs(click.Group):
    """The verbs by name; the file of a verb is read when the verb is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in alphabetical order."""
        return sorted(module.name for module in pkgutil.iter_modules(verbs.__path__))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs with their whole first sentences."""
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
        """The verb that is asked for; an unknown verb is refused with the names that it may have meant."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise click.UsageError(f"unknown verb {args[0]!r}: {near_misses(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="curvbench")
def cli() -> None:
    """Measure curvature approximations of neural networks against the exact Fisher matrix."""


_SCARCE = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # of processes, memory and files
_RAISE = "free memory, or raise the limits of memory, processes and files (ulimit -a); the same command continues"


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point ``curvbench``: run a verb and exit with its code."""
    warnings.showwarning = _shown_once()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores signals, and that has to stay
            signal.signal(number, interrupt)
    _show_every_sign()
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(_with_values(typed), prog_name="curvbench", standalone_mode=False, obj=typed)
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    except OSError as error:
        code = _complain(f"{error}: {_RAISE}" if error.errno in _SCARCE else str(error), USAGE)
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        code = _complain(f"{error}: {_RAISE}", USAGE)
    except MemoryError:
        code = _complain("out of memory: free some, or raise the limit (ulimit -v)", USAGE)
    except ImportError as error:
        if not re.search("failed to map segment|annot allocate memory|Too many open files", str(error)):
            raise
        code = _complain(f"{error}: {_RAISE}", USAGE)
    sys.exit(code if isinstance(code, int) else OK)


def _complain(text: str, code: int) -> int:
    click.echo(f"curvbench: {one_line(text)}", err=True)
    if code == USAGE and actions.is_here():
        from curvbench.analysis.export.actions import error

        actions.say([error(text)])
    return code


def _shown_once() -> Callable[..., None]:
    """What shows a warning as a line, each text once: several readers may come upon one damaged file."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            _complain(f"warning: {message}", OK)

    return show


def _show_every_sign() -> None:
    """Let no text fail on its way out: in a locale of ASCII, and in names of files that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if is_ascii else None, errors="backslashreplace")
            if is_ascii:  # of this process's children too
                os.environ.setdefault("PYTHONIOENCODING", "utf-8:backslashreplace")


def _with_values(arguments: list[str]) -> list[str]:
    """Give ``--rerun-failed`` its default value ``all``, because click needs a value before other options."""
    return ["--rerun-failed=all" if argument == "--rerun-failed" else argument for argument in arguments]
