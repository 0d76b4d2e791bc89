"""Commands that watch, check and repair a store, and collect its garbage."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from .._async.inspection import check as check_store, repair as repair_store
from .._core.report import Report
from .._engine.protocol import Location
from .exits import ExitCode
from .human import human_size, short_id
from .output import (
    findings_json,
    image_json,
    report_json,
    write_findings,
    write_json,
    write_lines,
)
from .parameters import Json, NoVerify, examples
from .progress import progress_bar
from .running import command
from .selection import Filters, parse_query, passes, select
from .session import Session

logger = logging.getLogger("aimagestore")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(epilog=examples("watch", "watch --filter label=team", "watch --json"))(watch)
    app.command(epilog=examples("check", "check --no-verify --json"))(check)
    app.command(epilog=examples("repair", "repair --drop"))(repair)
    app.command("gc", epilog=examples("gc --dry-run", "gc"))(collect_garbage)


@command(
    """Print a line for each change, whichever program makes it.

    The line has created, changed or deleted, the ID, and the names. With filters, changes are
    printed if the image passes after the change, or passed before it.
    """
)
async def watch(context: typer.Context, filters: Filters = None, json: Json = False) -> None:
    query = parse_query(filters)
    async with Session.of(context).reading() as store, store.watch() as changes:
        passing = {image.id for image in await select(store, query)} if query.filters else set()
        logger.info("watching")
        async for change in changes:
            image = change.image
            if query.filters:
                passed = change.id in passing
                passing.discard(change.id)
                if image is not None and await passes(store, query, image):
                    passing.add(change.id)
                if not passed and change.id not in passing:
                    continue
            if json:
                shown = None if image is None else image_json(image)
                line = {"kind": change.kind, "id": change.id, "image": shown}
                await write_json(line, indent=None)
            else:
                names = () if image is None else image.names
                await write_lines([" ".join([change.kind, short_id(change.id), *names])])


@command(
    """Check the store for damage and garbage.

    Nothing is changed. It also works on a damaged store that no other command can open. Exits with
    4 when it finds anything.
    """
)
async def check(
    context: typer.Context, json: Json = False, no_verify: NoVerify = False
) -> ExitCode:
    where = await Session.of(context).location()
    report = await _checked(where, verify=not no_verify)
    if json:
        await write_json(report_json(report))
    else:
        await write_findings(report.findings)
        looked_at = f"{report.images} images, {report.items} items, {human_size(report.bytes)} read"
        await write_lines([f"{looked_at}: {len(report.findings) or 'nothing'} found"])
    return ExitCode.DONE if report.ok else ExitCode.DAMAGED


async def _checked(where: Location, *, verify: bool) -> Report:
    with progress_bar("check") as bar:
        return await check_store(where, verify=verify, progress=bar.show)


@command(
    """Check the store, repair what was found, and check it again.

    No file or object is removed. What is taken out of the index, because podman cannot read it or
    with --drop, is kept in a file beside it, such as images.json.old-1. Exits with 4 when something
    is left: gc removes garbage, and --drop removes from the records what cannot be repaired.
    """
)
async def repair(
    context: typer.Context,
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove what cannot be repaired from the records.")
    ] = False,
    no_verify: NoVerify = False,
    json: Json = False,
) -> ExitCode:
    session = Session.of(context)
    where = await session.location(writes=True)
    found = await _checked(where, verify=not no_verify)
    done, left = Report(), found
    if not found.ok:
        done = await _repaired(session, where, found, drop=drop)
        left = await _checked(where, verify=not no_verify)
    if json:
        repaired = findings_json(done.findings)
        await write_json(
            {"ok": left.ok, "repaired": repaired, "left": findings_json(left.findings)}
        )
    else:
        await write_findings(done.findings)
        await write_lines([f"{len(done.findings)} repaired, {len(left.findings)} left"])
        await write_findings(left.findings)
    return ExitCode.DONE if left.ok else ExitCode.DAMAGED


async def _repaired(session: Session, where: Location, found: Report, *, drop: bool) -> Report:
    timeout = session.lock_timeout
    with progress_bar("repair") as bar:
        return await repair_store(where, found, drop=drop, lock_timeout=timeout, progress=bar.show)


@command("Remove what belongs neither to an image nor to a running program.")
async def collect_garbage(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed.")
    ] = False,
    json: Json = False,
) -> None:
    async with Session.of(context).writing() as store:
        report = await store.collect_garbage(dry_run=dry_run)
    if json:
        removed = findings_json(report.findings)
        await write_json({"bytes": report.bytes, "removed": removed})
    else:
        await write_findings(report.findings)
        number, freed = len(report.findings), human_size(report.bytes)
        done = "would be removed" if dry_run else "removed"
        await write_lines([f"{number} {done}, {freed} freed"])
