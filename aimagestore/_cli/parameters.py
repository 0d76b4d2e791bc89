"""Arguments and options that several commands have."""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

import typer

from .completion import complete_ref
from .exits import CommandError, ExitCode

Ref = Annotated[str, typer.Argument(metavar="REF", autocompletion=complete_ref)]
Refs = Annotated[list[str], typer.Argument(metavar="REF", autocompletion=complete_ref)]
Key = Annotated[str, typer.Argument(metavar="KEY")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Do not compare the data with its digest.")
]


def pair(text: str, what: str) -> tuple[str, str]:
    """The two sides of the first ``=``.

    :raises CommandError: when there is none
    """
    left, separator, right = text.partition("=")
    if not separator:
        raise CommandError(f"{text!r} is not {what}", ExitCode.USAGE)
    return left, right


def json_or_text(text: str) -> Any:
    """A JSON value where the text is one, else the text.

    :raises CommandError: when it is nested too deeply to tell
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        return text
    except RecursionError as error:
        raise CommandError("the JSON value is nested too deeply") from error


def _no_number(constant: str) -> NoReturn:
    """Refuse NaN and the infinities, which are numbers for Python, but not for JSON."""
    raise ValueError(constant)
