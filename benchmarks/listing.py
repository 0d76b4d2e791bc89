"""Lists the images of a large store with ``aimagestore images`` and with ``podman images``.

``python -m benchmarks.listing [--images 2000] [--rounds 3] [--podman COMMAND]``, as root. Both
print the same sizes of layers and items. The ratios are of median times: of the whole programs, and
of opening the store and listing all IDs, names and sizes in a running program. The contenders take
turns, after one turn of each that does not count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from aimagestore import ImageStore, podman

OCI = "application/vnd.oci.image"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layer(number: int, parent: str) -> dict[str, Any]:
    """Return the record of a layer. It has no files: podman does not need them to list images."""
    digest = _digest(b"layer %d" % number)
    return {
        "id": digest.removeprefix("sha256:"),
        **({"parent": parent} if parent else {}),
        "created": "2024-05-01T08:15:00Z",
        "compressed-diff-digest": digest,
        "compressed-size": 1000 + number,
        "diff-digest": digest,
        "diff-size": 3000 + number,
        "uidset": [0],
        "gidset": [0],
    }


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": f"{OCI}.{kind}", "digest": digest, "size": size}


def _documents(layers: Sequence[dict[str, Any]], number: int) -> tuple[bytes, bytes]:
    """Return the config and the manifest of an image."""
    config = json.dumps(
        {
            "created": f"2024-05-{number % 28 + 1:02}T08:15:00Z",
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": {"number": str(number)}},
            "rootfs": {"type": "layers", "diff_ids": [each["diff-digest"] for each in layers]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": _descriptor("config.v1+json", _digest(config), len(config)),
        "layers": [
            _descriptor("layer.v1.tar", each["diff-digest"], each["diff-size"]) for each in layers
        ],
    }
    return config, json.dumps(manifest).encode()


async def make(graph: Path, images: int) -> None:
    """Make a graph root with this number of images. Each has three layers, two of them shared."""
    layers = [_layer(0, "")]
    layers.append(_layer(1, layers[0]["id"]))
    shared = tuple(layers)
    layers += [_layer(number, shared[-1]["id"]) for number in range(2, images + 2)]
    (graph / "vfs-layers").mkdir(parents=True)
    (graph / "vfs-layers" / "layers.json").write_text(json.dumps(layers))
    async with ImageStore(graph / "vfs-images") as store, store.transaction() as tx:
        for number, layer in enumerate(layers[2:]):
            config, manifest = _documents([*shared, layer], number)
            await tx.create(
                _digest(config).removeprefix("sha256:"),
                names=[f"registry.example.com/team-{number % 97}/service-{number}:1"],
                top_layer=layer["id"],
                big_data={
                    _digest(config): config,
                    f"manifest-{_digest(manifest)}": manifest,
                    "manifest": manifest,
                },
            )


def _timed(command: Sequence[str]) -> tuple[float, set[tuple[str, ...]]]:
    """Run a program, and return how long it took and what it listed: names, ID and size."""
    start = time.perf_counter()
    # As an installed program, it uses the bytecode of earlier runs.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    taken = time.perf_counter() - start
    rows = (line.split() for line in result.stdout.splitlines())
    return taken, {(*row[:3], *row[-2:]) for row in rows}


async def _list_in_process(path: Path) -> float:
    """Open a store, and return how long it takes to list its images with their sizes."""
    start = time.perf_counter()
    async with ImageStore(path, read_only=True) as store:
        now = await podman.snapshot(store)
        listed = [(image.id, image.names, now.size_of(image.id)) for image in now.images]
    assert all(size is not None for _, _, size in listed)
    return time.perf_counter() - start


def main() -> None:
    """Make the store, list it in turns, and print how long that takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listing")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--podman", default="podman", help="the command that runs podman")
    options = parser.parse_args()
    times: dict[str, list[float]] = {"the program": [], "the library": [], "podman": []}
    with tempfile.TemporaryDirectory(prefix="list-") as directory:
        root = Path(directory)
        graph = root / "graph"
        anyio.run(make, graph, options.images)
        where = ["--root", str(graph), "--runroot", str(root / "run"), "--storage-driver", "vfs"]
        ours = [f"{sysconfig.get_path('scripts')}/aimagestore", "--root", str(graph), "images"]
        theirs = [*shlex.split(options.podman), *where, "images"]
        for turn in range(options.rounds + 1):
            program, listed = _timed(ours)
            library = anyio.run(_list_in_process, graph / "vfs-images")
            podman_takes, expected = _timed(theirs)
            assert listed == expected, "the lists differ"
            if turn:
                for taken, new in zip(
                    times.values(), (program, library, podman_takes), strict=True
                ):
                    taken.append(new)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, median in medians.items():
        ratio = medians["podman"] / median
        print(f"{name}: {median:.2f} s for {options.images} images, podman takes {ratio:.1f} times")


if __name__ == "__main__":
    main()
