"""Image layouts as tests need them, honest and otherwise."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import IO, Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"

Descriptor = dict[str, Any]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


class Maker:
    """Makes the files of a layout, and writes them as a directory or as a tar file."""

    def __init__(self, algorithm: str = "sha256") -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        self.entries: list[Descriptor] = []
        self.omitted = ""
        self._algorithm = algorithm

    def blob(self, data: bytes, media_type: str, **fields: Any) -> Descriptor:
        """Add a blob, and return its descriptor."""
        digest = digest_of(data, self._algorithm)
        self.files["blobs/" + digest.replace(":", "/")] = data
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
        """Write it as a directory, or as a tar file where the path ends so."""
        index = encode({"schemaVersion": 2, "manifests": self.entries})
        files = {"index.json": index} | self.files
        files.pop(self.omitted, None)
        if path.suffix == ".tar":
            with path.open("wb") as file:
                write_archive(file, files)
            return path
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path


def archive(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar file of these files."""
    buffer = io.BytesIO()
    write_archive(buffer, files, form)
    return buffer.getvalue()


def write_archive(file: IO[bytes], files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def files_of(path: Path) -> dict[str, bytes]:
    """The files of a layout, in a directory or a tar file."""
    if path.is_file():
        with tarfile.open(path, "r:") as tar:
            return {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def hello(**fields: Any) -> Maker:
    """A layout of one small image, called ``hello:1``."""
    maker = Maker()
    maker.enter(maker.image(b"layer", **fields), "hello:1")
    return maker


def config_of(*layers: bytes, **fields: Any) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    config = {"architecture": "amd64", "os": "linux", "created": "2024-05-06T07:08:09Z"}
    return encode(config | {"rootfs": rootfs} | fields)


def hex_of(data: bytes) -> str:
    return digest_of(data).partition(":")[2]


class DockerArchive:
    """What ``docker save`` writes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.items: list[dict[str, Any]] = []

    def image(self, *layers: bytes, tags: Any = (), pack: Any = bytes, **fields: Any) -> str:
        """Add an image, and return its ID."""
        config = config_of(*layers, **fields)
        paths = [f"{hex_of(b'v1' + layer)}/layer.tar" for layer in layers]
        self.files |= {p: pack(layer) for p, layer in zip(paths, layers, strict=True)}
        self.files[f"{hex_of(config)}.json"] = config
        item = {"Config": f"{hex_of(config)}.json", "RepoTags": list(tags) or None, "Layers": paths}
        self.items.append(item)
        return hex_of(config)

    def write(self, path: Path, *links: tuple[str, str]) -> Path:
        files = {**self.files, "manifest.json": encode(self.items), "repositories": b"{}"}
        if path.suffix != ".tar":
            for name, data in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
            return path
        with tarfile.open(path, "w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            for name, target in links:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.SYMTYPE, target
                tar.addfile(member)
        return path
