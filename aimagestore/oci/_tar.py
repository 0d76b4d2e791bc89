"""Where in a tar file its members are.

The standard library's ``tarfile`` is made for archives that are trusted: it keeps what every
header says, takes time that grows with the square of a header's length, and in Python 3.11 it goes
backwards where a size is negative. This reads what image layouts need, and refuses all else.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ..errors import InvalidLayoutError

BLOCK = 512
_MOST_MEMBERS = 100_000
_LONGEST_EXTENSION = 64 * 1024

_REGULAR = (b"0", b"\0")
_DIRECTORY = b"5"
_PAX = b"x"
_PAX_FOR_ALL = b"g"
_GNU_LONG_NAME = b"L"
_EXTENSIONS = (_PAX, _PAX_FOR_ALL, _GNU_LONG_NAME)
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ\0": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_RECORD_LENGTH = re.compile(rb"[1-9][0-9]{0,8}")


class Member(NamedTuple):
    """Where a member's data is."""

    offset: int
    size: int


class _Said(NamedTuple):
    """What extensions say of the member that follows them."""

    name: bytes | None = None
    size: int | None = None


class _Archive:
    def __init__(self, fd: int, place: str) -> None:
        self._fd = fd
        self._place = place
        self._end = os.fstat(fd).st_size
        self._offset = 0
        self.members: dict[str, Member] = {}

    def invalid(self, problem: str) -> InvalidLayoutError:
        return InvalidLayoutError(f"{self._place} {problem}", path=self._place)

    def read(self) -> None:
        """Go through all headers."""
        self._refuse_compressed()
        said = _Said()
        for _ in range(_MOST_MEMBERS):
            header = os.pread(self._fd, BLOCK, self._offset)
            if not header.strip(b"\0") and len(header) in {0, BLOCK}:
                return
            if len(header) < BLOCK:
                raise self.invalid("is cut off")
            said = self._read_member(header, said)
        raise self.invalid(f"has more than {_MOST_MEMBERS:,} members")

    def _refuse_compressed(self) -> None:
        start = os.pread(self._fd, 8, 0)
        for magic, command in _COMPRESSED.items():
            if start.startswith(magic):
                raise self.invalid(f"is compressed: decompress it first ({command})")

    def _read_member(self, header: bytes, said: _Said) -> _Said:
        """Take in one member, and return what it says of the next."""
        self._check_sum(header)
        kind = header[156:157]
        size = self._number(header[124:136])
        if kind in _EXTENSIONS:
            self._step_over(size)
            return self._read_extension(kind, size, said)
        name = self._name(header if said.name is None else None, said.name)
        if kind in _REFUSED or kind not in (*_REGULAR, _DIRECTORY):
            what = _REFUSED.get(kind, f"of the unknown type {kind!r}")
            raise self.invalid(f"has a member {name!r} that is {what}")
        path = self._path(name, is_directory=kind == _DIRECTORY)
        size = size if said.size is None else said.size
        self._step_over(size)
        if kind != _DIRECTORY:
            if path in self.members:
                raise self.invalid(f"has two members {path!r}")
            self.members[path] = Member(self._start_of(size), size)
        return _Said()

    def _check_sum(self, header: bytes) -> None:
        total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if total != self._number(header[148:156]):
            raise self.invalid(f"is no tar file, or is damaged at byte {self._offset}")

    def _number(self, field: bytes) -> int:
        if field[0] & 0x80:
            if field[0] != 0x80:
                raise self.invalid(f"has a negative or enormous number at byte {self._offset}")
            return int.from_bytes(field[1:], "big")
        found = _OCTAL.fullmatch(field)
        if found is None:
            raise self.invalid(f"is no tar file, or is damaged at byte {self._offset}")
        return int(found[1] or b"0", 8)

    def _step_over(self, size: int) -> None:
        """Go on behind data of this size."""
        if size > self._end - self._offset - BLOCK:
            raise self.invalid("is cut off")
        self._offset += BLOCK + size + -size % BLOCK

    def _start_of(self, size: int) -> int:
        """Where data began that was just stepped over."""
        return self._offset - size - -size % BLOCK

    def _read_extension(self, kind: bytes, size: int, said: _Said) -> _Said:
        if size > _LONGEST_EXTENSION:
            raise self.invalid(f"has a header of {size} bytes, more than {_LONGEST_EXTENSION}")
        data = os.pread(self._fd, size, self._start_of(size))
        if kind == _GNU_LONG_NAME:
            return said._replace(name=data.rstrip(b"\0"))
        records = dict(self._pax_records(data))
        if any(key.startswith(b"GNU.sparse.") for key in records):
            raise self.invalid("has a sparse file")
        if kind == _PAX_FOR_ALL:
            if not records.keys().isdisjoint({b"path", b"size"}):
                raise self.invalid("has a name or a size for all of its members")
            return said
        said = said._replace(name=records.get(b"path", said.name))
        if (text := records.get(b"size")) is not None:
            if not text.isdigit() or len(text) > 19:
                raise self.invalid(f"has a member of {text[:20]!r} bytes")
            said = said._replace(size=int(text))
        return said

    def _pax_records(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Records of the form ``length key=value``, where the length is that of all of it."""
        records = []
        start = 0
        while start < len(data):
            found = _RECORD_LENGTH.match(data, start)
            end = start + int(found[0]) if found else 0
            record = data[found.end() : end] if found else b""
            key, equals, value = record[1:-1].partition(b"=")
            is_whole = record.startswith(b" ") and record.endswith(b"\n") and end <= len(data)
            if not (is_whole and equals and key):
                raise self.invalid(f"has a damaged header before byte {self._offset}")
            records.append((key, value))
            start = end
        return records

    def _name(self, header: bytes | None, said: bytes | None) -> str:
        raw = said
        if header is not None:
            raw = header[:100].partition(b"\0")[0]
            # Where POSIX keeps the beginning of a long name, GNU keeps times.
            if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
                raw = prefix + b"/" + raw
        assert raw is not None
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.invalid(f"has a member whose name is not UTF-8: {raw[:80]!r}") from error

    def _path(self, name: str, *, is_directory: bool) -> str:
        """The name as a path below the layout, ``""`` for the layout itself."""
        path = name.removesuffix("/") if is_directory else name
        if is_directory and path in {".", ""} and not name.startswith("/"):
            return ""
        path = path.removeprefix("./")
        if "\0" in path or any(part in {"", ".", ".."} for part in path.split("/")):
            raise self.invalid(f"has a member {name!r}, which would be outside of the layout")
        return path


def read_members(fd: int, place: str) -> dict[str, Member]:
    """The regular files in an open tar file, by their paths.

    :param place: what to call it in messages
    :raises InvalidLayoutError: when it is no tar file, is compressed or cut off, or has links,
        devices, sparse files, names that lead elsewhere or occur twice, or too many members
    """
    archive = _Archive(fd, place)
    archive.read()
    return archive.members
