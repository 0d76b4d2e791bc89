"""Commands about an image's items, its big data."""

from __future__ import annotations

import click

from .._async.store import ImageStore
from .._async.streams import BigDataReader
from ..errors import DigestMismatchError
from .completion import complete_key
from .exits import CommandError, ExitCode, damage
from .files import STANDARD, Sink, reading, writing
from .output import write_json, write_lines
from .parameters import json_option, key_argument, no_verify_option, ref_argument
from .progress import progress_bar
from .running import command
from .session import Session


@command(
    "put",
    """Store an item of an image, or replace it.

    An interrupted command has stored the whole item, or changed nothing.
    """,
    "put localhost/hello:1 sbom sbom.json",
    "put localhost/hello:1 notes - < notes.txt",
)
@ref_argument
@key_argument
@click.argument("file", metavar="FILE", help="The data; - is standard input.")
async def put(context: click.Context, ref: str, key: str, file: str) -> None:
    async with Session.of(context).writing() as store, reading(file) as source:
        with progress_bar(key, source.size, beside_data=source.is_terminal) as bar:
            await store.set_big_data(ref, key, source, progress=bar.show)


@command(
    "get",
    """Write an item to a file or to standard output.

    The item is compared with its digest while it is written. FILE is replaced only when all of it
    is written and correct.
    """,
    "get localhost/hello:1 manifest",
    "get localhost/hello:1 manifest manifest.json",
)
@ref_argument
@key_argument
@click.argument(
    "file", metavar="FILE", default=STANDARD, help="Where to write it; - is standard output."
)
@no_verify_option
async def get(context: click.Context, ref: str, key: str, file: str, *, no_verify: bool) -> None:
    async with Session.of(context).reading() as store:
        image = await store.get(ref)
        verify = not no_verify and key in image.big_data_digests
        async with writing(file) as sink:
            with damage(DigestMismatchError):
                async with store.open_big_data(image.id, key, verify=verify) as reader:
                    await _copy(reader, sink, key)


async def _copy(reader: BigDataReader, sink: Sink, key: str) -> None:
    done = 0
    with progress_bar(key, reader.size, beside_data=sink.is_terminal) as bar:
        async for chunk in reader:
            await sink.write(chunk)
            done += len(chunk)
            bar.show(done, reader.size)


@command(
    "digest",
    "Print the digest of an image, or of one of its items.",
    "digest localhost/hello:1",
    "digest localhost/hello:1 manifest",
)
@ref_argument
@click.argument(
    "key",
    metavar="KEY",
    required=False,
    shell_complete=complete_key,
    help="An item; without one, the image.",
)
@json_option
async def digest(context: click.Context, ref: str, key: str | None, *, json: bool) -> None:
    async with Session.of(context).reading() as store:
        image = await store.get(ref)
        found = image.digest if key is None else await _item_digest(store, image.id, key)
    if not found:
        raise CommandError(f"image {image.id} has no digest", ExitCode.UNKNOWN)
    if json:
        await write_json({"id": image.id, "key": key, "digest": found})
    else:
        await write_lines([found])


async def _item_digest(store: ImageStore, image_id: str, key: str) -> str:
    with progress_bar(key) as bar:
        return await store.big_data_digest(image_id, key, progress=bar.show)
