"""Reads compressed archives and layers, recognized by their first bytes; blocking."""

from __future__ import annotations

import bz2
import importlib
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..errors import InvalidLayoutError

_CHUNK = 256 * 1024
_XZ_MEMORY = 128 * 1024 * 1024


class Readable(Protocol):
    """Something to read compressed data from."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes; no bytes at the end of the data."""
        ...


class _Gzip:
    def __init__(self) -> None:
        self._state = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._state.eof

    @property
    def unused_data(self) -> bytes:
        return self._state.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._state.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._state.decompress(self._state.unconsumed_tail + data, max_length)


def _xz() -> Any:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


def _zstd() -> Any:
    """Make a decompressor for zstd.

    :raises ImportError: before Python 3.14, when the backport is not installed
    """
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return importlib.import_module(name).ZstdDecompressor()


_DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": _Gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    # Frames of zstd that hold no data: pzstd writes them first, and zstd:chunked last.
    **{bytes([0x50 + number]) + b"\x2a\x4d\x18": _zstd for number in range(16)},
}

START = max(map(len, _DECOMPRESSORS))
"""How many bytes at the start of data tell whether it is compressed."""


def is_compressed(start: bytes) -> bool:
    """Return whether data that begins with these bytes is compressed."""
    return start.startswith(tuple(_DECOMPRESSORS))


class Decompressor:
    """Reads compressed data, which may be several streams one after the other.

    :param what: what to call it in messages
    :param path: the file that it is in
    """

    def __init__(self, source: Readable, what: str, path: str) -> None:
        self._source = source
        self._what = what
        self._path = path
        self._pending = source.read(_CHUNK)
        self._state = self._begin()

    def _begin(self) -> Any:
        """Return a decompressor for the stream that begins with the pending data."""
        while len(self._pending) < START and (more := self._source.read(_CHUNK)):
            self._pending += more
        for start, make in _DECOMPRESSORS.items():
            if self._pending.startswith(start):
                try:
                    return make()
                except ImportError as error:
                    raise InvalidLayoutError(
                        f"{self._what} is compressed with zstd: install aimagestore[zstd] to read "
                        "it, or decompress it first (zstd -d)",
                        path=self._path,
                    ) from error
        raise self._damaged("what follows the compressed data is not compressed")

    def _damaged(self, problem: object) -> InvalidLayoutError:
        return InvalidLayoutError(
            f"{self._what} cannot be decompressed: {problem}", path=self._path
        )

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes, which must be more than 0; no bytes at the end.

        :raises InvalidLayoutError: when the data is damaged or cut off
        """
        while True:
            if self._state.eof and not self._begin_next():
                return b""
            data, self._pending = self._pending, b""
            if not data and self._state.needs_input:
                data = self._source.read(_CHUNK)
            try:
                piece: bytes = self._state.decompress(data, size)
            except Exception as error:  # each library has an error of its own
                raise self._damaged(error) from error
            if piece:
                return piece
            if not data and self._state.needs_input and not self._state.eof:
                raise self._damaged("it is cut off")

    def _begin_next(self) -> bool:
        """Begin the next stream, if there is one. Zeros may fill the last block of a tape."""
        self._pending = self._state.unused_data
        while not self._pending.strip(b"\0"):
            self._pending = self._source.read(_CHUNK)
            if not self._pending:
                return False
        self._state = self._begin()
        return True

    def pieces(self) -> Iterator[bytes]:
        """Iterate over the rest of the data."""
        while piece := self.read(_CHUNK):
            yield piece
