"""Commands for the tables of a cluster's store."""

from __future__ import annotations

from typing import Annotated

import typer
from anyio import to_thread

from .exits import CommandError, ExitCode, usage_errors
from .output import write_json, write_lines
from .parameters import Json
from .roots import cluster_module, given_addresses, is_cluster
from .running import command
from .session import Session

group = typer.Typer(help="Maintain the tables of a store in PostgreSQL.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(group, name="cluster")


@group.callback()
def _begin() -> None:
    """Keep `migrate` a subcommand, although it is the only one."""


@group.command()
@command
async def migrate(
    context: typer.Context,
    records: Annotated[str | None, typer.Argument(metavar="RECORDS")] = None,
    json: Json = False,
) -> None:
    """Create the tables of a store, or bring them up to date, and print their version.

    RECORDS is postgresql://HOST/DATABASE; the default is that of --root. libpq finds the password
    in PGPASSWORD or ~/.pgpass.
    """
    root = Session.of(context).root or ""
    if records is None and is_cluster(root):
        records, _ = given_addresses(root)
    if records is None:
        raise CommandError(
            "give the address of the database: postgresql://HOST/DATABASE", ExitCode.USAGE
        )
    with usage_errors():
        version = await to_thread.run_sync(cluster_module().migrate, records)
    if json:
        await write_json({"version": version})
    else:
        await write_lines([str(version)])
