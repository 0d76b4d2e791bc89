"""A file that is written, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from aimagestore._cli.files import reading, writing


async def test_cancelled_it_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    with anyio.CancelScope() as scope:
        async with writing(str(file)) as sink:
            await sink.write(b"after")
            scope.cancel()
            await sink.write(b"never")
    assert os.listdir(tmp_path) == ["file"]
    assert file.read_bytes() == b"before"


async def test_failed_it_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with writing(str(tmp_path / "file")) as sink:
            await sink.write(b"after")
            raise KeyError
    assert os.listdir(tmp_path) == []


async def test_in_and_out(tmp_path: Path) -> None:
    file = str(tmp_path / "file")
    async with writing(file) as sink:
        await sink.write(b"some")
        await sink.write(b"thing")
    async with reading(file) as source:
        assert source.size == 9
        assert await source.read(100) == b"something"
        assert await source.read(100) == b""
    async with reading("/dev/null") as source:
        assert source.size is None
