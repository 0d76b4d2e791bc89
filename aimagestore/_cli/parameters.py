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
    bool, typer.Option("--force", help="Put even what podman cannot read into its store.")
]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Do not compare the data with its digest.")
]


def examples(*lines: str) -> str:
    """Format the examples at the end of a command's help."""
    return "\n".join(["Examples:", "", "\b", *(f"  aimagestore {line}" for line in lines)])


def pair(text: str, what: str) -> tuple[str, str]:
    """Split a text at the first ``=``.

    :param what: the form that the text should have
    :raises CommandError: when there is no ``=``
    """
    left, separator, right = text.partition("=")
    if not separator:
        raise CommandError(f"{text!r} is not {what}", ExitCode.USAGE)
    return left, right


def json_or_text(text: str) -> Any:
    """Return the JSON value of a text, or the text itself if it is not JSON.

    :raises CommandError: when it is nested too deeply to decode
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        return text
    except RecursionError as error:
        raise CommandError("the JSON value is nested too deeply") from error


def _no_number(constant: str) -> NoReturn:
    """Refuse NaN and the infinities, which Python's decoder accepts and JSON does not have."""
    raise ValueError(constant)
