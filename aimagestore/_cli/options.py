"""The options of the program, which may stand before the command or after it."""

from __future__ import annotations

import copy
import logging
from math import isnan
from typing import Any

import click


def _not_empty(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise click.BadParameter("must not be empty")
    return value


def _not_nan(
    _context: click.Context, _option: click.Parameter, value: float | None
) -> float | None:
    if value is not None and isnan(value):
        raise click.BadParameter("must be a number")
    return value


def _set_log_level(_context: click.Context, _option: click.Parameter, value: bool) -> bool:
    logging.getLogger("aimagestore").setLevel(logging.DEBUG if value else logging.WARNING)
    return value


OPTIONS = (
    click.Option(
        ["--root"],
        envvar="AIMAGESTORE_ROOT",
        show_envvar=True,
        metavar="DIR",
        callback=_not_empty,
        help="An image store, or a graph root that has one, or a cluster's two addresses in one "
        "argument. create, import, load and copy make a store where there is none.",
    ),
    click.Option(
        ["--additional-store"],
        multiple=True,
        metavar="DIR",
        help="A store to read beside it, given as for --root; several times. podman's own store "
        "has those of storage.conf.",
    ),
    click.Option(["--write"], is_flag=True, help="Allow changes to podman's own store."),
    click.Option(
        ["--lock-timeout"],
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        callback=_not_nan,
        help="How long a change or a check waits for the store's lock, and a read for the end of "
        "another program's change, at most.",
    ),
    click.Option(
        ["--verbose"],
        is_flag=True,
        callback=_set_log_level,
        help="Log to standard error, and show where an error came from.",
    ),
)


def late_options() -> list[click.Parameter]:
    """Return the options once more, to stand after a command. They are not in its help."""
    return [_late(option) for option in OPTIONS]


def _late(option: click.Option) -> click.Option:
    """Return an option that stands after the command, and works as if it stood before it."""
    late = copy.copy(option)
    late.hidden, late.expose_value, late.envvar = True, False, None

    def take(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None and value is not False and value != ():
            if option.callback is not None:
                value = option.callback(context, parameter, value)
            before = context.find_root().params
            if option.multiple:
                value = (*before[late.name], *value)
            before[late.name] = value

    late.callback = take
    return late
