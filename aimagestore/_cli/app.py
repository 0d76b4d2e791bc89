"""The program: its commands, and the options that may stand before or after them."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .._version import __version__
from . import clusters, housekeeping, items, layouts, records, upkeep
from .completion import join_words_of_bash
from .exits import EXIT_CODES, CommandError
from .human import without_secrets
from .parameters import examples
from .running import exit_for
from .streams import check_output, claim_standard_streams

_HELP = f"""\
Look at and change an image store of containers/storage, beside podman.

Without --root, the store is podman's own, which is not changed unless --write is given. --root,
--additional-store, --write, --lock-timeout and --verbose may stand before or after the command.

REF is an image's ID, its name, or the beginning of its ID. Instead of a file, - is standard input
or output.

{EXIT_CODES}
{examples("images", "--root images import hello.tar", "--root images inspect localhost/hello:1")}
"""

_ANYWHERE = frozenset({"root", "additional_store", "write", "lock_timeout", "verbose"})
"""The options that may stand before the command or after it."""


class _Program(TyperGroup):
    """The commands. Messages about wrong usage repeat the arguments, but no password."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        _accept(self, [each for each in self.params if each.name in _ANYWHERE])

    def main(self, *args: Any, **options: Any) -> Any:
        join_words_of_bash()
        try:
            return self._main(*args, **options)
        except (OSError, CommandError) as error:  # help, for instance, is written by no command
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
        with _without_secrets():
            return super().invoke(ctx)


def _accept(group: TyperGroup, options: list[Any]) -> None:
    """Make the commands of a group accept options of the program."""
    for command in group.commands.values():
        if isinstance(command, TyperGroup):
            _accept(command, options)
        else:
            command.params += [_late(option) for option in options]


def _late(option: Any) -> Any:
    """Return an option that stands after the command, and works as if it stood before it."""
    late = copy.copy(option)
    late.hidden, late.expose_value, late.envvar = True, False, None

    def take(context: Any, parameter: Any, value: Any) -> None:
        if value is not None and value is not False and value not in ([], ()):
            if option.callback is not None:
                value = option.callback(context, parameter, value)
            before = context.find_root().params
            if option.multiple:
                value = [*(before.get(option.name) or ()), *value]
            before[option.name] = value

    late.callback = take
    return late


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


app = typer.Typer(
    name="aimagestore",
    cls=_Program,
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for group in (records, items, layouts, housekeeping, upkeep, clusters):
    group.register(app)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"aimagestore {__version__}")
        raise typer.Exit


def _log_level(value: bool) -> bool:
    logging.getLogger("aimagestore").setLevel(logging.DEBUG if value else logging.WARNING)
    return value


def _not_empty(value: str | None) -> str | None:
    if value == "":
        raise typer.BadParameter("must not be empty")
    return value


@app.callback()
def _begin(
    *,
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            envvar="AIMAGESTORE_ROOT",
            metavar="DIR",
            callback=_not_empty,
            help="An image store, or a graph root that has one, or a cluster's two addresses in "
            "one argument. create, import, load and copy make a store where there is none.",
        ),
    ] = None,
    additional_store: Annotated[
        list[str] | None,
        typer.Option(
            "--additional-store",
            metavar="DIR",
            help="A store to read beside it, given as for --root; several times. podman's own "
            "store has those of storage.conf.",
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Allow changes to podman's own store.")
    ] = False,
    lock_timeout: Annotated[
        float | None,
        typer.Option(
            "--lock-timeout",
            min=0,
            metavar="SECONDS",
            help="How long a change waits for the store's lock, at most.",
        ),
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            callback=_log_level,
            help="Log to standard error, and show where an error came from.",
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("aimagestore: %(message)s"))
    logging.basicConfig(handlers=[handler])


def run() -> None:
    """Run the program with the arguments of the process, and exit.

    :raises SystemExit: always, with a documented exit code
    """
    claim_standard_streams()
    app(prog_name="aimagestore")
