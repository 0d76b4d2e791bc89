"""The program: its commands, and what comes before them."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from .._version import __version__
from .exits import EXIT_CODES, CommandError, examples_text
from .human import without_secrets
from .options import OPTIONS
from .streams import check_output, claim_standard_streams

_EXAMPLES = examples_text(
    "images", "--root images import hello.tar", "--root images inspect localhost/hello:1"
)

_HELP = f"""\
Look at and change an image store of containers/storage, beside podman.

Without --root, the store is podman's own, which is not changed unless --write is given. --root,
--additional-store, --write, --lock-timeout and --verbose may stand before or after the command.

REF is an image's ID, its name, or the beginning of its ID. Instead of a file, - is standard input
or output.

{EXIT_CODES}
{_EXAMPLES}
"""

_COMPLETE = "_AIMAGESTORE_COMPLETE"
"""The environment variable in which a shell asks for completions."""

_COMMANDS = {
    "images": "records.images",
    "inspect": "records.inspect",
    "exists": "records.exists",
    "create": "changes.create",
    "tag": "changes.tag",
    "untag": "changes.untag",
    "rm": "changes.remove",
    "flag": "changes.flag",
    "put": "items.put",
    "get": "items.get",
    "digest": "items.digest",
    "import": "layouts.import_layout",
    "load": "layouts.load",
    "export": "layouts.export_layout",
    "save": "layouts.save",
    "copy": "layouts.copy",
    "df": "housekeeping.disk_usage",
    "prune": "housekeeping.prune",
    "watch": "upkeep.watch",
    "check": "upkeep.check",
    "repair": "upkeep.repair",
    "gc": "upkeep.collect_garbage",
    "cluster": "clusters.group",
}
"""The commands in the order of the help, each with its module and its name there."""


class _Program(click.Group):
    """The commands. A command's module is imported when the command is used.

    Messages about wrong usage repeat the arguments, but no password.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(".")
        found: click.Command = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return found

    def main(self, *args: Any, **options: Any) -> Any:
        if _COMPLETE in os.environ:
            from . import bash  # noqa: F401, PLC0415 - adds to the shells that click knows
        try:
            return self._main(*args, **options)
        except (OSError, CommandError) as error:  # help, for instance, is written by no command
            from .running import exit_for  # noqa: PLC0415 - rarely needed

            sys.exit(exit_for(error))

    def _main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except SystemExit as end:
            if not end.code:
                check_output()
            raise

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _without_secrets():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _without_secrets():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:  # before the command waits for signals
            raise click.exceptions.Exit(130) from error


@contextmanager
def _without_secrets() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        if isinstance(message, str):
            vars(error)["message"] = without_secrets(message)
        raise


class _Formatter(logging.Formatter):
    """Formats log messages and tracebacks without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _show_completion(context: click.Context, _option: click.Parameter, shell: str | None) -> None:
    if shell is not None:
        from click.shell_completion import get_completion_class  # noqa: PLC0415 - rarely needed

        found = get_completion_class(shell)
        assert found is not None
        click.echo(found(app, {}, "aimagestore", _COMPLETE).source())
        context.exit()


@click.group(
    "aimagestore",
    cls=_Program,
    help=_HELP,
    params=[
        *OPTIONS,
        click.Option(
            ["--show-completion"],
            type=click.Choice(["bash", "zsh", "fish"]),
            is_eager=True,
            expose_value=False,
            callback=_show_completion,
            help="Show the script that completes commands in a shell.",
        ),
    ],
)
@click.version_option(__version__, message="%(prog)s %(version)s", help="Show the version.")
def app(**_options: Any) -> None:
    """Prepare for a command. It finds the options in the context."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("aimagestore: %(message)s"))
    logging.basicConfig(handlers=[handler])


def run() -> None:
    """Run the program with the arguments of the process, and exit.

    :raises SystemExit: always, with a documented exit code
    """
    claim_standard_streams()
    app(prog_name="aimagestore")
