"""Archives and directories that other programs write, and compressed ones."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import (
    AmbiguousImageError,
    DigestMismatchError,
    ImageStore,
    ImageUnknownError,
    InvalidLayoutError,
    oci,
)
from aimagestore.oci import _compression

from .support.layouts import (
    CONFIG,
    LAYER,
    MANIFEST,
    REF_NAME,
    DockerArchive,
    Maker,
    archive,
    digest_of,
    encode,
    entries_of,
    files_of,
    hello,
    hex_of,
    write,
    write_dir,
)
from .support.stores import open_files

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
GZIP_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


# docker save, docker-archive


@pytest.mark.parametrize("name", ["archive.tar", "directory"])
async def test_an_image_of_docker_save_is_imported(
    store: ImageStore, tmp_path: Path, name: str
) -> None:
    saved = DockerArchive()
    image_id = saved.image(b"one", b"two", b"one", tags=["quay.io/a/b:1", "short:2"])
    (imported,) = await oci.import_layout(store, saved.write(tmp_path / name))
    image = imported.image
    assert image.id == image_id
    assert image.names == ("quay.io/a/b:1", "localhost/short:2")
    assert image.created is not None
    assert image.created.year == 2024
    assert await store.big_data(image.id, digest_of(b"two")) == b"two"
    # podman makes the same manifest, as tests/peers show.
    config = saved.files[f"{image_id}.json"]
    assert json.loads(await store.big_data(image.id, "manifest")) == {
        "schemaVersion": 2,
        "mediaType": DOCKER,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": len(config),
            "digest": f"sha256:{image_id}",
        },
        "layers": [
            {"mediaType": GZIP_LAYER, "size": 3, "digest": digest_of(data)}
            for data in (b"one", b"two", b"one")
        ],
    }
    await oci.export_layout(store, image.id, tmp_path / "out")
    (again,) = await oci.import_layout(store, tmp_path / "out")
    assert (again.stored, again.image) == (0, image)


async def test_several_images_of_docker_save_are_imported_or_selected(
    store: ImageStore, tmp_path: Path
) -> None:
    saved = DockerArchive()
    first = saved.image(b"shared", b"1", tags=["docker.io/library/a:latest"], n=1)
    second = saved.image(b"shared", b"2", tags=["docker.io/library/b:latest"], n=2)
    third = saved.image(b"shared", n=3)
    path = saved.write(tmp_path / "a.tar")
    for ref, expected in [("a", first), ("b:latest", second), ("docker.io/library/b", second)]:
        (imported,) = await oci.import_layout(store, path, ref=ref)
        assert imported.image.id == expected
    found = await oci.import_layout(store, path)
    assert [each.image.id for each in found] == [first, second, third]
    assert found[2].image.names == ()
    with pytest.raises(ImageUnknownError, match=r"library/a:latest"):
        await oci.import_layout(store, path, ref="c")
    (picked,) = await oci.import_layout(store, path, platform="linux/amd64", ref="a")
    assert picked.image.id == first


async def test_one_tag_of_two_images_of_docker_save_is_ambiguous(
    store: ImageStore, tmp_path: Path
) -> None:
    saved = DockerArchive()
    for n in (1, 2):
        saved.image(b"layer", tags=["a:1"], n=n)
    with pytest.raises(AmbiguousImageError, match="localhost/a:1"):
        await oci.import_layout(store, saved.write(tmp_path / "a.tar"))


async def test_layers_that_are_links_are_followed_within_the_archive_only(
    store: ImageStore, tmp_path: Path
) -> None:
    saved = DockerArchive()
    image_id = saved.image(b"layer")
    (path,) = saved.items[0]["Layers"]
    saved.files["blob.tar"] = saved.files.pop(path)
    await oci.import_layout(store, saved.write(tmp_path / "a.tar", (path, "../blob.tar")))
    assert (await store.get(image_id)).big_data_sizes[digest_of(b"layer")] == 5
    (tmp_path / "outside").write_bytes(b"layer")
    for target in (str(tmp_path / "outside"), "../../outside", "nothing", path.split("/")[1]):
        await store.wipe()
        with pytest.raises(InvalidLayoutError, match=r"missing|outside of it|more than 8"):
            await oci.import_layout(store, saved.write(tmp_path / "b.tar", (path, target)))
    (saved.write(tmp_path / "directory") / path).parent.mkdir()
    (tmp_path / "directory" / path).symlink_to("../blob.tar")
    with pytest.raises(InvalidLayoutError, match="not a regular file"):
        await oci.import_layout(store, tmp_path / "directory")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
async def test_compressed_layers_are_imported_decompressed(
    store: ImageStore, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    layer = os.urandom(300_000)
    saved = DockerArchive()
    image_id = saved.image(layer, b"small", pack=pack)
    await oci.import_layout(store, saved.write(tmp_path / "a.tar"))
    assert await store.big_data(image_id, digest_of(layer)) == layer
    assert await store.big_data(image_id, digest_of(b"small")) == b"small"


async def test_damaged_archives_of_docker_save_are_refused(
    store: ImageStore, tmp_path: Path
) -> None:
    def saved(**fields: Any) -> DockerArchive:
        made = DockerArchive()
        made.image(b"layer", tags=["a:1"])
        made.items[0] |= fields
        return made

    altered = saved()
    (layer,) = altered.items[0]["Layers"]
    altered.files[layer] = b"LAYER"
    longer = saved()
    longer.files[longer.items[0]["Config"]] += b" "
    incomplete = saved()
    del incomplete.files[layer]
    no_config = saved(Config="other.json")
    cut = DockerArchive()
    cut.image(os.urandom(1000), pack=lambda data: gzip.compress(data)[:-20])
    nothing = DockerArchive()
    for case, match, error in [
        (altered, "digest", DigestMismatchError),
        (longer, "config .* has the digest", DigestMismatchError),
        (incomplete, "is missing", InvalidLayoutError),
        (no_config, "config other.json is missing", InvalidLayoutError),
        (saved(Config="/etc/passwd"), "outside of it", InvalidLayoutError),
        (saved(Config="../../etc/passwd"), "outside of it", InvalidLayoutError),
        (saved(Layers=[]), "lists 1 layers, but manifest.json lists 0", InvalidLayoutError),
        (saved(Layers=["../a"]), "outside of it", InvalidLayoutError),
        (saved(RepoTags=5), "cannot be read", InvalidLayoutError),
        (cut, "cannot be decompressed: it is cut off", InvalidLayoutError),
        (nothing, "no oci-layout.*lists no image", InvalidLayoutError),
    ]:
        for name in ("a.tar", f"directory-{match[:9].replace('/', '')}"):
            with pytest.raises(error, match=match):
                await oci.import_layout(store, case.write(tmp_path / name))
            assert await store.images() == []


async def test_an_archive_from_before_docker_1_10_is_refused_with_advice(
    store: ImageStore, tmp_path: Path
) -> None:
    files = {"a/json": b"{}", "a/layer.tar": b"", "repositories": b'{"a":{"1":"a"}}'}
    with pytest.raises(InvalidLayoutError, match=r"before Docker 1\.10 .*: load it into Docker"):
        await oci.import_layout(store, write(tmp_path / "a.tar", files))


async def test_null_among_the_tags_of_docker_save_reads_as_no_tag(
    store: ImageStore, tmp_path: Path
) -> None:
    saved = DockerArchive()
    saved.image(b"layer", tags=["a:1", None])
    (imported,) = await oci.import_layout(store, saved.write(tmp_path / "a.tar"))
    assert imported.image.names == ("localhost/a:1",)


async def test_a_layout_without_an_index_is_the_archive_that_it_is_as_well(
    store: ImageStore, tmp_path: Path
) -> None:
    saved = DockerArchive()
    image_id = saved.image(b"layer", tags=["a:1"])
    saved.files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    (imported,) = await oci.import_layout(store, saved.write(tmp_path / "a.tar"))
    assert imported.image.id == image_id


async def test_missing_content_of_one_image_does_not_stop_the_import_of_another(
    store: ImageStore, tmp_path: Path
) -> None:
    saved = DockerArchive()
    saved.image(b"there", tags=["a:1"], n=1)
    saved.image(b"missing", tags=["b:1"], n=2)
    saved.image(b"there", tags=["c:1"], n=3)
    del saved.files[saved.items[1]["Layers"][0]], saved.files[saved.items[2]["Config"]]
    path = saved.write(tmp_path / "a.tar")
    await oci.import_layout(store, path, ref="a:1")
    for ref in ("b:1", "c:1", None):
        with pytest.raises(InvalidLayoutError, match="is missing"):
            await oci.import_layout(store, path, ref=ref)


async def test_both_formats_of_docker_in_one_archive_are_a_layout(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = hello()
    maker.files["manifest.json"] = encode([{"Config": "no", "RepoTags": ["no:1"], "Layers": []}])
    (imported,) = await oci.import_layout(store, maker.write(tmp_path / "a.tar"))
    assert imported.image.digest == maker.entries[0]["digest"]


async def test_an_exported_archive_can_be_loaded_by_docker_too(
    store: ImageStore, tmp_path: Path
) -> None:
    (imported,) = await oci.import_layout(store, hello().write(tmp_path / "layout"))
    await oci.export_layout(store, imported.image.id, tmp_path / "out.tar")
    files = files_of(tmp_path / "out.tar")
    (item,) = json.loads(files["manifest.json"])
    assert item["RepoTags"] == ["localhost/hello:1"]
    assert digest_of(files[item["Config"]]) == f"sha256:{imported.image.id}"
    assert [files[path] for path in item["Layers"]] == [b"layer"]
    for name, tags in [("short", ["localhost/short:latest"]), ("", None), ("No Name", None)]:
        await oci.export_layout(store, imported.image.id, tmp_path / "out.tar", name=name)
        (item,) = json.loads(files_of(tmp_path / "out.tar")["manifest.json"])
        assert item["RepoTags"] == tags
    maker = Maker()
    maker.enter(maker.index(maker.image(b"1"), maker.image(b"2")), "several:1")
    await oci.import_layout(store, maker.write(tmp_path / "several"))
    await oci.export_layout(store, "localhost/several:1", tmp_path / "out.tar")
    assert "manifest.json" not in files_of(tmp_path / "out.tar")
    await oci.export_layout(store, "localhost/hello:1", tmp_path / "out")
    assert "manifest.json" not in files_of(tmp_path / "out")


# dir:


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_an_image_in_a_dir_is_imported(
    store: ImageStore, tmp_path: Path, algorithm: str
) -> None:
    maker = Maker(algorithm)
    maker.enter(maker.image(b"layer"), "never seen")
    (imported,) = await oci.import_layout(store, write_dir(tmp_path / "dir", maker))
    assert imported.image.names == ()
    (same,) = await oci.import_layout(store, maker.write(tmp_path / "layout"), names=[])
    assert (same.image.id, same.is_new) == (imported.image.id, False)


async def test_an_index_in_a_dir_is_imported_whole_or_by_platform(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = Maker()
    platforms = [{"os": "linux", "architecture": name} for name in ("amd64", "arm64")]
    images = [maker.image(encode(p), config=p, platform=p) for p in platforms]
    maker.enter(maker.index(*images))
    path = write_dir(tmp_path / "dir", maker)
    (imported,) = await oci.import_layout(store, path)
    assert imported.image.digest == maker.entries[0]["digest"]
    (picked,) = await oci.import_layout(store, path, platform="linux/arm64")
    assert picked.image.digest == images[1]["digest"]


async def test_damaged_dirs_are_refused(store: ImageStore, tmp_path: Path) -> None:
    newer = write_dir(tmp_path / "newer", hello(), version=b"Directory Transport Version: 2.0\n")
    with pytest.raises(InvalidLayoutError, match="only 1 is understood"):
        await oci.import_layout(store, newer)
    altered = write_dir(tmp_path / "altered", hello())
    (altered / hex_of(b"layer")).write_bytes(b"LAYER")
    with pytest.raises(DigestMismatchError):
        await oci.import_layout(store, altered)
    linked = write_dir(tmp_path / "linked", hello())
    (linked / hex_of(b"layer")).rename(tmp_path / "outside")
    (linked / hex_of(b"layer")).symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidLayoutError, match="not a regular file"):
        await oci.import_layout(store, linked)
    old = tmp_path / "old"
    old.mkdir()
    media_type = "application/vnd.docker.distribution.manifest.v1+json"
    (old / "manifest.json").write_bytes(encode({"schemaVersion": 1, "mediaType": media_type}))
    with pytest.raises(ImageUnknownError, match=r"manifest\.v1"):
        await oci.import_layout(store, old)
    assert await store.images() == []


async def test_a_version_of_a_dir_needs_no_line_feed(store: ImageStore, tmp_path: Path) -> None:
    path = write_dir(tmp_path / "dir", hello(), version=b"Directory Transport Version: 1.1")
    await oci.import_layout(store, path)
    await oci.copy_layout(path, path, transport="dir")


# Sparse files


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("pieces", [0, 1, 3, 60])
async def test_sparse_files_of_a_tar_are_read_with_their_holes(
    store: ImageStore, tmp_path: Path, form: str, pieces: int
) -> None:
    """A hole reads as zeros, although the tar has no bytes for it."""
    layer = b"".join(os.urandom(4096) + bytes(65536) for _ in range(pieces)) + bytes(100_000)
    maker = Maker()
    maker.enter(maker.image(layer), "hello:1")
    layout = maker.write(tmp_path / "layout")
    with (layout / "blobs" / "sha256" / hex_of(layer)).open("wb") as file:
        for start in range(0, len(layer), 4096):
            if layer[start : start + 4096].strip(b"\0"):
                file.seek(start)
                file.write(layer[start : start + 4096])
        file.truncate(len(layer))
    options = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    command = ["tar", "-C", str(layout), *options, "--sparse", "-cf", str(tmp_path / "a.tar"), "."]
    subprocess.run(command, check=True)
    if (tmp_path / "a.tar").stat().st_size > len(layer):
        pytest.skip("needs a file system with holes")
    (imported,) = await oci.import_layout(store, tmp_path / "a.tar")
    key = digest_of(layer)
    assert await store.big_data(imported.image.id, key) == layer
    await oci.copy_layout(tmp_path / "a.tar", tmp_path / "out")
    assert files_of(tmp_path / "out")[f"blobs/sha256/{hex_of(layer)}"] == layer


# Invalid Unicode, which Go reads as U+FFFD


@pytest.mark.parametrize("odd", [b"M\xfcller", rb"\ud800", rb"\udc00\ud800", rb"a\ud800\\ud800"])
async def test_text_that_is_not_valid_unicode_does_not_stop_an_import_or_copy(
    store: ImageStore, tmp_path: Path, odd: bytes
) -> None:
    maker = hello()
    layer = maker.blob(b"layer", LAYER)
    config = b'{"os": "linux", "author": "%s", "created": "2024-05-06T07:08:09Z"}' % odd
    manifest = encode(
        {
            "schemaVersion": 2,
            "config": maker.blob(config, CONFIG),
            "layers": [layer],
            "annotations": {"author": "ODD"},
        }
    ).replace(b"ODD", odd)
    entry = maker.blob(manifest, MANIFEST)
    maker.enter(entry | {"annotations": {REF_NAME: "odd:1", "author": "ODD", "n\U0001f600": ""}})
    layout = maker.write(tmp_path / "layout")
    index = layout / "index.json"
    index.write_bytes(index.read_bytes().replace(b"ODD", odd))
    first, second = await oci.import_layout(store, layout)
    assert (first.image.names, second.image.names) == (("localhost/hello:1",), ("localhost/odd:1",))
    assert second.image.digest == entry["digest"]
    assert second.image.created is not None
    assert second.image.created.year == 2024
    assert await store.big_data(second.image.id, "manifest") == manifest
    await oci.copy_layout(layout, tmp_path / "out")
    copied = entries_of(tmp_path / "out")[1]
    assert "\ufffd" in copied["annotations"]["author"]
    assert "n\U0001f600" in copied["annotations"]


async def test_an_index_json_of_dockers_type_is_one_image(
    store: ImageStore, tmp_path: Path
) -> None:
    """Some programs write a registry's manifest list as index.json."""
    docker_list = "application/vnd.docker.distribution.manifest.list.v2+json"
    maker = Maker()
    for name in ("amd64", "arm64"):
        fields = {"os": "linux", "architecture": name}
        maker.enter(maker.image(name.encode(), config=fields, platform=fields))
    document = {"schemaVersion": 2, "mediaType": docker_list, "manifests": maker.entries}
    maker.files["index.json"] = encode(document)
    (imported,) = await oci.import_layout(store, maker.write(tmp_path / "layout"))
    assert imported.image.digest == digest_of(maker.files["index.json"])
    await oci.export_layout(store, imported.image.id, tmp_path / "out")
    (entry,) = entries_of(tmp_path / "out")
    assert entry["mediaType"] == docker_list


# Compression


def zstd_compress(data: bytes) -> bytes:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    compressed: bytes = pytest.importorskip(name).compress(data)
    return compressed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd_compress,
}


@pytest.mark.parametrize("case", PACKERS)
async def test_a_compressed_archive_is_imported_or_refused_if_damaged(
    store: ImageStore, tmp_path: Path, case: str
) -> None:
    maker = Maker()
    maker.enter(maker.image(os.urandom(100_000)), "hello:1")
    files = files_of(maker.write(tmp_path / "layout"))
    pack = PACKERS[case]
    data = archive(files)
    half = len(data) // 2
    before = open_files(str(tmp_path))
    for packed in (pack(data), pack(data) + bytes(4096), pack(data[:half]) + pack(data[half:])):
        (tmp_path / "a").write_bytes(packed)
        (imported,) = await oci.import_layout(store, tmp_path / "a")
        assert imported.image.digest == maker.entries[0]["digest"]
        await store.wipe()
    assert open_files(str(tmp_path)) - before <= open_files("images.json")
    for damaged in (pack(data)[:-20], pack(data)[:half], pack(data) + b"more"):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(InvalidLayoutError, match="cannot be decompressed"):
            await oci.import_layout(store, tmp_path / "a")


async def test_skippable_frames_of_zstd_are_skipped(store: ImageStore, tmp_path: Path) -> None:
    """pzstd puts sizes into such frames, and zstd:chunked a list of files."""
    maker = Maker()
    maker.enter(maker.image(b"layer"), "hello:1")
    data = zstd_compress(archive(files_of(maker.write(tmp_path / "layout"))))

    def skippable(number: int, content: bytes) -> bytes:
        return struct.pack("<II", 0x184D2A50 + number, len(content)) + content

    for before, after in (
        (skippable(0, b"size"), b""),
        (b"", skippable(15, os.urandom(1000))),
        (skippable(7, b""), skippable(1, b"x")),
    ):
        (tmp_path / "a").write_bytes(before + data + after)
        (imported,) = await oci.import_layout(store, tmp_path / "a")
        assert imported.image.digest == maker.entries[0]["digest"]
        await store.wipe()


@pytest.mark.parametrize("case", PACKERS)
async def test_a_compressed_stream_may_begin_at_the_end_of_a_chunk(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """The magic number of the next stream may be cut by the end of a chunk."""
    maker = Maker()
    maker.enter(maker.image(b"layer"), "hello:1")
    data = archive(files_of(maker.write(tmp_path / "layout")))
    pack = PACKERS[case]
    first = pack(data[:1000])
    (tmp_path / "a.tar").write_bytes(first + pack(data[1000:]))
    for start in range(1, 6):
        monkeypatch.setattr(_compression, "_CHUNK", len(first) + start)
        (imported,) = await oci.import_layout(store, tmp_path / "a.tar")
        assert imported.image.digest == maker.entries[0]["digest"]
        await store.wipe()


async def test_zstd_without_its_library_is_an_error_that_says_what_to_install(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.tar").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(InvalidLayoutError, match=r"install aimagestore\[zstd\].*zstd -d"):
        await oci.import_layout(store, tmp_path / "a.tar")


async def test_xz_that_needs_too_much_memory_is_refused(store: ImageStore, tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]
    data = bytearray(lzma.compress(b"x" * 100, filters=filters))
    # Compressing with a large dictionary takes much memory: only the header claims to need one.
    start, size = 12, (data[12] + 1) * 4
    data[start + 4] = 36  # 1 GiB
    checksum = zlib.crc32(data[start : start + size - 4]).to_bytes(4, "little")
    data[start + size - 4 : start + size] = checksum
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(InvalidLayoutError, match="cannot be decompressed: Memory usage limit"):
        await oci.import_layout(store, tmp_path / "a.tar")


async def test_decompressing_ends_when_the_import_is_cancelled(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tar").write_bytes(gzip.compress(archive({"x": bytes(50_000_000)}), 1))
    begun, pieces = anyio.Event(), 0
    real = _compression.Decompressor.read
    loop_token = anyio.lowlevel.current_token()

    def read(self: Any, size: int) -> bytes:
        nonlocal pieces
        pieces += 1
        if pieces == 3:
            anyio.from_thread.run_sync(begun.set, token=loop_token)
        return real(self, size)

    monkeypatch.setattr(_compression.Decompressor, "read", read)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(oci.import_layout, store, tmp_path / "a.tar")
        await begun.wait()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(10):
        while open_files(str(tmp_path / "a.tar")):
            await anyio.sleep(0.01)
    assert pieces < 100
