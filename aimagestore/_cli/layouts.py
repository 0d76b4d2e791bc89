"""Commands that import, export and copy images: from and to OCI layouts and other stores."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click
from anyio import to_thread
from msgspec.structs import replace

from .._async.copying import CopyResult, copy_images
from .._async.store import ImageStore
from .._core.references import DOCKER, full_name
from ..errors import DigestMismatchError, SizeMismatchError
from .addresses import DIR, LayoutAddress, StoreAddress, is_address, parse_address
from .completion import complete_ref
from .exits import CommandError, ExitCode, damage, usage_errors
from .files import CHUNK, STANDARD, is_terminal, reading
from .human import human_size
from .output import image_json, write_json, write_lines
from .parameters import force_option, json_option, ref_argument, refs_argument
from .progress import progress_bar
from .running import command
from .session import Session
from .streams import STANDARD_INPUT, STANDARD_OUTPUT, RawOutput

if TYPE_CHECKING:
    from ..oci import Transport

layout_argument = click.argument(
    "layout", metavar="LAYOUT", help="A directory or a tar file; - is standard input or output."
)
names_option = click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="A name for the image; several times.",
)
ref_in_layout_option = click.option(
    "--ref", metavar="NAME", help="Take only the image with this name or digest."
)
platform_option = click.option(
    "--platform", metavar="OS/ARCH", help="Take only this platform of an image."
)
name_in_layout_option = click.option(
    "--name", metavar="NAME", help="The image's name in the layout."
)


class Format(StrEnum):
    """What ``save`` writes, by podman's names."""

    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    OCI_DIR = "oci-dir"

    @property
    def transport(self) -> Transport:
        """The same by skopeo's names."""
        return "oci" if self is Format.OCI_DIR else cast("Transport", self.value)


@command(
    "import",
    """Import images from an OCI image layout, and print their IDs.

    Everything is verified. Content that the store has is not stored again. Layers are left out of a
    store of podman's, because podman keeps them elsewhere; standard error says so.
    """,
    "import hello.tar --name localhost/hello:1",
    "import layout --ref hello:1 --platform linux/arm64",
    "import - < hello.tar",
)
@layout_argument
@names_option
@ref_in_layout_option
@platform_option
@force_option
@json_option
async def import_layout(
    context: click.Context,
    layout: str,
    *,
    names: Sequence[str],
    ref: str | None,
    platform: str | None,
    force: bool,
    json: bool,
) -> None:
    await _import(context, layout, names, ref, platform, force=force, json=json)


@command(
    "load",
    "Import images as import does, with the options of podman load.",
    "load -i hello.tar",
    "load < hello.tar",
)
@click.argument("layout", metavar="LAYOUT", required=False, help="A directory or a tar file.")
@click.option("--input", "-i", metavar="LAYOUT", help="The same; the default is standard input.")
@names_option
@ref_in_layout_option
@platform_option
@force_option
@json_option
async def load(
    context: click.Context,
    layout: str | None,
    *,
    input: str | None,
    names: Sequence[str],
    ref: str | None,
    platform: str | None,
    force: bool,
    json: bool,
) -> None:
    given = _one_of(layout, input, "--input") or STANDARD
    await _import(context, given, names, ref, platform, force=force, json=json)


def _one_of(argument: str | None, value: str | None, option: str) -> str | None:
    if argument is not None and value is not None:
        raise CommandError(f"give either LAYOUT or {option}", ExitCode.USAGE)
    return value if argument is None else argument


async def _import(
    context: click.Context,
    layout: str,
    names: Sequence[str],
    ref: str | None,
    platform: str | None,
    *,
    force: bool,
    json: bool,
) -> None:
    from .. import oci  # noqa: PLC0415 - what other commands need not load

    _check_path(layout)
    if platform is not None:
        from ..oci._platform import Platform  # noqa: PLC0415 - what other commands need not load

        with usage_errors():
            Platform.parse(platform)
    await _check_source(layout)
    async with (
        Session.of(context).writing(makes=True) as store,
        _readable(layout) as readable,
    ):
        with progress_bar("import") as bar:
            imported = await oci.import_layout(
                store,
                readable,
                names=names or None,
                ref=ref,
                platform=platform,
                force=force,
                progress=bar.show,
            )
    if json:
        await write_json(
            [
                {
                    "image": image_json(each.image),
                    "is_new": each.is_new,
                    "stored": each.stored,
                    "layers_left_out": each.layers_left_out,
                }
                for each in imported
            ]
        )
    else:
        await write_lines(each.image.id for each in imported)


def _check_path(layout: str) -> None:
    if is_address(layout):
        raise CommandError(
            f"{layout} is an address, and this command takes a path: use copy, or put ./ before "
            "the path",
            ExitCode.USAGE,
        )


async def _check_source(layout: str) -> None:
    """Check that there is something to read, before a store is made for it.

    :raises CommandError: when it is a terminal
    :raises FileNotFoundError: when it is missing
    """
    if await is_terminal(layout, writes=False):
        raise CommandError(
            "an archive is not read from a terminal: give a file, or redirect it to standard input",
            ExitCode.USAGE,
        )
    if layout != STANDARD:
        await to_thread.run_sync(os.stat, layout)


@command(
    "export",
    """Export an image into an OCI image layout.

    LAYOUT becomes a tar file if it ends in .tar, or is standard output, a pipe or a device, and a
    directory otherwise. A directory that is a layout already gets one more image.
    """,
    "export localhost/hello:1 layout",
    "export localhost/hello:1 hello.tar",
)
@ref_argument
@layout_argument
@name_in_layout_option
async def export_layout(context: click.Context, ref: str, layout: str, *, name: str | None) -> None:
    _check_path(layout)
    async with Session.of(context).reading() as store:
        await _export(store, [ref], layout, name)


@command(
    "save",
    """Export images as export does, with the options of podman save.

    Several images go into one archive, or into one directory, all of them or none.
    """,
    "save -o hello.tar localhost/hello:1",
    "save localhost/hello:1 localhost/other:1 | podman load",
)
@refs_argument
@click.option(
    "--output",
    "-o",
    default=STANDARD,
    show_default=True,
    metavar="LAYOUT",
    help="Where to write.",
)
@click.option(
    "--format",
    type=click.Choice([each.value for each in Format]),
    help="The default is a tar file that all tools read.",
)
@name_in_layout_option
@click.option(
    "--multi-image-archive",
    "-m",
    is_flag=True,
    help="Ignored: several images are always allowed.",
)
async def save(
    context: click.Context,
    refs: Sequence[str],
    *,
    output: str,
    format: str | None,
    name: str | None,
    multi_image_archive: bool,
) -> None:
    del multi_image_archive
    _check_path(output)
    if name is not None and len(refs) > 1:
        raise CommandError("--name is for one image: give one REF", ExitCode.USAGE)
    transport: Transport | None = None
    if format is not None:
        transport = Format(format).transport
    elif not await to_thread.run_sync(os.path.isdir, output):
        transport = "oci-archive"
    async with Session.of(context).reading() as store:
        await _export(store, refs, output, name, transport)


async def _export(
    store: ImageStore,
    refs: Sequence[str],
    layout: str,
    name: str | None,
    transport: Transport | None = None,
) -> int:
    """Export images, and return the number of bytes written.

    :param name: the name of a single image in the layout
    :param transport: what to write; ``None`` if the layout's path decides that
    """
    from .. import oci  # noqa: PLC0415 - what other commands need not load

    target = await _writable(layout, transport)
    with damage(DigestMismatchError, SizeMismatchError), progress_bar("export") as bar:
        if len(refs) > 1:
            several = await oci.export_images(
                store, refs, target, transport=transport, progress=bar.show
            )
            return sum(each.written for each in several)
        result = await oci.export_layout(
            store, refs[0], target, name=name, transport=transport, progress=bar.show
        )
    return result.written


async def _writable(layout: str, transport: Transport | None) -> Any:
    """Return what to export into; ``-`` is standard output.

    :raises CommandError: when it is a terminal, or cannot be a directory and must be one
    """
    if await is_terminal(layout, writes=True):
        raise CommandError(
            "an archive is not written to a terminal: give a file, or redirect standard output",
            ExitCode.USAGE,
        )
    if layout != STANDARD:
        return layout
    if transport in {"oci", "dir"}:
        raise CommandError(
            "a directory cannot be written to standard output: give a path", ExitCode.USAGE
        )
    return RawOutput(STANDARD_OUTPUT)


@command(
    "copy",
    """Copy images between stores and layouts.

    Addresses are those of skopeo: containers-storage:[DRIVER@DIR]NAME, without the brackets for
    the store of --root or podman's own; oci:PATH:NAME, oci-archive:PATH:NAME,
    docker-archive:PATH:NAME, dir:PATH. Put ./ before the path of a store that looks like one.

    Everything is compared with its digest. An interrupted copy has copied each image as a whole or
    not at all; the same command copies the rest.
    """,
    "copy images backup",
    "copy images backup localhost/hello:1",
    "copy containers-storage:localhost/hello:1 oci:layout:hello:1",
    "copy docker-archive:hello.tar oci:layout:hello:1",
    "copy dir:hello 'containers-storage:[vfs@/srv]localhost/hello:1'",
    "copy oci:layout oci-archive:hello.tar",
)
@click.argument("source", metavar="SRC", help="A store, as for --root, or an address.")
@click.argument("destination", metavar="DST", help="A store or an address.")
@click.argument(
    "refs",
    metavar="REF",
    nargs=-1,
    shell_complete=complete_ref,
    help="The images of the store SRC; without any, all of them.",
)
@force_option
@json_option
async def copy(
    context: click.Context,
    source: str,
    destination: str,
    refs: Sequence[str],
    *,
    force: bool,
    json: bool,
) -> None:
    src, dst = parse_address(source), parse_address(destination)
    session = Session.of(context)
    if isinstance(src, LayoutAddress):
        if refs:
            raise CommandError(
                "SRC is a layout: give no REF, and name the image as in oci:PATH:NAME",
                ExitCode.USAGE,
            )
        if isinstance(dst, LayoutAddress):
            copied = await _copy_layout(src, dst)
        else:
            copied = await _copy_in(src, session, dst, force=force)
    else:
        if src.ref is not None:
            if refs:
                raise CommandError("SRC names the image: give no REF", ExitCode.USAGE)
            refs = (src.ref,)
        if isinstance(dst, LayoutAddress):
            copied = await _copy_out(session, src, dst, refs)
        else:
            copied = await _copy_across(session, src, dst, refs, force=force)
    if isinstance(dst, LayoutAddress) and dst.path == STANDARD:
        return  # the archive was written to it
    if json:
        await write_json(asdict(copied))
    else:
        size = human_size(copied.bytes)
        await write_lines(
            [f"{copied.images} copied, {size} of big data; {copied.present} present already"]
        )


def _session(session: Session, address: StoreAddress) -> Session:
    return session if address.root is None else replace(session, root=address.root)


async def _copy_in(
    src: LayoutAddress, session: Session, dst: StoreAddress, *, force: bool
) -> CopyResult:
    from .. import oci  # noqa: PLC0415 - what other commands need not load

    names = None if dst.ref is None else [_full(dst.ref)]
    await _check_source(src.path)
    async with (
        _session(session, dst).writing(makes=True) as store,
        _readable(src.path) as readable,
    ):
        with progress_bar("copy") as bar:
            imported = await oci.import_layout(
                store, readable, names=names, ref=src.name, force=force, progress=bar.show
            )
    new = sum(each.is_new for each in imported)
    stored = sum(each.stored for each in imported)
    return CopyResult(images=new, present=len(imported) - new, bytes=stored)


async def _copy_layout(src: LayoutAddress, dst: LayoutAddress) -> CopyResult:
    from .. import oci  # noqa: PLC0415 - what other commands need not load

    target = await _writable(dst.path, dst.transport)
    await _check_source(src.path)
    async with _readable(src.path) as readable:
        with progress_bar("copy") as bar:
            copied = await oci.copy_layout(
                readable,
                target,
                ref=src.name,
                name=_name_in_layout(dst),
                transport=dst.transport,
                progress=bar.show,
            )
    return CopyResult(images=len(copied), present=0, bytes=sum(each.written for each in copied))


async def _copy_out(
    session: Session, src: StoreAddress, dst: LayoutAddress, refs: Sequence[str]
) -> CopyResult:
    name = _name_in_layout(dst)
    if not refs or (len(refs) > 1 and (name is not None or dst.transport == DIR)):
        raise CommandError(f"name {'one image' if refs else 'an image'} to copy", ExitCode.USAGE)
    async with _session(session, src).reading() as store:
        known = [await _known(store, ref) for ref in refs]
        written = await _export(store, known, dst.path, name, dst.transport)
    return CopyResult(images=len(refs), present=0, bytes=written)


def _name_in_layout(dst: LayoutAddress) -> str | None:
    """Return the name of an image in a layout; in a docker-archive, a full one."""
    if dst.name is not None and dst.name.startswith("@"):
        raise CommandError("only SRC may name an image by its position", ExitCode.USAGE)
    if dst.name is None or dst.transport != "docker-archive":
        return dst.name
    full = _full(dst.name)
    if "@" in full:
        raise CommandError(
            f"{dst.name!r} has a digest, and a docker-archive has names with tags: give a tag",
            ExitCode.USAGE,
        )
    return full


async def _copy_across(
    session: Session, src: StoreAddress, dst: StoreAddress, refs: Sequence[str], *, force: bool
) -> CopyResult:
    if dst.ref is not None and len(refs) != 1:
        raise CommandError("DST names one image: name one image of SRC, too", ExitCode.USAGE)
    name = None if dst.ref is None else _full(dst.ref)
    async with (
        _session(session, src).reading() as source,
        _session(session, dst).writing(makes=True) as destination,
    ):
        ids = [(await source.get(await _known(source, ref))).id for ref in refs]
        with progress_bar("copy") as bar, damage(DigestMismatchError):
            copied = await copy_images(
                source, destination, ids or None, force=force, progress=bar.show
            )
        if name is not None:
            await destination.add_names(ids[0], [name])
    return copied


def _full(name: str) -> str:
    """Return the full name that skopeo gives to an image with this name."""
    full = full_name(name, DOCKER)
    if full is None:
        raise CommandError(f"{name!r} cannot be the name of an image", ExitCode.USAGE)
    return full


async def _known(store: ImageStore, ref: str) -> str:
    """Return the ref by which a store knows an image that may be given by a short name."""
    for candidate in (ref, full_name(ref), full_name(ref, DOCKER)):
        if candidate is not None and await store.exists(candidate):
            return candidate
    return ref


@asynccontextmanager
async def _readable(layout: str) -> AsyncIterator[str | BinaryIO]:
    """Return a layout's path; for standard input or a pipe, a file that can seek."""
    if layout != STANDARD and not await to_thread.run_sync(_is_pipe, layout):
        yield layout
        return
    async with reading(layout) as source:
        if source.size is not None:
            with os.fdopen(STANDARD_INPUT, "rb", closefd=False) as stream:
                yield stream
            return
        with await to_thread.run_sync(tempfile.TemporaryFile) as spooled:
            while chunk := await source.read(CHUNK):
                await to_thread.run_sync(spooled.write, chunk)
            await to_thread.run_sync(spooled.seek, 0)
            yield spooled


def _is_pipe(path: str) -> bool:
    return stat.S_ISFIFO(os.stat(path).st_mode)
