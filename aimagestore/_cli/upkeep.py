"""Commands that watch, check and repair a store, and collect its garbage."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import click

from .._async.inspection import check as check_store, repair as repair_store
from .._core.report import Report
from .._engine.protocol import Location
from .exits import ExitCode
from .human import counted, human_size, short_id
from .output import (
    findings_json,
    image_json,
    report_json,
    say,
    write_findings,
    write_json,
    write_lines,
)
from .parameters import filter_option, json_option, no_verify_option
from .progress import progress_bar
from .running import command
from .selection import parse_query, passes, select
from .session import Session

logger = logging.getLogger("aimagestore")


@command(
    "watch",
    """Print a line for each change, whichever program makes it.

    The line has created, changed or deleted, the ID, and the names. With filters, changes are
    printed if the image passes after the change, or passed before it.
    """,
    "watch",
    "watch --filter label=team",
    "watch --json",
)
@filter_option
@json_option
async def watch(context: click.Context, *, filters: Sequence[str], json: bool) -> None:
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
    "check",
    """Check the store for damage and garbage.

    Nothing is changed. It also works on a damaged store that no other command can open. Exits with
    4 when it finds anything.
    """,
    "check",
    "check --no-verify --json",
)
@json_option
@no_verify_option
async def check(context: click.Context, *, json: bool, no_verify: bool) -> ExitCode:
    session = Session.of(context)
    where = await session.location()
    report = await _checked(session, where, verify=not no_verify)
    if json:
        await write_json(report_json(report))
    else:
        await write_findings(report.findings)
        parts = [counted(report.images, "image"), counted(report.items, "item")]
        parts.append(f"{human_size(report.bytes)} read")
        await write_lines([f"{', '.join(parts)}: {len(report.findings) or 'nothing'} found"])
    return ExitCode.DONE if report.ok else ExitCode.DAMAGED


async def _checked(session: Session, where: Location, *, verify: bool) -> Report:
    timeout = session.lock_timeout
    with progress_bar("check") as bar:
        return await check_store(where, verify=verify, lock_timeout=timeout, progress=bar.show)


@command(
    "repair",
    """Check the store, repair what was found, and check it again.

    No file or object is removed. What is taken out of the index, because podman cannot read it or
    with --drop, is kept in a file beside it, such as images.json.old-1. Exits with 4 when something
    is left: gc removes garbage, and --drop removes from the records what cannot be repaired.
    """,
    "repair",
    "repair --drop",
)
@click.option("--drop", is_flag=True, help="Remove what cannot be repaired from the records.")
@no_verify_option
@json_option
async def repair(context: click.Context, *, drop: bool, no_verify: bool, json: bool) -> ExitCode:
    session = Session.of(context)
    where = await session.location(writes=True)
    found = await _checked(session, where, verify=not no_verify)
    done, left = Report(), found
    if not found.ok:
        done = await _repaired(session, where, found, drop=drop)
        left = await _checked(session, where, verify=not no_verify)
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


@command(
    "gc",
    """Remove what belongs neither to an image nor to a running program.

    Exits with 1 when something cannot be removed.
    """,
    "gc --dry-run",
    "gc",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@json_option
async def collect_garbage(context: click.Context, *, dry_run: bool, json: bool) -> ExitCode:
    async with Session.of(context).writing() as store:
        report = await store.collect_garbage(dry_run=dry_run)
    removed = [finding for finding in report.findings if not finding.stays]
    staying = [finding for finding in report.findings if finding.stays]
    if json:
        await write_json(
            {
                "bytes": report.bytes,
                "removed": findings_json(removed),
                "stays": findings_json(staying),
            }
        )
    else:
        await write_findings(report.findings)
        number, freed = len(removed), human_size(report.bytes)
        would = f"{number} would be removed, which would free {freed}"
        await write_lines([would if dry_run else f"{number} removed, {freed} freed"])
    if staying:
        say(f"{counted(len(staying), 'finding')} cannot be removed: the details say why")
        return ExitCode.FAILED
    return ExitCode.DONE
