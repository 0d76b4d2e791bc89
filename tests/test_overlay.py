"""A store in the lower layer of an overlay: another process commits, and readers see it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio.to_thread
import pytest

from aimagestore import ImageStore

_CREATE = """
import anyio, sys
from aimagestore import ImageStore
async def main():
    async with ImageStore(sys.argv[1]) as store:
        if await store.exists("a"):
            await store.set_metadata("a", sys.argv[2])
        else:
            await store.create("a", metadata=sys.argv[2], big_data={"k": b"old"})
anyio.run(main)
"""


def write(path: Path, metadata: str) -> None:
    """Commit in another process."""
    subprocess.run([sys.executable, "-c", _CREATE, str(path), metadata], check=True)


@pytest.fixture
def overlaid(tmp_path: Path) -> Iterator[Path]:
    """The path of a store whose files are in the lower layer."""
    # overlayfs cannot be the upper layer of another one, which a container's files often are.
    upper = Path(tempfile.mkdtemp(prefix="aimagestore-", dir="/dev/shm"))
    names = [tmp_path / "lower", upper / "upper", upper / "work", tmp_path / "merged"]
    for name in names:
        name.mkdir(parents=True)
    write(names[0] / "store", "old")
    options = f"lowerdir={names[0]},upperdir={names[1]},workdir={names[2]}"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(names[3])]
    try:
        try:
            mounted = subprocess.run(command, check=False, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"cannot mount an overlay here: {error}")
        if mounted.returncode:
            pytest.skip(f"cannot mount an overlay here: {mounted.stderr.strip()}")
        try:
            yield names[3] / "store"
        finally:
            subprocess.run(["umount", str(names[3])], check=True)
    finally:
        shutil.rmtree(upper)


@pytest.mark.parametrize("read_only", [True, False])
async def test_a_commit_is_seen_where_the_index_was_in_the_lower_layer(
    overlaid: Path, read_only: bool
) -> None:
    async with ImageStore(overlaid, read_only=read_only) as store:
        assert await store.metadata("a") == "old"
        for text in ("new", "newer"):
            await anyio.to_thread.run_sync(write, overlaid, text)
            assert await store.metadata("a") == text
            assert await store.big_data("a", "k") == b"old"
