"""Makes image layouts and Docker archives, well-formed ones and others."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"

Descriptor = dict[str, Any]
Links = Iterable[tuple[str, str]]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of data, with its algorithm."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def hex_of(data: bytes) -> str:
    """Return the SHA-256 of data in hex."""
    return hashlib.sha256(data).hexdigest()


def blob_path(digest: str) -> str:
    """Return where a blob is in a layout."""
    return "blobs/" + digest.replace(":", "/")


def encode(document: Any) -> bytes:
    """Return a document as JSON."""
    return json.dumps(document).encode()


class Maker:
    """Makes the files of a layout, and writes them as a directory or as a tar file.

    :ivar files: the content of each file but index.json, by path
    :ivar entries: what index.json lists
    :ivar omitted: the path of a file that is not written
    """

    def __init__(self, algorithm: str = "sha256") -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        self.entries: list[Descriptor] = []
        self.omitted = ""
        self._algorithm = algorithm

    def blob(self, data: bytes, media_type: str, **fields: Any) -> Descriptor:
        """Add a blob, and return its descriptor."""
        digest = digest_of(data, self._algorithm)
        self.files[blob_path(digest)] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **fields}

    def document(self, document: Any, media_type: str, **fields: Any) -> Descriptor:
        """Add a manifest, an index or a config."""
        return self.blob(encode(document), media_type, **fields)

    def image(self, *layers: bytes, config: Any = None, **fields: Any) -> Descriptor:
        """Add an image, and return its manifest's descriptor."""
        config = {"architecture": "amd64", "os": "linux"} | (config or {})
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.document(config, CONFIG),
            "layers": [self.blob(layer, LAYER) for layer in layers],
        }
        return self.document(manifest, MANIFEST, **fields)

    def index(self, *manifests: Descriptor, **fields: Any) -> Descriptor:
        """Add an index, and return its descriptor."""
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)}
        return self.document(document, INDEX, **fields)

    def enter(self, descriptor: Descriptor, name: str = "") -> Descriptor:
        """List something in index.json."""
        entry = descriptor | ({"annotations": {REF_NAME: name}} if name else {})
        self.entries.append(entry)
        return entry

    def write(self, path: Path) -> Path:
        """Write the layout as a directory, or as a tar file if the path ends in ``.tar``."""
        index = encode({"schemaVersion": 2, "manifests": self.entries})
        files = {"index.json": index} | self.files
        files.pop(self.omitted, None)
        return write(path, files)


def write(path: Path, files: Mapping[str, bytes], links: Links = ()) -> Path:
    """Write files to a directory, or to a tar file if the path ends in ``.tar``; return the path.

    :param links: symbolic links and their targets; only in a tar file
    """
    if path.suffix == ".tar":
        path.write_bytes(archive(files, links=links))
        return path
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def archive(
    files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT, *, links: Links = ()
) -> bytes:
    """Return a tar file of these files, and of symbolic links and their targets."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return buffer.getvalue()


def files_of(path: Path) -> dict[str, bytes]:
    """Return the files of a layout, in a directory or a tar file."""
    if path.is_file():
        with tarfile.open(path, "r:") as tar:
            return {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def entries_of(layout: Path) -> list[Descriptor]:
    """Return what index.json of a layout lists."""
    entries: list[Descriptor] = json.loads(files_of(layout)["index.json"])["manifests"]
    return entries


def hello(**fields: Any) -> Maker:
    """Return a layout of one small image, called ``hello:1``."""
    maker = Maker()
    maker.enter(maker.image(b"layer", **fields), "hello:1")
    return maker


def write_dir(path: Path, maker: Maker, *, version: bytes | None = None) -> Path:
    """Write the first image of a layout as skopeo's ``dir:`` does."""
    path.mkdir()
    first = maker.entries[0]
    for name, data in maker.files.items():
        if not name.startswith("blobs/"):
            continue
        _, algorithm, encoded = name.split("/")
        plain = encoded if algorithm == "sha256" else f"{algorithm}-{encoded}"
        is_manifest = b'"schemaVersion"' in data
        (path / (f"{plain}.manifest.json" if is_manifest else plain)).write_bytes(data)
        if first["digest"] == f"{algorithm}:{encoded}":
            (path / "manifest.json").write_bytes(data)
    (path / "version").write_bytes(version or b"Directory Transport Version: 1.1\n")
    return path


def config_of(*layers: bytes, **fields: Any) -> bytes:
    """Return the config of an image with these layers."""
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    config = {"architecture": "amd64", "os": "linux", "created": "2024-05-06T07:08:09Z"}
    return encode(config | {"rootfs": rootfs} | fields)


class DockerArchive:
    """Makes the files that ``docker save`` writes, and writes them as it does or as a directory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.items: list[dict[str, Any]] = []

    def image(self, *layers: bytes, tags: Any = (), pack: Any = bytes, **fields: Any) -> str:
        """Add an image, and return its ID.

        :param pack: compresses a layer
        """
        config = config_of(*layers, **fields)
        paths = [f"{hex_of(b'v1' + layer)}/layer.tar" for layer in layers]
        self.files |= {p: pack(layer) for p, layer in zip(paths, layers, strict=True)}
        self.files[f"{hex_of(config)}.json"] = config
        self.items.append(
            {"Config": f"{hex_of(config)}.json", "RepoTags": list(tags) or None, "Layers": paths}
        )
        return hex_of(config)

    def write(self, path: Path, *links: tuple[str, str]) -> Path:
        """Write the archive, or a directory with its files; see :func:`write`."""
        files = {**self.files, "manifest.json": encode(self.items), "repositories": b"{}"}
        return write(path, files, links)
