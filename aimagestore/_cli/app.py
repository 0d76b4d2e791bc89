"""The program: what stands before the command, and the commands."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import clusters, items, layouts, records, upkeep
from .exits import EXIT_CODES
from .human import without_secrets
from .running import exit_for
from .streams import claim_standard_streams

_HELP = f"""\
Look at and change an image store of containers/storage, beside podman.

Without --root it is podman's own store, and only looked at unless --write is given.

REF is an image's ID, its name, or the beginning of its ID. Wherever a file is taken, - is
standard input or output.

{EXIT_CODES}"""


class _Program(TyperGroup):
    """The commands. Messages about wrong usage repeat what was given, but no password."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except OSError as error:  # what is shown without a command, such as help
            sys.exit(exit_for(error))

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _without_secrets():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _without_secrets():
            return super().invoke(ctx)


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
    """Formats what is logged, tracebacks included, without secrets."""

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
for group in (records, items, layouts, upkeep, clusters):
    group.register(app)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"aimagestore {importlib.metadata.version('aimagestore')}")
        raise typer.Exit


def _not_empty(value: str | None) -> str | None:
    if value == "":
        raise typer.BadParameter("must not be empty")
    return value


@app.callback()
def _begin(
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            envvar="AIMAGESTORE_ROOT",
            metavar="DIR",
            callback=_not_empty,
            help="An image store, made where there is none, or a graph root that has one; or a "
            "cluster's two addresses in one argument.",
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
            help="Wait no longer for the store's lock to make a change.",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say what is done, and where an error came from.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("aimagestore: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("aimagestore").setLevel(logging.DEBUG if verbose else logging.WARNING)


def run() -> None:
    """Run the program with the arguments that it was given, and exit.

    :raises SystemExit: always, with what is documented as the exit code
    """
    claim_standard_streams()
    app(prog_name="aimagestore")
