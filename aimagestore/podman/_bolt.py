"""Reads one bucket of a bbolt database, in which podman 4 keeps its state.

A bbolt file is a tree of pages, which are copied before they are changed. Two meta pages at the
beginning name the roots of the last two versions.
"""

from __future__ import annotations

import mmap
import struct

_MAGIC = 0xED0CDAED
_BRANCH = 1
_LEAF = 2
_IS_BUCKET = 1
_DEPTH_MAX = 16
_PAGE_SIZES = (4096, 8192, 16384, 65536)

_PAGE = struct.Struct("<QHHI")  # ID, flags, number of elements, overflow
_META = struct.Struct("<IIII QQ QQQQ")  # magic, …, page size, …, root, …, transaction, checksum
_LEAF_ELEMENT = struct.Struct("<IIII")  # flags, offset from here, sizes of key and value
_BRANCH_ELEMENT = struct.Struct("<IIQ")  # offset from here, size of key, page
_BUCKET = struct.Struct("<QQ")  # root page, sequence


def read_bucket(path: str, name: bytes) -> dict[bytes, bytes] | None:
    """Return the entries of a top-level bucket; ``None`` if it cannot be read. Blocking."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Database(data).bucket(name)
    except (OSError, ValueError, struct.error, LookupError):
        # Damaged, or written to at this moment.
        return None


class _Database:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        metas = []
        for offset in (0, *_PAGE_SIZES):
            body = data[offset + _PAGE.size : offset + _PAGE.size + _META.size]
            if len(body) == _META.size:
                magic, _, size, _, root, _, _, _, transaction, checksum = _META.unpack(body)
                if magic == _MAGIC and checksum == _fnv(body[:-8]):
                    metas.append((transaction, size, root))
        _, self._page_size, self._root = max(metas)

    def bucket(self, name: bytes) -> dict[bytes, bytes]:
        for is_bucket, key, value in self._elements(self._root * self._page_size, _DEPTH_MAX):
            if is_bucket and key == name:
                root, _ = _BUCKET.unpack_from(value)
                if root:
                    found = self._elements(root * self._page_size, _DEPTH_MAX)
                else:  # a small bucket is stored in its own element
                    found = _leaf(value, _BUCKET.size)
                return {key: value for is_bucket, key, value in found if not is_bucket}
        raise LookupError(name)

    def _elements(self, offset: int, depth: int) -> list[tuple[bool, bytes, bytes]]:
        _, flags, count, _ = _PAGE.unpack_from(self._data, offset)
        if flags & _LEAF:
            return _leaf(self._data, offset)
        if not flags & _BRANCH or not depth:
            raise LookupError(offset)
        found = []
        for number in range(count):
            at = offset + _PAGE.size + number * _BRANCH_ELEMENT.size
            _, _, page = _BRANCH_ELEMENT.unpack_from(self._data, at)
            found += self._elements(page * self._page_size, depth - 1)
        return found


def _leaf(data: bytes | mmap.mmap, offset: int) -> list[tuple[bool, bytes, bytes]]:
    _, _, count, _ = _PAGE.unpack_from(data, offset)
    found = []
    for number in range(count):
        at = offset + _PAGE.size + number * _LEAF_ELEMENT.size
        flags, position, key_size, value_size = _LEAF_ELEMENT.unpack_from(data, at)
        key = at + position
        value = key + key_size
        found.append((bool(flags & _IS_BUCKET), data[key:value], data[value : value + value_size]))
    return found


def _fnv(data: bytes) -> int:
    """Return the 64-bit FNV-1a hash, the checksum of meta pages."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value
