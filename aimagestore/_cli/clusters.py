"""Commands that maintain a cluster's store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import click
from anyio import to_thread

from .exits import CommandError, ExitCode, usage_errors
from .output import write_json, write_lines, write_table
from .parameters import json_option
from .roots import cluster_module, given_addresses, given_cluster, is_cluster
from .running import command
from .session import Session

records_argument = click.argument(
    "records", metavar="RECORDS", required=False, help="postgresql://HOST/DATABASE"
)


@command(
    "migrate",
    """Create the tables of a store, or bring them up to date, and print their version.

    RECORDS is postgresql://HOST/DATABASE; the default is that of --root. libpq finds the password
    in PGPASSWORD or ~/.pgpass.
    """,
    "cluster migrate postgresql://db.example/images",
)
@records_argument
@json_option
async def migrate(context: click.Context, records: str | None, *, json: bool) -> None:
    module = cluster_module()
    with usage_errors():
        version = await _wait(partial(module.migrate, _records(context, records)))
    if json:
        await write_json({"version": version})
    else:
        await write_lines([str(version)])


@command(
    "adopt",
    """Make the database and the bucket of --root one store, and print its new identity.

    Use it after the database or the bucket was restored or copied. Programs that have used either
    of them refuse to go on. Then run check, which names what the bucket lacks.
    """,
    '--root "postgresql://db/images s3://bucket/dir" cluster adopt',
)
@json_option
async def adopt(context: click.Context, *, json: bool) -> None:
    addresses = given_addresses(Session.of(context).root or "")
    module = cluster_module()
    with usage_errors():
        identity = await _wait(partial(module.adopt, *addresses))
    if json:
        await write_json({"identity": str(identity)})
    else:
        await write_lines([str(identity)])


@command(
    "doctor",
    """Examine the servers of --root, and print what is wrong with them or will be.

    Run it as the programs run, because it checks their role and their credentials. It writes an
    object to the bucket and removes it again. Exits with 1 when there is a warning or an error.
    """,
    '--root "postgresql://db/images s3://bucket/dir" cluster doctor',
)
@json_option
async def doctor(context: click.Context, *, json: bool) -> ExitCode:
    location = given_cluster(Session.of(context).root or "")
    module = cluster_module()
    with usage_errors():
        found = await _wait(partial(module.doctor, location))
    if json:
        await write_json([asdict(diagnosis) for diagnosis in found])
    else:
        rows = [[d.severity, d.about, d.text, d.advice] for d in found]
        await write_table(["SEVERITY", "ABOUT", "FOUND", "ADVICE"], rows)
    is_fine = all(d.severity in {module.Severity.OK, module.Severity.NOTE} for d in found)
    return ExitCode.DONE if is_fine else ExitCode.FAILED


@command(
    "grace-period",
    """Change how long replaced and staged data is kept, for all programs that use the store.

    RECORDS is postgresql://HOST/DATABASE; the default is that of --root.
    """,
    "cluster grace-period 86400 postgresql://db.example/images",
)
@click.argument("seconds", type=float, metavar="SECONDS", help="How long, more than 0.")
@records_argument
async def grace_period(context: click.Context, seconds: float, records: str | None) -> None:
    module = cluster_module()
    with usage_errors():
        try:
            period = timedelta(seconds=seconds)
        except OverflowError:
            raise ValueError(f"the grace period is too long: {seconds:g} s") from None
        await _wait(partial(module.set_grace_period, _records(context, records), period))


async def _wait(call: Callable[[], Any]) -> Any:
    """Make a call to the servers. An interrupted one ends with the program, as in a crash."""
    return await to_thread.run_sync(call, abandon_on_cancel=True)


def _records(context: click.Context, given: str | None) -> str:
    """Return the address of the database that was given, or else that of --root."""
    root = Session.of(context).root or ""
    if given is None and is_cluster(root):
        given, _ = given_addresses(root)
    if given is None:
        raise CommandError(
            "give the address of the database: postgresql://HOST/DATABASE", ExitCode.USAGE
        )
    return given


group = click.Group(
    "cluster",
    commands=[migrate, adopt, doctor, grace_period],
    help="Maintain a store in PostgreSQL and S3.",
)
