"""Commands about an image's items, its big data."""

from __future__ import annotations

from typing import Annotated

import typer

from .._async.store import ImageStore
from .._async.streams import BigDataReader
from ..errors import DigestMismatchError
from .completion import complete_key
from .exits import CommandError, ExitCode, damage
from .files import STANDARD, Sink, reading, writing
from .output import write_json, write_lines
from .parameters import Json, Key, NoVerify, Ref, examples
from .progress import progress_bar
from .running import command
from .session import Session


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(
        epilog=examples(
            "put localhost/hello:1 sbom sbom.json", "put localhost/hello:1 notes - < notes.txt"
        )
    )(put)
    app.command(
        epilog=examples(
            "get localhost/hello:1 manifest", "get localhost/hello:1 manifest manifest.json"
        )
    )(get)
    app.command(epilog=examples("digest localhost/hello:1", "digest localhost/hello:1 manifest"))(
        digest
    )


@command(
    """Store an item of an image, or replace it.

    An interrupted command has stored the whole item, or changed nothing.
    """
)
async def put(
    context: typer.Context,
    ref: Ref,
    key: Key,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The data; - is standard input.")],
) -> None:
    async with Session.of(context).writing() as store, reading(file) as source:
        with progress_bar(key, source.size, beside_data=source.is_terminal) as bar:
            await store.set_big_data(ref, key, source, progress=bar.show)


@command(
    """Write an item to a file or to standard output.

    The item is compared with its digest while it is written. FILE is replaced only when all of it
    is written and correct.
    """
)
async def get(
    context: typer.Context,
    ref: Ref,
    key: Key,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Where to write it; - is standard output.")
    ] = STANDARD,
    no_verify: NoVerify = False,
) -> None:
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


@command("Print the digest of an image, or of one of its items.")
async def digest(
    context: typer.Context,
    ref: Ref,
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY", autocompletion=complete_key, help="An item; without one, the image."
        ),
    ] = None,
    json: Json = False,
) -> None:
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
