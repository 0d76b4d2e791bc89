"""Image layouts that were made to do harm: refused, with nothing left behind."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import struct
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import (
    BigDataUnknownError,
    DigestMismatchError,
    ImageStore,
    InvalidLayoutError,
    SizeMismatchError,
    oci,
)
from aimagestore.oci import _tar
from aimagestore.oci._layout import DirectoryLayout

from .support.layouts import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    Maker,
    archive,
    blob_path,
    digest_of,
    encode,
    files_of,
    hello,
)
from .support.stores import open_files

MIB = 1024 * 1024
HEX = "0" * 64
LAYER_PATH = blob_path(digest_of(b"layer"))


@asynccontextmanager
async def nothing_left(store: ImageStore, tmp_path: Path) -> AsyncIterator[None]:
    """Check that what is done here leaves the store empty, and no file open."""
    before = open_files(str(tmp_path))
    yield
    assert await store.images() == []
    assert set(os.listdir(tmp_path / "store")) <= {"images.json", "images.lock"}
    assert open_files(str(tmp_path)) == before


async def refuse(
    store: ImageStore,
    tmp_path: Path,
    layout: Path,
    match: str,
    error: type[Exception] = InvalidLayoutError,
) -> None:
    """Check that an import of the layout fails with an error that names it, and changes nothing."""
    async with nothing_left(store, tmp_path):
        with pytest.raises(error, match=match) as caught:
            await oci.import_layout(store, layout)
    assert str(layout) in str(caught.value)


def with_index(index: bytes) -> Maker:
    """Return a layout with this index.json."""
    maker = hello()
    maker.files["index.json"] = index
    return maker


def of_manifest(manifest: Any) -> Maker:
    """Return a layout that lists this manifest."""
    maker = Maker()
    data = manifest if isinstance(manifest, bytes) else encode(manifest)
    maker.enter(maker.blob(data, MANIFEST))
    return maker


def with_config(**fields: Any) -> Maker:
    """Return a layout whose manifest has these fields in the descriptor of its config."""
    maker = Maker()
    config = maker.document({}, CONFIG) | fields
    maker.enter(maker.document({"schemaVersion": 2, "config": config, "layers": []}, MANIFEST))
    return maker


def with_marker(marker: bytes) -> Maker:
    """Return a layout with this file ``oci-layout``."""
    maker = hello()
    maker.files["oci-layout"] = marker
    return maker


def without(name: str) -> Maker:
    """Return a layout that lacks a file."""
    maker = hello()
    maker.omitted = name
    return maker


def with_nested_indexes(levels: int) -> Maker:
    """Return a layout of an image in an index in an index, and so on."""
    maker = Maker()
    descriptor = maker.image()
    for _ in range(levels):
        descriptor = maker.index(descriptor)
    maker.enter(descriptor)
    return maker


def with_layers(number: int) -> Maker:
    """Return a layout whose manifest lists this number of layers, which are missing."""
    maker = Maker()
    layers = [
        {"mediaType": LAYER, "digest": digest_of(b"%d" % n), "size": 1} for n in range(number)
    ]
    manifest = {"schemaVersion": 2, "config": maker.document({}, CONFIG), "layers": layers}
    maker.enter(maker.document(manifest, MANIFEST))
    return maker


def with_large_indexes(number: int, size: int) -> Maker:
    """Return a layout of one image with this number of indexes of this size."""
    maker = Maker()
    indexes = [
        maker.blob(encode({"schemaVersion": 2, "manifests": [], "n": n}).ljust(size), INDEX)
        for n in range(number)
    ]
    maker.enter(maker.index(*indexes))
    return maker


def with_two_sizes() -> Maker:
    """Return a layout whose manifest lists one layer with two sizes."""
    maker = Maker()
    layer = maker.blob(b"layer", LAYER)
    layers = [layer, layer | {"size": 6}]
    manifest = {"schemaVersion": 2, "config": maker.document({}, CONFIG), "layers": layers}
    maker.enter(maker.document(manifest, MANIFEST))
    return maker


def with_entry(**fields: Any) -> Maker:
    """Return a layout whose index.json has these fields in its entry."""
    maker = hello()
    maker.entries[0] |= fields
    return maker


BOTH = {"config": {"digest": digest_of(b""), "size": 0}, "layers": [], "manifests": []}

LAYOUTS: dict[str, tuple[Callable[[], Maker], str]] = {
    "no marker": (lambda: without("oci-layout"), "not an OCI image layout"),
    "marker of another version": (lambda: with_marker(b'{"imageLayoutVersion":"2.0.0"}'), "2.0.0"),
    "marker that says nothing": (lambda: with_marker(b"{}"), "imageLayoutVersion"),
    "large marker": (lambda: with_marker(b" " * (4 * MIB + 1)), "4194305"),
    "no index": (lambda: without("index.json"), "index.json"),
    "no layer": (lambda: without(LAYER_PATH), "is missing"),
    "empty index": (lambda: with_index(b""), "cannot be read"),
    "index is an array": (lambda: with_index(b"[]"), "object"),
    "large index": (
        lambda: with_index(b" " * (64 * MIB + 1)),
        "67108865.*limit for it is 67108864",
    ),
    "index with NaN": (lambda: with_index(b'{"schemaVersion":NaN}'), "cannot be read"),
    "index with a fraction": (lambda: with_index(b'{"schemaVersion":2.5}'), "schemaVersion"),
    "index with a huge number": (
        lambda: with_index(b'{"schemaVersion":%s}' % (b"9" * 9999)),
        "cannot",
    ),
    "index that is no UTF-8": (
        lambda: with_index(b'{"schemaVersion":2,"mediaType":"\xff"}'),
        "says that",
    ),
    "index with half a character": (
        lambda: with_index(b'{"schemaVersion":2,"mediaType":"\\ud800x"}'),
        "says that",
    ),
    "deep index": (lambda: with_index(b'{"x":' + b"[" * 1_000_000), "cannot"),
    "index of schema 1": (lambda: with_index(b'{"schemaVersion":1}'), "schema version 1"),
    "index that is a manifest": (
        lambda: with_index(b'{"schemaVersion":2,"mediaType":"%s"}' % MANIFEST.encode()),
        "says that it is of type",
    ),
    "ambiguous index": (
        lambda: with_index(encode({"schemaVersion": 2, **BOTH})),
        "only manifests have",
    ),
    "ambiguous manifest": (lambda: of_manifest({"schemaVersion": 2, **BOTH}), "only other"),
    "manifest of an old kind as well": (
        lambda: of_manifest({"schemaVersion": 2, **BOTH, "manifests": None, "fsLayers": []}),
        "that only other documents have",
    ),
    "entry that is no object": (
        lambda: with_index(b'{"schemaVersion":2,"manifests":[1]}'),
        "object",
    ),
    "entry of a negative size": (lambda: with_entry(size=-1), "no valid size"),
    "entry of an enormous size": (lambda: with_entry(size=2**63), "no valid size"),
    "entry of a large size": (lambda: with_entry(size=4 * MIB + 1), "4194305"),
    "entry of no size": (lambda: with_entry(size=None), "no valid size"),
    "entry of an unknown digest": (
        lambda: with_entry(digest=f"blake3:{HEX}"),
        "cannot be imported",
    ),
    "entry of no digest": (lambda: with_entry(digest=None), "cannot be imported"),
    "manifest of schema 1": (lambda: of_manifest({"schemaVersion": 1}), "schema version 1"),
    "manifest of no config": (lambda: of_manifest({"schemaVersion": 2}), "has no config"),
    "manifest of another type": (
        lambda: of_manifest({"schemaVersion": 2, "mediaType": INDEX}),
        "says that it is of type",
    ),
    "manifest that is no JSON": (lambda: of_manifest(b"manifest"), "cannot be read"),
    "manifest that is in no order": (lambda: of_manifest(b"\x00" * 100), "cannot be read"),
    "config with .. for a digest": (lambda: with_config(digest="../../etc"), "invalid digest"),
    "config with a path in a digest": (
        lambda: with_config(digest=f"sha256:../{HEX[3:]}"),
        "invalid digest",
    ),
    "config of an unknown digest": (lambda: with_config(digest=f"md5:{HEX[:32]}"), "invalid"),
    "config of capital digits": (lambda: with_config(digest=f"sha256:{'A' * 64}"), "invalid"),
    "config whose digest is no text": (lambda: with_config(digest=5), "str"),
    "config that is missing": (lambda: with_config(digest=f"sha256:{HEX}"), "is missing"),
    "config of null": (lambda: of_manifest(b'{"schemaVersion":2,"config":null}'), "has no config"),
    "one digest of two sizes": (with_two_sizes, "with 5 and with 6 bytes"),
    "indexes in indexes": (lambda: with_nested_indexes(9), "more than 8 deep"),
    "very many layers": (lambda: with_layers(10_001), "more than 10,000"),
    "very large manifests": (
        lambda: with_large_indexes(9, 4 * MIB),
        "bytes of manifests, which is the limit",
    ),
}


@pytest.mark.parametrize("form", ["layout", "layout.tar"])
@pytest.mark.parametrize("case", LAYOUTS)
async def test_a_malformed_layout_is_refused(
    store: ImageStore, tmp_path: Path, case: str, form: str
) -> None:
    make, match = LAYOUTS[case]
    await refuse(store, tmp_path, make().write(tmp_path / form), match)


async def test_a_layout_just_within_the_limits_is_imported(
    store: ImageStore, tmp_path: Path
) -> None:
    await oci.import_layout(store, with_nested_indexes(8).write(tmp_path / "deep"))
    await oci.import_layout(store, with_large_indexes(7, 4 * MIB).write(tmp_path / "padded"))


@pytest.mark.parametrize("form", ["layout", "layout.tar"])
@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
async def test_altered_content_is_refused(
    store: ImageStore, tmp_path: Path, form: str, part: str
) -> None:
    maker = hello()
    manifest = blob_path(maker.entries[0]["digest"])
    config = json.loads(maker.files[manifest])["config"]["digest"]
    name = {
        "layer": LAYER_PATH,
        "config": blob_path(config),
        "manifest": manifest,
    }[part]
    honest = maker.files[name]
    maker.files[name] = honest[:-1] + b"\n"
    await refuse(store, tmp_path, maker.write(tmp_path / form), "digest", DigestMismatchError)
    for altered in (honest + b"\n", honest[:-1]):
        maker.files[name] = altered
        await refuse(store, tmp_path, maker.write(tmp_path / form), "bytes", SizeMismatchError)


async def test_content_that_grows_while_it_is_read(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = hello().write(tmp_path / "layout")
    opened: list[str] = []
    real_open = DirectoryLayout.open

    def grow(self: DirectoryLayout, path: str) -> Any:
        if path == LAYER_PATH and path in opened:  # looked at before, and to be stored now
            (layout / path).write_bytes(b"layer" * MIB)
        opened.append(path)
        return real_open(self, path)

    monkeypatch.setattr(DirectoryLayout, "open", grow)
    await refuse(store, tmp_path, layout, "longer|bytes", SizeMismatchError)


# Directories


def replace_by_link(path: Path) -> None:
    path.rename(path.parent / "aside")
    path.symlink_to("aside")


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_socket(path: Path) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name[:50])
        Path(path.name[:50]).rename(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("name", ["oci-layout", "index.json", LAYER_PATH])
@pytest.mark.parametrize(
    "replace", [replace_by_link, replace_by_fifo, replace_by_directory, replace_by_socket]
)
async def test_only_files_are_opened(
    store: ImageStore, tmp_path: Path, name: str, replace: Callable[[Path], None]
) -> None:
    layout = hello().write(tmp_path / "layout")
    replace(layout / name)
    with anyio.fail_after(10):
        await refuse(store, tmp_path, layout, "is not a regular file")


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
async def test_only_directories_are_entered(store: ImageStore, tmp_path: Path, name: str) -> None:
    layout = hello().write(tmp_path / "layout")
    replace_by_link(layout / name)
    await refuse(store, tmp_path, layout, "is not a directory, but a symbolic link, .* cp -RL")


async def test_a_path_without_a_layout_is_refused(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await oci.import_layout(store, tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    with anyio.fail_after(10):
        await refuse(store, tmp_path, tmp_path / "fifo", "neither a directory nor a file")
    (tmp_path / "empty").mkdir()
    await refuse(store, tmp_path, tmp_path / "empty", "not an OCI image layout")
    (tmp_path / "file").write_bytes(b"")
    await refuse(store, tmp_path, tmp_path / "file", "file is empty")


async def test_links_are_not_written_through(store: ImageStore, tmp_path: Path) -> None:
    layout = hello().write(tmp_path / "in")
    (imported,) = await oci.import_layout(store, layout)
    for name in ("blobs", "blobs/sha256", LAYER_PATH, "index.json", "oci-layout"):
        out = hello(config={"other": 1}).write(tmp_path / f"out-{name.count('/')}{len(name)}")
        replace_by_link(out / name)
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        with pytest.raises(InvalidLayoutError):
            await oci.export_layout(store, imported.image.id, out)
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


# Tar files


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """Return a header that no library would write."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(records: bytes, kind: bytes = b"x") -> bytes:
    size = b"%011o" % len(records)
    return header(b"pax", size, kind) + records + bytes(-len(records) % 512)


def record(key: str, value: str) -> bytes:
    """Return a record of a PAX header, which begins with its own length."""
    rest = f" {key}={value}\n"
    length = next(n for n in range(len(rest), len(rest) + 9) if n == len(f"{n}{rest}"))
    return f"{length}{rest}".encode()


def negative(size: int) -> bytes:
    return b"\xff" * 4 + struct.pack(">q", size)


# Members that are refused anywhere in a tar: programs differ on where the next one begins.
TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "directory with a size": (
        lambda: member("blobs", tarfile.DIRTYPE, size=512) + bytes(512),
        "directory 'blobs/' with 512 bytes",
    ),
    "file that is called like a directory": (lambda: header(b"a/", b"1") + bytes(512), "directory"),
    "symbolic link with a size": (lambda: header(b"a", b"1000", b"2") + bytes(512), "symbolic"),
    "hard link with a size": (lambda: header(b"a", b"1000", b"1") + bytes(512), "hard link"),
    "device with a size": (lambda: header(b"a", b"1", b"3") + bytes(512), "device"),
    "FIFO with an extended size": (
        lambda: extended(record("size", "5")) + member("a", tarfile.FIFOTYPE) + bytes(512),
        "FIFO",
    ),
    "header of Solaris": (lambda: header(b"a", b"0", b"X"), "Solaris"),
    "negative size": (lambda: header(b"a", negative(-512)), "negative"),
    "negative size of an extension": (lambda: header(b"a", negative(-512), b"x"), "negative"),
    "size of 2**62": (lambda: header(b"a", b"\x80\0\0\0" + struct.pack(">q", 2**62)), "cut off"),
    "size that is no number": (lambda: header(b"a", b"abc"), "damaged"),
    "large extension": (lambda: member("a", b"x", size=65 * 1024) + bytes(66 * 1024), "header of"),
    "large long name": (lambda: member("a", b"L", size=65 * 1024) + bytes(66 * 1024), "header of"),
    "large long link": (lambda: member("a", b"K", size=65 * 1024) + bytes(66 * 1024), "header of"),
    "enormous extension": (lambda: header(b"a", b"77777777777", b"x"), "cut off"),
    "extension of no length": (lambda: extended(b"path=a\n"), "damaged"),
    "extension that is too short": (lambda: extended(b"99 path=a\n"), "damaged"),
    "extension of length 0": (lambda: extended(b"0 path=a\n"), "damaged"),
    "extension that is all digits": (lambda: extended(b"1" * 60_000), "damaged"),
    "extended size that is no number": (lambda: extended(record("size", "-5")), "'-5' bytes"),
    "extended size that is enormous": (lambda: extended(record("size", "9" * 20)), "9' bytes"),
    "extended size beyond the end": (
        lambda: extended(record("size", "9" * 19)) + member("a"),
        "cut off",
    ),
    "size for all": (lambda: extended(record("size", "5"), b"g"), "for all"),
    "link for all": (lambda: extended(record("linkpath", "a"), b"g"), "for all"),
    "file that is cut off": (lambda: member("a", size=10**6), "cut off"),
    "sparse file whose map is cut off": (lambda: sparse(b"a")[:1024], "cut off"),
    "checksum that is no number": (
        lambda: header(b"a", b"0")[:148] + b"\xff" * 8 + header(b"a", b"0")[156:],
        "damaged at byte",
    ),
    "checksum": (lambda: member("a")[:-1] + b"x", "damaged at byte"),
    "half a header": (lambda: member("a")[:300], "cut off"),
}


def body(data: bytes) -> bytes:
    """Return a tar file without the blocks that end it."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        last = tar.getmembers()[-1]
    return data[: last.offset_data + last.size + -last.size % 512]


@pytest.mark.parametrize("case", TARS)
async def test_a_malformed_tar_is_refused(store: ImageStore, tmp_path: Path, case: str) -> None:
    make, match = TARS[case]
    whole = body(archive(files_of(hello().write(tmp_path / "layout"))))
    for data in (whole + make(), make() + whole):
        (tmp_path / "a.tar").write_bytes(data)
        await refuse(store, tmp_path, tmp_path / "a.tar", match if data.startswith(whole) else ".")


def sparse(name: bytes, kept: bytes = b"x" * 512) -> bytes:
    """A sparse file of GNU's old format, with a map that takes one more block."""
    block = bytearray(header(name, b"%011o" % len(kept), b"S"))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(512) + kept


def mapped(records: list[tuple[str, str]]) -> Callable[[str], bytes]:
    """Return what makes a sparse file of a POSIX header with these records."""
    header = b"".join(record(f"GNU.sparse.{key}", value) for key, value in records)
    return lambda name: extended(header) + member(name, size=3) + b"abc".ljust(512, b"\0")


# Members that are ignored, unless they are in place of a file of the layout.
UNUSUAL: dict[str, tuple[Callable[[str], bytes], str]] = {
    "symbolic link": (lambda n: member(n, tarfile.SYMTYPE, linkname="oci-layout"), "symbolic link"),
    "symbolic link out": (lambda n: member(n, tarfile.SYMTYPE, linkname="/etc/passwd"), "link"),
    "hard link out": (lambda n: member(n, tarfile.LNKTYPE, linkname="/etc/passwd"), "hard link to"),
    "hard link to nothing": (lambda n: member(n, tarfile.LNKTYPE, linkname="no"), "hard link to"),
    "character device": (lambda n: member(n, tarfile.CHRTYPE), "device"),
    "block device": (lambda n: member(n, tarfile.BLKTYPE), "device"),
    "FIFO": (lambda n: member(n, tarfile.FIFOTYPE), "FIFO"),
    "sparse file": (lambda n: sparse(n.encode()), "sparse"),
    "sparse file of POSIX": (
        lambda n: (
            extended(record("GNU.sparse.major", "1") + record("GNU.sparse.name", n))
            + member("GNUSparseFile.1/x", size=3)
            + bytes(512)
        ),
        "sparse",
    ),
    **{
        f"sparse file with the map {records}": (mapped(records), "damaged map")
        for records in (
            [("size", "3"), ("map", "0,2")],
            [("size", "3"), ("map", "0,4")],
            [("size", "2"), ("map", "0,3")],
            [("size", "9"), ("map", "3,1,0,2")],
            [("size", "9"), ("map", "0,2,1,1")],
            [("size", "9"), ("map", "0,3,4")],
            [("size", "9"), ("map", "-1,3")],
            [("size", "9"), ("map", "0,-3")],
            [("size", "9"), ("map", "a,b")],
            [("map", "0,3")],
            [("size", "9"), ("offset", "0")],
            [("size", "9"), ("offset", "0"), ("numbytes", "4")],
            [("major", "1"), ("minor", "0"), ("realsize", "9")],
            [("major", "1"), ("minor", "0")],
        )
    },
    "unknown kind": (lambda n: member(n, b"Z", size=3) + bytes(512), "unknown type"),
    "volume": (lambda n: member(n, b"V"), "unknown type"),
    "absolute name": (lambda n: member(f"/{n}", size=3) + bytes(512), "called '/"),
    "name above": (lambda n: member(f"../{n}"), r"called '\.\./"),
    "name above, within": (lambda n: member(f"x/../{n}"), "called 'x/"),
    "name with NUL": (lambda n: extended(record("path", f"{n}\0b")) + member("b"), "called"),
    "extended name above": (lambda n: extended(record("path", f"../{n}")) + member("b"), "called"),
}


@pytest.mark.parametrize("case", UNUSUAL)
async def test_unusual_members_of_a_tar_are_ignored_unless_they_are_needed(
    store: ImageStore, tmp_path: Path, case: str
) -> None:
    make, problem = UNUSUAL[case]
    files = files_of(hello().write(tmp_path / "layout"))
    whole = body(archive(files))
    for data in (make("other") + whole, whole + make("blobs/other")):
        (tmp_path / "a.tar").write_bytes(data + bytes(1024))
        await oci.import_layout(store, tmp_path / "a.tar")
    await store.wipe()
    for name in ("index.json", LAYER_PATH):
        rest = body(archive({n: d for n, d in files.items() if n != name}))
        for data, match in [
            (rest + make(name), problem),
            (make(name) + whole, "two different members"),
            (whole + make(name), "two different members"),
        ]:
            (tmp_path / "a.tar").write_bytes(data + bytes(1024))
            await refuse(store, tmp_path, tmp_path / "a.tar", match)


async def test_harmless_oddities_of_a_tar_are_accepted(store: ImageStore, tmp_path: Path) -> None:
    files = files_of(hello().write(tmp_path / "layout"))
    index = files.pop("index.json")
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (files | {"aside/" + "x" * 120: index}).items():
            info = tarfile.TarInfo(f".//{name}")
            info.size = len(data)
            info.type = tarfile.CONTTYPE if "blobs" in name else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("index.json")
        link.type, link.linkname = tarfile.LNKTYPE, ".//aside/" + "x" * 120
        tar.addfile(link)
        # Some programs write one member twice.
        double = tarfile.TarInfo(LAYER_PATH)
        double.size = len(b"layer")
        tar.addfile(double, io.BytesIO(b"layer"))
    whole = (tmp_path / "a.tar").read_bytes()
    odd = header(b"\xff", b"0") + header(b"d/", b"0") + member("", tarfile.DIRTYPE) + member("")
    (tmp_path / "a.tar").write_bytes(odd + whole)
    (imported,) = await oci.import_layout(store, tmp_path / "a.tar")
    assert digest_of(b"layer") in imported.image.big_data_names


async def test_two_different_members_of_one_path_are_refused(
    store: ImageStore, tmp_path: Path
) -> None:
    files = files_of(hello().write(tmp_path / "layout"))
    for name in ("index.json", LAYER_PATH):
        other = archive({f"./{name}": files[name][:-1] + b"?"})
        (tmp_path / "a.tar").write_bytes(body(archive(files)) + other)
        await refuse(store, tmp_path, tmp_path / "a.tar", f"two different members '{name}'")


async def test_a_tar_of_too_many_members_is_refused(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tar, "MEMBERS_MAX", 1_000)
    (tmp_path / "a.tar").write_bytes(header(b"d", b"0", b"5") * 1_001)
    await refuse(store, tmp_path, tmp_path / "a.tar", "more than 1,000 members, .* the limit")
    (tmp_path / "a.tar").write_bytes(header(b"d", b"0", b"5") * 1_000)
    await refuse(store, tmp_path, tmp_path / "a.tar", "not an OCI image layout")


async def test_random_damage_to_a_tar_is_refused(store: ImageStore, tmp_path: Path) -> None:
    good = archive(hello().files | {"index.json": encode({"schemaVersion": 2, "manifests": []})})
    chance = random.Random(6)
    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (tmp_path / "a.tar").write_bytes(data[: chance.randint(1, len(data))])
        async with nothing_left(store, tmp_path):
            with pytest.raises((InvalidLayoutError, KeyError)):
                await oci.import_layout(store, tmp_path / "a.tar")


@pytest.mark.parametrize(
    "case",
    [case for case in LAYOUTS if case.startswith(("config ", "one digest", "manifest that"))]
    + ["ambiguous manifest", "manifest of schema 1", "manifest of no config"],
)
async def test_a_malformed_manifest_of_a_store_is_not_exported(
    store: ImageStore, tmp_path: Path, case: str
) -> None:
    maker = LAYOUTS[case][0]()
    (entry,) = maker.entries
    manifest = maker.files[blob_path(entry["digest"])]
    await store.create("one", big_data={"manifest": manifest})
    with pytest.raises((InvalidLayoutError, BigDataUnknownError)):
        await oci.export_layout(store, "one", tmp_path / "out")
    assert not (tmp_path / "out").exists()
