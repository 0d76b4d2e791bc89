"""Stores of any number of images, with records as podman writes them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import time
from itertools import count
from pathlib import Path
from typing import Any

_METADATA = '{\\"signatures-sizes\\":{\\"'
_writes = count(1)
_others = random.Random(0)


def _token() -> bytes:
    """Return a last-write token for images.lock, by which others see that they must load again."""
    return struct.pack("<QQI44s", time.time_ns(), next(_writes), os.getpid(), os.urandom(44))


def identity(number: int) -> str:
    """Return the ID of the image with a number."""
    return hashlib.sha256(b"image %d" % number).hexdigest()


def name(number: int) -> str:
    """Return the name of the image with a number."""
    return f"registry.example.com/team-{number % 97}/service-{number}:1.{number % 13}"


def manifest_digest(number: int) -> str:
    """Return the digest of the manifest of the image with a number."""
    return f"sha256:{hashlib.sha256(b'manifest %d' % number).hexdigest()}"


def record(number: int) -> dict[str, Any]:
    """Return a record as podman writes it for an image that it has pulled: four items, 1.6 kB."""
    image_id = identity(number)
    manifest = hashlib.sha256(b"manifest %d" % number).hexdigest()
    empty = hashlib.sha256(b"").hexdigest()
    items = {
        f"sha256:{image_id}": (1469 + number % 4000, image_id),
        f"manifest-sha256:{manifest}": (525 + number % 900, manifest),
        "manifest": (525 + number % 900, manifest),
        f"signature-{manifest}": (0, empty),
    }
    return {
        "id": image_id,
        "digest": f"sha256:{manifest}",
        "names": [name(number)],
        "names-history": [name(number)],
        "layer": hashlib.sha256(b"layer %d" % number).hexdigest(),
        "metadata": f'{{"signatures-sizes":{{"sha256:{manifest}":[]}}}}',
        "big-data-names": list(items),
        "big-data-sizes": {key: items[key][0] for key in sorted(items)},
        "big-data-digests": {key: f"sha256:{items[key][1]}" for key in sorted(items)},
        "created": f"2024-05-{number % 28 + 1:02}T08:15:{number % 60:02}.{number % 10**9:09}1Z",
    }


def index(images: int) -> bytes:
    """Return the text of an images.json."""
    texts = (json.dumps(record(n), separators=(",", ":")) for n in range(images))
    return f"[{','.join(texts)}]".encode()


def image_store(root: Path) -> Path:
    """Return the image store of the vfs driver in a graph root."""
    return root / "graph" / "vfs-images"


def make_store(root: Path, images: int) -> None:
    """Make a graph root with ``images`` images; their items have no files."""
    directory = image_store(root)
    directory.mkdir(parents=True, mode=0o700)
    (directory / "images.json").write_bytes(index(images))
    (directory / "images.lock").write_bytes(_token())


def copy_store(root: Path, copy: Path) -> Path:
    """Copy a graph root and sync it, so that no later sync has to write it; return the copy."""
    shutil.copytree(root, copy)
    os.sync()
    return copy


def sample(images: int, number: int) -> list[int]:
    """Return the numbers of random images, the same in each call."""
    return random.Random(images).choices(range(images), k=number)


def some(images: int, number: int) -> list[int]:
    """Return the numbers of random images, others in each call, and the same in each run."""
    return _others.choices(range(images), k=number)


class OtherWriter:
    """Another program that changes records of a store, one at a time."""

    def __init__(self, root: Path) -> None:
        self._directory = image_store(root)
        self._text = (self._directory / "images.json").read_bytes()

    def change(self, number: int) -> None:
        """Replace images.json by one in which the metadata of one record is a byte longer."""
        begin = self._text.index(b'{"id":"%s"' % identity(number).encode())
        place = self._text.index(_METADATA.encode(), begin)
        self._text = b"%b %b" % (self._text[:place], self._text[place:])
        temporary = self._directory / ".tmp-images.json"
        temporary.write_bytes(self._text)
        temporary.chmod(0o600)
        with (self._directory / "images.lock").open("r+b") as lock:
            lock.write(_token())
        temporary.rename(self._directory / "images.json")
