"""Commands of the program, run in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click
from click.testing import CliRunner, Result

from aimagestore._cli.app import app


def invoke(*arguments: object, variables: Mapping[str, str] | None = None) -> Result:
    """Run a command, and return its result.

    :param variables: added to the environment
    """
    parts = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, parts, prog_name="aimagestore", env=variables)


def run(*arguments: object, code: int = 0) -> str:
    """Run a command, check its exit code, and return what it prints, or its error message."""
    result = invoke(*arguments)
    assert result.exit_code == code, f"{arguments}: {result.output}{result.exception!r}"
    return result.stdout if code == 0 else result.stderr


def all_commands(group: click.Group = app, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Iterate over the commands of a group and of its groups, each with its whole name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{above}{name} ")
        else:
            yield above + name, command
