"""Commands of the program, carried out in the process of the test."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from typer import testing

from aimagestore._cli.app import app

# Otherwise each call makes all commands again, which takes longer than most of them.
testing._get_command = cache(testing._get_command)  # type: ignore[attr-defined]


def invoke(*arguments: object, variables: Mapping[str, str] | None = None) -> testing.Result:
    """Carry out a command.

    :param variables: added to the environment
    """
    parts = [str(argument) for argument in arguments]
    environment: Any = variables
    return testing.CliRunner().invoke(app, parts, prog_name="aimagestore", env=environment)
