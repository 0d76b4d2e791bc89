"""Where in a tar file its members are.

The standard library's ``tarfile`` is made for trusted archives: it takes time that grows with the
square of a header's length, and in Python 3.11 it goes backwards where a size is negative. It also
reads some archives in another way than the tar reader of Go, which podman and skopeo use. This
module refuses every archive in which readers would find different members. Members that are of no
use (links, devices, sparse files, odd names) are only refused when they are opened.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import NamedTuple

from ..errors import InvalidLayoutError

BLOCK = 512
MEMBERS_MAX = 500_000
"""The most members that an archive may have."""

_EXTENSION_MAX = 64 * 1024
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
# Some readers step over data behind these, and others do not.
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


class Link(NamedTuple):
    """A symbolic link to another path in the archive, or to somewhere else."""

    target: str


class Unusable(NamedTuple):
    """A member that cannot be opened, and why."""

    problem: str


Found = Member | Link | Unusable


class _Extension(NamedTuple):
    """What extended headers say of the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    link: bytes | None = None
    sparse_name: bytes | None = None
    is_sparse: bool = False


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
        # Members beyond the first of one path.
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
        """Add one member, and return what it says of the next."""
        self._check_sum(header)
        kind = header[156:157]
        size = self._number(header[124:136])
        if kind in _EXTENSIONS:
            self._step_over(size)
            return self._read_extension(kind, size, extension)
        raw = _name_in(header) if extension.name is None else extension.name
        name = raw.decode(errors="surrogateescape")
        size = size if extension.size is None else extension.size
        self._check_kind(kind, name, size)
        if kind == _SPARSE:
            self._step_over_map(header)
        self._step_over(size)
        is_directory = kind == _DIRECTORY or (kind in _REGULAR and name.endswith("/"))
        if not is_directory:
            link = header[157:257].partition(b"\0")[0] if extension.link is None else extension.link
            found = self._found(kind, size, link, is_sparse=extension.is_sparse)
            self._add_named(name, found)
            if extension.sparse_name is not None:
                self._add_named(extension.sparse_name.decode(errors="surrogateescape"), found)
        return _Extension()

    def _check_kind(self, kind: bytes, name: str, size: int) -> None:
        what = _WITHOUT_DATA.get(kind)
        if what is None and kind in _REGULAR and name.endswith("/"):
            what = "directory"
        if what is not None and size:
            raise self._invalid(
                f"has a {what} {name!r} with {size} bytes, which programs read differently"
            )
        if kind == _SOLARIS_PAX:
            raise self._invalid("has headers of Solaris, which programs read differently")

    def _found(self, kind: bytes, size: int, link: bytes, *, is_sparse: bool) -> Found:
        target = link.decode(errors="surrogateescape")
        if is_sparse or kind == _SPARSE:
            return Unusable("a sparse file: pack it without --sparse")
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
        if total != self._number(header[148:156]):
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
        """Go on behind data of this size."""
        if size > self._end - self._offset - BLOCK:
            raise self._invalid("is cut off")
        self._offset += BLOCK + size + -size % BLOCK

    def _start_of(self, size: int) -> int:
        """Return where data began that was just stepped over."""
        return self._offset - size - -size % BLOCK

    def _step_over_map(self, header: bytes) -> None:
        """Go on behind the blocks that continue the map of a sparse file."""
        is_continued = header[482] != 0
        while is_continued:
            self._step_over(0)
            block = os.pread(self._fd, BLOCK, self._offset)
            is_continued = len(block) == BLOCK and block[504] != 0

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
        records = dict(self._pax_records(data))
        is_sparse = any(key.startswith(b"GNU.sparse.") for key in records)
        if kind == _PAX_FOR_ALL:
            if is_sparse or not records.keys().isdisjoint({b"path", b"linkpath", b"size"}):
                raise self._invalid("has a name or a size for all of its members")
            return extension
        extension = extension._replace(
            name=records.get(b"path", extension.name),
            link=records.get(b"linkpath", extension.link),
            is_sparse=is_sparse or extension.is_sparse,
            sparse_name=records.get(b"GNU.sparse.name", extension.sparse_name),
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
    # Where POSIX keeps the beginning of a long name, GNU keeps times.
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
        return prefix + b"/" + name
    return name


def _path_of(name: str) -> tuple[str, bool]:
    """Return the path that a reader may take a name for, and whether every reader does."""
    text = name.partition("\0")[0]
    path = posixpath.normpath(text.lstrip("/"))
    while path.startswith("../"):
        path = path[3:]
    is_plain = text == name and not name.startswith("/") and ".." not in name.split("/")
    return path, is_plain
