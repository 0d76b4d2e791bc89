"""Commands that show how much space images take, and delete those that a policy does not keep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from .._core.image import Image
from .._core.moments import parse_duration
from .._core.pruning import PrunePolicy, PruneResult
from .exits import CommandError, ExitCode, usage_errors
from .human import NONE, counted, human_age, human_size, short_id
from .output import say, write_json, write_lines, write_table
from .parameters import filter_option, json_option
from .running import command
from .selection import parse_query, select
from .session import Session, say_layers_stay

_DAYS = re.compile(r"(\d{1,6})d(.*)", re.ASCII)


@command(
    "df",
    """Show how much space each image and the whole store take.

    OWN is what deleting the image frees. Other images share the rest of SIZE. An image that a
    container uses is deleted by rm --force only. The last line is about the whole store: what it
    takes, and what deleting all images that no container uses would free. The layers of podman's
    images are not in this store.
    """,
    "df",
    "df --json",
)
@json_option
async def disk_usage(context: click.Context, *, json: bool) -> None:
    async with Session.of(context).reading() as store:
        usage = await store.usage()
        images = {image.id: image for image in await store.images()}
    if json:
        shown = [
            {
                "id": image_id,
                "size": each.size,
                "unique_size": each.unique_size,
                "shared_size": each.shared_size,
                "layers_size": each.layers_size,
                "containers": each.containers,
            }
            for image_id, each in usage.images.items()
        ]
        await write_json({"total": usage.total, "reclaimable": usage.reclaimable, "images": shown})
        return
    largest_first = sorted(usage.images.items(), key=lambda pair: pair[1].size, reverse=True)
    rows = [
        (
            _name_of(images.get(image_id)),
            short_id(image_id),
            human_size(each.size),
            human_size(each.unique_size),
            ", ".join(each.containers),
        )
        for image_id, each in largest_first
    ]
    await write_table(("NAME", "IMAGE ID", "SIZE", "OWN", "CONTAINERS"), rows, folded=0)
    total, free = human_size(usage.total), human_size(usage.reclaimable)
    number = counted(len(rows), "image")
    await write_lines([f"{number}, {total} in all, {free} reclaimable"])


def _name_of(image: Image | None) -> str:
    return image.names[0] if image is not None and image.names else NONE


def _age(text: str | None) -> timedelta | None:
    if text is None:
        return None
    days = _DAYS.fullmatch(text)
    rest = text if days is None else days[2] or "0"
    duration = parse_duration(rest)
    if duration is None:
        raise CommandError(
            f"--older-than: {text!r} is not a duration such as 36h, 7d or 1d12h", ExitCode.USAGE
        )
    return duration + timedelta(days=0 if days is None else int(days[1]))


@command(
    "prune",
    """Delete images without names, or those that the options select.

    An image is deleted if it meets every given option. Never deleted are images that a container
    uses, that an image index names, or that have the flag aimagestore.keep, whatever its value.
    The layers of podman's images stay: podman image prune removes images with their layers.
    """,
    "prune --dry-run",
    "prune --older-than 7d",
    "prune --all --keep-last 3 --keep '*:latest' --older-than 30d",
    "prune --all --filter label=temporary",
)
@click.option("--all", "-a", "prune_all", is_flag=True, help="Delete images with names, too.")
@click.option(
    "--older-than", metavar="AGE", help="Only those created longer ago, such as 36h or 7d."
)
@click.option(
    "--keep-last",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the newest N of each repository.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Keep images with a name that matches, where * is any text; several times.",
)
@filter_option
@click.option("--dry-run", is_flag=True, help="Only list what would be deleted.")
@json_option
async def prune(
    context: click.Context,
    *,
    prune_all: bool,
    older_than: str | None,
    keep_last: int | None,
    keep: Sequence[str],
    filters: Sequence[str],
    dry_run: bool,
    json: bool,
) -> None:
    query = parse_query(filters)
    age = _age(older_than)
    session = Session.of(context)
    async with session.reading() if dry_run else session.writing() as store:
        selected = {image.id: image for image in await select(store, query)}
        with usage_errors():
            policy = PrunePolicy(
                unnamed=not prune_all,
                older_than=age,
                keep_last=keep_last,
                keep_names=keep,
                filter=lambda image: selected.get(image.id) == image,
            )
        try:
            result = await store.prune(policy, dry_run=dry_run)
        except BaseException as error:
            done = PruneResult.of(error)
            if done is not None and done.images:
                deleted = ", ".join(image.id for image in done.images)
                say(f"deleted before that, with {human_size(done.freed)} freed: {deleted}")
            raise
        if json:
            ids = [image.id for image in result.images]
            await write_json({"freed": result.freed, "images": ids, "kept": dict(result.kept)})
        else:
            await _write_pruned(result.images)
            number, freed = counted(len(result.images), "image"), human_size(result.freed)
            would = f"{number} would be deleted, which would free {freed}"
            await write_lines([would if dry_run else f"{number} deleted, {freed} freed"])
        if any(image.top_layer for image in result.images) and not dry_run:
            say_layers_stay(store)


async def _write_pruned(images: Sequence[Image]) -> None:
    if not images:
        return
    now = datetime.now(UTC)
    rows = [
        (", ".join(image.names) or NONE, short_id(image.id), human_age(image.created, now))
        for image in images
    ]
    await write_table(("NAMES", "IMAGE ID", "CREATED"), rows, folded=0)
