"""Other programs' archives and directories, presented as OCI image layouts; blocking.

The files decide which kind it is, as for ``podman load``. With ``oci-layout`` and ``index.json`` it
is an OCI layout. Without one of them, ``manifest.json`` decides: ``docker save`` and podman's
``docker-archive`` write a list there, skopeo's ``dir:`` an object.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import msgspec

from .._core.digest import CANONICAL, canonical_digest, is_digest
from .._core.references import full_name
from ..errors import DigestMismatchError, InvalidLayoutError
from ._closure import Closure
from ._compression import START, Decompressor, is_compressed
from ._documents import (
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    INDEX_FILE,
    INDEX_MAX,
    LAYOUT_FILE,
    MANIFEST,
    MARKER,
    NULL,
    blob_path,
    decode,
    media_type_of,
)
from ._layout import Layout, LayoutFile, has_file, open_files, read_whole
from ._naming import REF_NAME

MANIFEST_FILE = "manifest.json"


class _Types(NamedTuple):
    """The media types of a manifest that is made here, and of what it refers to."""

    manifest: str
    config: str
    layer: str


# podman's manifests give this type to layers without compression as well.
_DOCKER = _Types(
    DOCKER_MANIFEST, DOCKER_CONFIG, "application/vnd.docker.image.rootfs.diff.tar.gzip"
)
_OCI = _Types(MANIFEST, CONFIG, "application/vnd.oci.image.layer.v1.tar")

_LINKS_MAX = 8
# Names of a config that contain its digest, in the spellings of several programs.
_NAMED_BY_DIGEST = re.compile(r"(?:.*/)?(?:sha256:)?([0-9a-f]{64})(?:\.json)?")
VERSION_FILE, VERSION = "version", b"Directory Transport Version: 1.1\n"
_VERSION = re.compile(rb"Directory Transport Version: 1\.\d+\s*")


class _Bytes(io.BytesIO):
    @property
    def size(self) -> int:
        return len(self.getbuffer())


class _DecompressedFile:
    """A compressed file of a layout, decompressed while it is read."""

    def __init__(self, file: LayoutFile, size: int, what: str, path: str) -> None:
        self._file = file
        self._decompressor = Decompressor(file, what, path)
        self.size = size

    def read(self, size: int) -> bytes:
        return self._decompressor.read(size)

    def close(self) -> None:
        self._file.close()


class _ForeignLayout:
    """The files of an OCI layout, made from those of another format."""

    positions: Sequence[int] | None = None

    def __init__(self, files: Layout) -> None:
        self.place = files.place
        self._files = files
        self._made: dict[str, bytes] = {LAYOUT_FILE: MARKER}

    def open(self, path: str) -> LayoutFile:
        made = self._made.get(path)
        return _Bytes(made) if made is not None else self._open_blob(path)

    def _open_blob(self, path: str) -> LayoutFile:
        raise NotImplementedError

    def link_target(self, path: str) -> str | None:
        return None

    def close(self) -> None:
        self._files.close()

    def _make(self, data: bytes) -> tuple[str, int]:
        """Add a blob, and return its digest and size."""
        digest = canonical_digest(data)
        self._made[blob_path(digest)] = data
        return digest, len(data)

    def _make_index(self, entries: list[dict[str, Any]]) -> None:
        index = {"schemaVersion": 2, "manifests": entries}
        self._made[INDEX_FILE] = msgspec.json.encode(index)

    def _invalid(self, problem: str) -> InvalidLayoutError:
        return InvalidLayoutError(f"{self.place}: {problem}", path=self.place)


class _Item(msgspec.Struct, rename="pascal"):
    """One image in the manifest.json of ``docker save``."""

    config: str
    repo_tags: list[str | None] | None = None
    layers: list[str] | None = None


class _RootFS(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    rootfs: msgspec.Raw = NULL


class DockerArchive(_ForeignLayout):
    """What ``docker save`` writes, and podman's ``docker-archive``.

    It has no manifests. Each image gets the manifest that podman makes for it, with the same
    digest. That lists the layers by their digests without compression.

    :param types: the media types of the manifests
    :param check: called now and then while layers are read; what it raises ends that
    :raises InvalidLayoutError: when it is damaged, or refers to files outside of it
    :raises DigestMismatchError: when a config does not have the digest in its name
    """

    def __init__(
        self, files: Layout, manifest: bytes, types: _Types, check: Callable[[], object]
    ) -> None:
        super().__init__(files)
        self._types = types
        self._check = check
        # Path in the layout to path in the archive, of layers and configs.
        self._sources: dict[str, str] = {}
        # Path in the archive to size without compression, of compressed layers.
        self._decompressed: dict[str, int] = {}
        listed = decode(manifest, list[msgspec.Raw], MANIFEST_FILE, self.place, INDEX_MAX)
        items = [decode(raw, _Item, MANIFEST_FILE, self.place, INDEX_MAX) for raw in listed]
        if not items:
            raise self._invalid(
                f"not an OCI image layout (it has no {LAYOUT_FILE}), and its {MANIFEST_FILE} "
                "lists no image"
            )
        entries: list[dict[str, Any]] = []
        positions: list[int] = []
        for position, item in enumerate(items):
            digest, size = self._make(self._manifest_of(item))
            entry = {"mediaType": self._types.manifest, "digest": digest, "size": size}
            tags = [{"annotations": {REF_NAME: tag}} for tag in item.repo_tags or () if tag]
            entries += [entry | tag for tag in tags or [{}]]
            positions += [position] * (len(entries) - len(positions))
        self.positions = positions
        self._make_index(entries)

    def _manifest_of(self, item: _Item) -> bytes:
        path = self._resolve(item.config)
        config: dict[str, Any] = {"mediaType": self._types.config, "size": 0, "digest": ""}
        named = _NAMED_BY_DIGEST.fullmatch(item.config)
        try:
            data = read_whole(self._files, path)
        except FileNotFoundError:
            # Only an image that is selected needs its config: let the manifest list one that is
            # missing.
            if named is None:
                raise self._invalid(f"the config {item.config} is missing") from None
            return self._encoded(config | {"digest": f"{CANONICAL}:{named[1]}"}, [])
        config["size"], config["digest"] = len(data), canonical_digest(data)
        if named is not None and config["digest"] != f"{CANONICAL}:{named[1]}":
            raise DigestMismatchError(
                f"{self.place}: the config {item.config} has the digest {config['digest']}",
                path=self.place,
                expected=f"{CANONICAL}:{named[1]}",
                actual=config["digest"],
            )
        self._sources[blob_path(config["digest"])] = path
        return self._encoded(config, self._layers_of(item, data))

    def _layers_of(self, item: _Item, config: bytes) -> list[dict[str, Any]]:
        what = f"config {item.config}"
        rootfs = decode(config, _Config, what, self.place).rootfs
        known = _RootFS() if rootfs == NULL else decode(rootfs, _RootFS, what, self.place)
        digests, paths = known.diff_ids or [], item.layers or []
        if len(digests) != len(paths):
            raise self._invalid(
                f"{what} lists {len(digests)} layers, but {MANIFEST_FILE} lists {len(paths)}"
            )
        layers = []
        for digest, layer in zip(digests, paths, strict=True):
            if not is_digest(digest):
                raise self._invalid(f"{what} lists a layer with the invalid digest {digest!r}")
            path = self._sources.setdefault(blob_path(digest), self._resolve(layer))
            size = self._size_of(path) or 0
            layers.append({"mediaType": self._types.layer, "size": size, "digest": digest})
        return layers

    def _encoded(self, config: dict[str, Any], layers: list[dict[str, Any]]) -> bytes:
        manifest = {"schemaVersion": 2, "mediaType": self._types.manifest}
        return msgspec.json.encode(manifest | {"config": config, "layers": layers})

    def _resolve(self, path: str) -> str:
        """Return the path in the archive to which a path leads through symbolic links.

        :raises InvalidLayoutError: when that is outside of the archive
        """
        path = posixpath.normpath(path)
        for _ in range(_LINKS_MAX):
            if path.startswith("/") or path.split("/")[0] == ".." or "\0" in path:
                raise self._invalid(f"it refers to {path}, which is outside of it")
            target = self._files.link_target(path)
            if target is None:
                return path
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        raise self._invalid(f"{path} leads through more than {_LINKS_MAX} symbolic links")

    def _size_of(self, path: str) -> int | None:
        """Return the size of a layer without compression; ``None`` if it is missing."""
        if path in self._decompressed:
            return self._decompressed[path]
        try:
            file = self._files.open(path)
        except FileNotFoundError:
            return None
        with closing(file):
            if not is_compressed(file.read(START)):
                return file.size
        size = self._decompressed[path] = self._measure(path)
        return size

    def _measure(self, path: str) -> int:
        size = 0
        with closing(self._files.open(path)) as file:
            for piece in Decompressor(file, f"{self.place}: {path}", self.place).pieces():
                self._check()
                size += len(piece)
        return size

    def _open_blob(self, path: str) -> LayoutFile:
        source = self._sources.get(path)
        if source is None:
            raise FileNotFoundError(f"{self.place} has no {path}")
        file = self._files.open(source)
        size = self._decompressed.get(source)
        if size is None:
            return file
        return _DecompressedFile(file, size, f"{self.place}: {source}", self.place)


class DirTransport(_ForeignLayout):
    """What skopeo's ``dir:`` writes: a manifest, and blobs named by their digests.

    :raises InvalidLayoutError: when it is of a version that is not understood
    """

    def __init__(self, files: Layout, manifest: bytes) -> None:
        super().__init__(files)
        check_version(files)
        media_type = media_type_of(manifest, MANIFEST_FILE, self.place)
        digest, size = self._make(manifest)
        self._make_index([{"mediaType": media_type, "digest": digest, "size": size}])

    def _open_blob(self, path: str) -> LayoutFile:
        _, algorithm, encoded = path.split("/")
        digest = f"{algorithm}:{encoded}"
        try:
            return self._files.open(name_in_dir(digest))
        except FileNotFoundError:
            return self._files.open(name_in_dir(digest, is_manifest=True))


def check_version(files: Layout) -> bool:
    """Check the file with the version of a ``dir:``; ``False`` if it is missing.

    :raises InvalidLayoutError: when it is of a version that is not understood
    """
    try:
        version = read_whole(files, VERSION_FILE)
    except FileNotFoundError:
        return False
    if not _VERSION.fullmatch(version):
        raise InvalidLayoutError(
            f"{files.place} is a dir: of version {version[:80]!r}; only 1 is understood",
            path=files.place,
        )
    return True


def name_in_dir(digest: str, *, is_manifest: bool = False) -> str:
    """Return the name of a file in a ``dir:``.

    :param is_manifest: whether it is a manifest that an index lists, and not a blob
    """
    algorithm, _, encoded = digest.partition(":")
    name = encoded if algorithm == CANONICAL else f"{algorithm}-{encoded}"
    return f"{name}.{MANIFEST_FILE}" if is_manifest else name


def docker_manifest(images: Iterable[tuple[Closure, Sequence[str]]]) -> bytes | None:
    """Return the ``manifest.json`` that lets ``docker load`` read an archive of these images.

    :param images: the images, and the names of each in the archive
    :returns: ``None`` when ``docker load`` cannot read one of them, because it has several
        platforms, is not an image, or lacks layers
    """
    items: dict[str, dict[str, Any]] = {}
    for closure, names in images:
        root = closure.root
        config, *layers = closure.parts.get(root.digest, (root,))
        is_docker = root.media_type == DOCKER_MANIFEST
        is_image = root.is_manifest and (is_docker or config.is_image_config)
        if not is_image or any(layer.is_foreign for layer in layers):
            return None
        item = items.setdefault(
            root.digest,
            {
                "Config": blob_path(config.digest),
                "RepoTags": None,
                "Layers": [blob_path(layer.digest) for layer in layers],
            },
        )
        full = [name for name in map(full_name, names) if name is not None and "@" not in name]
        tags = dict.fromkeys([*(item["RepoTags"] or ()), *full])
        item["RepoTags"] = list(tags) or None
    return msgspec.json.encode(list(items.values()))


def open_layout(layout: Any, check: Callable[[], object], *, prefers_oci: bool = False) -> Layout:
    """Open what is at a path, or a file that is open already, as an OCI layout.

    :param check: called now and then where that takes long; what it raises ends it
    :param prefers_oci: whether manifests that have to be made are of OCI's type, and not of
        Docker's, which podman makes: in a layout, skopeo finds only OCI's by their names
    :raises InvalidLayoutError: when it is something else, or damaged
    :raises DigestMismatchError: when a config of a ``docker-archive`` has another digest
    """
    files = open_files(layout, check)
    try:
        is_layout = has_file(files, LAYOUT_FILE) and has_file(files, INDEX_FILE)
        if is_layout or not has_file(files, MANIFEST_FILE):
            return files
        manifest = read_whole(files, MANIFEST_FILE, INDEX_MAX)
        if manifest.lstrip(b" \t\r\n").startswith(b"["):
            return DockerArchive(files, manifest, _OCI if prefers_oci else _DOCKER, check)
        return DirTransport(files, manifest)
    except BaseException:
        files.close()
        raise
