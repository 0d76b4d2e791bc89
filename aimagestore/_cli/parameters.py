"""Arguments and options that several commands have."""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

import typer

from .completion import complete_key, complete_ref
from .exits import CommandError, ExitCode

_REF = "an ID, a name, or the beginning of an ID."

Ref = Annotated[
    str, typer.Argument(metavar="REF", autocompletion=complete_ref, help=f"The image: {_REF}")
]
Refs = Annotated[
    list[str],
    typer.Argument(metavar="REF", autocompletion=complete_ref, help=f"The images, each {_REF}"),
]
OptionalRefs = Annotated[
    list[str] | None,
    typer.Argument(metavar="REF", autocompletion=complete_ref, help=f"The images, each {_REF}"),
]
Key = Annotated[
    str,
    typer.Argument(
        metavar="KEY", autocompletion=complete_key, help="The item, such as manifest; see inspect."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[
    bool, typer.Option("--force", help="Even what podman cannot read, into its store.")
]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Do not compare the data with its digest.")
]


def examples(*lines: str) -> str:
    """The examples that a command's help ends with."""
    return "\n".join(["Examples:", "", "\b", *(f"  aimagestore {line}" for line in lines)])


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
