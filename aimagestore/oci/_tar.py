"""Finds the members of a tar file.

The standard library's ``tarfile`` is made for trusted archives: it takes time that grows with the
square of a header's length, and in Python 3.11 it goes backwards if a size is negative. It also
reads some archives differently from Go's tar reader, which podman and skopeo use. This module
refuses every archive in which readers would find different members. A member that cannot be used
(a link, a device, an odd name) is refused only when it is opened.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import InvalidLayoutError

BLOCK = 512
MEMBERS_MAX = 500_000
"""The most members that an archive may have."""

# The most bytes of an extended header.
_EXTENSION_MAX = 64 * 1024
# The most bytes, or numbers, of the map of a sparse file.
_MAP_MAX = 1024 * 1024
_CHUNK = 1024 * 1024

_REGULAR = (b"0", b"\0", b"7")
_DIRECTORY = b"5"
_HARD_LINK = b"1"
_SYMBOLIC_LINK = b"2"
_SPARSE = b"S"
_PAX = b"x"
_PAX_FOR_ALL = b"g"
_GNU_LONG_NAME = b"L"
_GNU_LONG_LINK = b"K"
_EXTENSIONS = (_PAX, _PAX_FOR_ALL, _GNU_LONG_NAME, _GNU_LONG_LINK)
_SOLARIS_PAX = b"X"
# If these have data, some readers skip it, and others read it as headers.
_WITHOUT_DATA = {
    _HARD_LINK: "hard link",
    _SYMBOLIC_LINK: "symbolic link",
    b"3": "device",
    b"4": "device",
    _DIRECTORY: "directory",
    b"6": "FIFO",
}
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_RECORD_LENGTH = re.compile(rb"[1-9][0-9]{0,8}")


class Member(NamedTuple):
    """Where the data of a regular file is."""

    offset: int
    size: int


class Piece(NamedTuple):
    """A part of a sparse file that is not all zeros.

    :ivar start: where in the file it is
    :ivar offset: where in the archive it is
    """

    start: int
    size: int
    offset: int


class Sparse(NamedTuple):
    """Where the data of a sparse file is: its pieces in their order, and zeros between them."""

    size: int
    pieces: tuple[Piece, ...]


class Link(NamedTuple):
    """A symbolic link to another path in the archive, or to somewhere else."""

    target: str


class Unusable(NamedTuple):
    """A member that cannot be opened, and why."""

    problem: str


_DAMAGED = Unusable("a sparse file with a damaged map")

Found = Member | Sparse | Link | Unusable


class _Extension(NamedTuple):
    """What extended headers say about the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    link: bytes | None = None
    sparse: tuple[tuple[bytes, bytes], ...] = ()


class Archive:
    """The members of an open tar file, by their paths.

    :param place: what to call it in messages
    :raises InvalidLayoutError: when it is not a tar file, is cut off, has too many members, or
        would be read differently by different readers
    """

    def __init__(self, fd: int, place: str) -> None:
        self._fd = fd
        self._place = place
        self._end = os.fstat(fd).st_size
        self._offset = 0
        self._members: dict[str, Found] = {}
        # Further members with the path of one in _members.
        self._others: dict[str, list[Found]] = {}
        self._read()

    def find(self, path: str) -> Found | None:
        """Return what is at a path.

        :raises InvalidLayoutError: when several different members are there: some readers take
            the first, and others the last
        """
        found = self._members.get(path)
        for other in self._others.get(path, ()):
            if not self._is_same(found, other):
                raise self._invalid(f"has two different members {path!r}")
        return found

    def _is_same(self, one: Found | None, other: Found) -> bool:
        if one == other:
            return True
        if not isinstance(one, Member) or not isinstance(other, Member) or one.size != other.size:
            return False
        for start in range(0, one.size, _CHUNK):
            size = min(_CHUNK, one.size - start)
            first = os.pread(self._fd, size, one.offset + start)
            if first != os.pread(self._fd, size, other.offset + start):
                return False
        return True

    def _add(self, path: str, found: Found) -> None:
        if path not in self._members:
            self._members[path] = found
        else:
            self._others.setdefault(path, []).append(found)

    def _invalid(self, problem: str) -> InvalidLayoutError:
        return InvalidLayoutError(f"{self._place} {problem}", path=self._place)

    # Headers

    def _read(self) -> None:
        extension = _Extension()
        for _ in range(MEMBERS_MAX + 1):
            header = os.pread(self._fd, BLOCK, self._offset)
            if not header.strip(b"\0") and len(header) in {0, BLOCK}:
                return
            if len(header) < BLOCK:
                raise self._invalid("is cut off")
            extension = self._read_member(header, extension)
        raise self._invalid(
            f"has more than {MEMBERS_MAX:,} members, which is the limit for an archive"
        )

    def _read_member(self, header: bytes, extension: _Extension) -> _Extension:
        """Read one header, and return what it says about the next one."""
        self._check_sum(header)
        kind = header[156:157]
        size = self._number(header[124:136])
        if kind in _EXTENSIONS:
            self._step_over(size)
            return self._read_extension(kind, size, extension)
        raw = _name_in(header) if extension.name is None else extension.name
        name = raw.decode(errors="surrogateescape")
        size = size if extension.size is None else extension.size
        if kind in _REGULAR and name.endswith("/"):
            kind = _DIRECTORY
        self._check_kind(kind, name, size)
        numbers = self._read_map(header) if kind == _SPARSE else []
        self._step_over(size)
        if kind != _DIRECTORY:
            if kind == _SPARSE:
                found = self._sparse(numbers, self._number(header[483:495]), size, 0)
            elif extension.sparse:
                found = self._posix_sparse(extension.sparse, size)
            else:
                link = extension.link
                if link is None:
                    link = header[157:257].partition(b"\0")[0]
                found = self._found(kind, size, link)
            self._add_named(name, found)
            for key, value in extension.sparse:
                if key == b"GNU.sparse.name":
                    self._add_named(value.decode(errors="surrogateescape"), found)
        return _Extension()

    def _check_kind(self, kind: bytes, name: str, size: int) -> None:
        if kind in _WITHOUT_DATA and size:
            raise self._invalid(
                f"has a {_WITHOUT_DATA[kind]} {name!r} with {size} bytes, which programs read "
                "differently"
            )
        if kind == _SOLARIS_PAX:
            raise self._invalid("has headers of Solaris, which programs read differently")

    def _found(self, kind: bytes, size: int, link: bytes) -> Found:
        target = link.decode(errors="surrogateescape")
        if kind in _REGULAR:
            return Member(self._start_of(size), size)
        if kind == _SYMBOLIC_LINK:
            return Link(target)
        if kind == _HARD_LINK:
            path, is_plain = _path_of(target)
            linked = self._members.get(path) if is_plain else None
            return linked or Unusable("a hard link to nothing in the archive")
        return Unusable(f"a {_WITHOUT_DATA.get(kind, f'member of the unknown type {kind!r}')}")

    def _add_named(self, name: str, found: Found) -> None:
        path, is_plain = _path_of(name)
        # Other readers may take it for the member of that path.
        self._add(path, found if is_plain else Unusable(f"called {name!r}"))

    def _check_sum(self, header: bytes) -> None:
        total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        found = _OCTAL.fullmatch(header[148:156])
        if found is None or total != int(found[1] or b"0", 8):
            raise self._invalid(f"is not a tar file, or is damaged at byte {self._offset}")

    def _number(self, field: bytes) -> int:
        if field[0] & 0x80:
            if field[0] != 0x80:
                raise self._invalid(f"has a negative or enormous number at byte {self._offset}")
            return int.from_bytes(field[1:], "big")
        found = _OCTAL.fullmatch(field)
        if found is None:
            raise self._invalid(f"is not a tar file, or is damaged at byte {self._offset}")
        return int(found[1] or b"0", 8)

    def _step_over(self, size: int) -> None:
        """Go on after the current block and data of this size."""
        if size > self._end - self._offset - BLOCK:
            raise self._invalid("is cut off")
        self._offset += BLOCK + size + -size % BLOCK

    def _start_of(self, size: int) -> int:
        """Return where the data begins that was just stepped over."""
        return self._offset - size - -size % BLOCK

    # Sparse files

    def _read_map(self, header: bytes) -> list[int]:
        """Return the map of a sparse file in GNU's old format, and go on to its last block."""
        numbers = self._map_in(header[386:482])
        is_continued = header[482] != 0
        while is_continued:
            self._step_over(0)
            block = os.pread(self._fd, BLOCK, self._offset)
            if len(block) < BLOCK or len(numbers) > _MAP_MAX:
                raise self._invalid("is cut off, or has a sparse file in too many pieces")
            numbers += self._map_in(block[:504])
            is_continued = block[504] != 0
        return numbers

    def _map_in(self, block: bytes) -> list[int]:
        fields = [block[start : start + 12] for start in range(0, len(block), 12)]
        used = itertools.takewhile(lambda field: field[0], fields)
        return [self._number(field) for field in used]

    def _posix_sparse(self, records: Sequence[tuple[bytes, bytes]], size: int) -> Found:
        """Return a sparse file in one of the formats with POSIX headers."""
        values = dict(records)
        try:
            if values.get(b"GNU.sparse.major") == b"1":
                numbers, skipped = self._map_before_data(size)
                return self._sparse(numbers, int(values[b"GNU.sparse.realsize"]), size, skipped)
            if b"GNU.sparse.map" in values:
                numbers = [int(text) for text in values[b"GNU.sparse.map"].split(b",")]
            else:
                keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
                numbers = [int(value) for key, value in records if key in keys]
            return self._sparse(numbers, int(values[b"GNU.sparse.size"]), size, 0)
        except (KeyError, ValueError):
            return _DAMAGED

    def _map_before_data(self, size: int) -> tuple[list[int], int]:
        """Return the map at the beginning of a member's data, and how many bytes it takes.

        :raises ValueError: when there is none
        """
        data = os.pread(self._fd, min(size, _MAP_MAX), self._start_of(size))
        count, _, rest = data.partition(b"\n")
        lines = rest.split(b"\n", 2 * int(count))
        if int(count) < 0 or len(lines) <= 2 * int(count):
            raise ValueError("the map is cut off")
        length = len(data) - len(lines[-1])
        return [int(line) for line in lines[:-1]], length + -length % BLOCK

    def _sparse(self, numbers: Sequence[int], real_size: int, size: int, skipped: int) -> Found:
        """Return a sparse file with this map, whose data was just stepped over.

        :param numbers: where each piece is in the file, and its length
        :param skipped: how many bytes of the data come before the pieces
        """
        position = self._start_of(size) + skipped
        pieces: list[Piece] = []
        end = 0
        for start, length in zip(numbers[::2], numbers[1::2], strict=False):
            if start < end or length < 0 or start + length > real_size:
                return _DAMAGED
            pieces.append(Piece(start, length, position))
            position += length
            end = start + length
        is_whole = len(numbers) % 2 == 0 and position == self._start_of(size) + size
        return Sparse(real_size, tuple(pieces)) if is_whole else _DAMAGED

    def _read_extension(self, kind: bytes, size: int, extension: _Extension) -> _Extension:
        if size > _EXTENSION_MAX:
            raise self._invalid(
                f"has an extended header of {size} bytes; the limit is {_EXTENSION_MAX}"
            )
        data = os.pread(self._fd, size, self._start_of(size))
        if kind == _GNU_LONG_NAME:
            return extension._replace(name=data.partition(b"\0")[0])
        if kind == _GNU_LONG_LINK:
            return extension._replace(link=data.partition(b"\0")[0])
        pairs = self._pax_records(data)
        records = dict(pairs)
        sparse = tuple(pair for pair in pairs if pair[0].startswith(b"GNU.sparse."))
        if kind == _PAX_FOR_ALL:
            if sparse or not records.keys().isdisjoint({b"path", b"linkpath", b"size"}):
                raise self._invalid("has a header with a name or a size for all of its members")
            return extension
        extension = extension._replace(
            name=records.get(b"path", extension.name),
            link=records.get(b"linkpath", extension.link),
            sparse=extension.sparse + sparse,
        )
        if (text := records.get(b"size")) is not None:
            if not text.isdigit() or len(text) > 19:
                raise self._invalid(f"has a member of {text[:20]!r} bytes")
            extension = extension._replace(size=int(text))
        return extension

    def _pax_records(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Split records of the form ``length key=value``, where the length counts all of it."""
        records = []
        start = 0
        while start < len(data):
            found = _RECORD_LENGTH.match(data, start)
            end = start + int(found[0]) if found else 0
            record = data[found.end() : end] if found else b""
            key, equals, value = record[1:-1].partition(b"=")
            is_whole = record.startswith(b" ") and record.endswith(b"\n") and end <= len(data)
            if not (is_whole and equals and key):
                raise self._invalid(f"has a damaged header before byte {self._offset}")
            records.append((key, value))
            start = end
        return records


def _name_in(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # In these bytes POSIX keeps the beginning of a long name, and GNU keeps times.
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
        return prefix + b"/" + name
    return name


def _path_of(name: str) -> tuple[str, bool]:
    """Return the path that some reader may find under a name, and whether every reader does."""
    text = name.partition("\0")[0]
    path = posixpath.normpath(text.lstrip("/"))
    while path.startswith("../"):
        path = path[3:]
    is_plain = text == name and not name.startswith("/") and ".." not in name.split("/")
    return path, is_plain
