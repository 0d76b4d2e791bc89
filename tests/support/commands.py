"""Commands of the program, carried out in the process of the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click
from click.testing import CliRunner, Result

from aimagestore._cli.app import app


def invoke(*arguments: object, variables: Mapping[str, str] | None = None) -> Result:
    """Carry out a command.

    :param variables: added to the environment
    """
    parts = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, parts, prog_name="aimagestore", env=variables)


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
