"""An image layout to read from, a directory or a tar file; blocking."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol

from .._directory.files import Directory
from .._engine.items import MANIFEST_MAX
from ..errors import InvalidLayoutError
from ._compression import START, Decompressor, is_compressed
from ._documents import too_large
from ._tar import Archive, Link, Member, Sparse, Unusable


class LayoutFile(Protocol):
    """An open file of a layout."""

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes; no bytes at the end of the data."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class Layout(Protocol):
    """The files of a layout, none of them opened through a link.

    :ivar place: what to call it in messages
    """

    place: str

    @property
    def positions(self) -> Sequence[int] | None:
        """The position of each index entry's image; ``None`` if each entry has its own."""
        ...

    def open(self, path: str) -> LayoutFile:
        """Open the file at a path below the layout.

        :raises FileNotFoundError: when there is none
        :raises InvalidLayoutError: when it is not a regular file
        """
        ...

    def link_target(self, path: str) -> str | None:
        """Return where a symbolic link leads; ``None`` if it is none, or must not be followed."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class LayoutDirectory(Directory):
    """A directory of a layout. What is damaged in it is an :class:`InvalidLayoutError`."""

    def corrupt(self, name: str, problem: str) -> InvalidLayoutError:
        path = self.path_of(name)
        if os.path.islink(path):
            problem += ", but a symbolic link, which is not followed: copy the layout with cp -RL"
        return InvalidLayoutError(f"{path} {problem}", path=path)


class _OpenFile(io.FileIO):
    @property
    def size(self) -> int:
        return os.fstat(self.fileno()).st_size


class DirectoryLayout:
    """A layout in a directory."""

    positions: Sequence[int] | None = None

    def __init__(self, root: LayoutDirectory) -> None:
        self.place = root.path
        self._root = root

    def open(self, path: str) -> LayoutFile:
        *folders, name = path.split("/")
        with ExitStack() as stack:
            directory = self._root
            for folder in folders:
                directory = stack.enter_context(directory.open_directory(folder))
            return _OpenFile(directory.open_file(name), "rb")

    def link_target(self, path: str) -> str | None:
        return None

    def close(self) -> None:
        self._root.close()


class _OpenMember:
    def __init__(self, fd: int, member: Member) -> None:
        self._fd = fd
        self._offset, self.size = member
        self._end = self._offset + self.size

    def read(self, size: int) -> bytes:
        data = os.pread(self._fd, min(size, self._end - self._offset), self._offset)
        self._offset += len(data)
        return data

    def close(self) -> None:
        pass


class _OpenSparse:
    """A sparse file of an archive: its pieces, and zeros between them."""

    def __init__(self, fd: int, sparse: Sparse) -> None:
        self._fd = fd
        self._sparse = sparse
        self.size = sparse.size
        self._position = 0

    def read(self, size: int) -> bytes:
        end = min(self._position + size, self.size)
        data = bytearray(end - self._position)
        pieces = self._sparse.pieces
        first = bisect_right(pieces, self._position, key=lambda piece: piece.start)
        for piece in pieces[max(first - 1, 0) :]:
            start, stop = max(piece.start, self._position), min(piece.start + piece.size, end)
            if piece.start >= end:
                break
            if start < stop:
                found = os.pread(self._fd, stop - start, piece.offset + start - piece.start)
                data[start - self._position : start - self._position + len(found)] = found
        self._position = end
        return bytes(data)

    def close(self) -> None:
        pass


class TarLayout:
    """A layout in a tar file; closing it closes the descriptor."""

    positions: Sequence[int] | None = None

    def __init__(self, fd: int, place: str) -> None:
        self.place = place
        self._fd = fd
        self._archive = Archive(fd, place)

    def open(self, path: str) -> LayoutFile:
        found = self._archive.find(path)
        if found is None:
            raise FileNotFoundError(f"{self.place} has no member {path}")
        if isinstance(found, Member):
            return _OpenMember(self._fd, found)
        if isinstance(found, Sparse):
            return _OpenSparse(self._fd, found)
        problem = found.problem if isinstance(found, Unusable) else "a symbolic link"
        raise InvalidLayoutError(
            f"{self.place} has a member {path!r} that is {problem}", path=self.place
        )

    def link_target(self, path: str) -> str | None:
        found = self._archive.find(path)
        return found.target if isinstance(found, Link) else None

    def close(self) -> None:
        os.close(self._fd)


def open_files(layout: Any, check: Callable[[], object]) -> Layout:
    """Open what is at a path, or a file that is open already.

    A compressed archive is decompressed into a temporary file without a name.

    :param check: called now and then while that takes place; what it raises ends it
    :raises InvalidLayoutError: when it is neither a directory nor a tar file
    :raises OSError: when it cannot be opened, or an open file has no descriptor
    """
    if isinstance(layout, str | os.PathLike):
        place = os.fspath(layout)
        # O_NONBLOCK: opening a FIFO would otherwise wait for a writer.
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    else:
        name = getattr(layout, "name", None)  # a number, for what was opened by descriptor
        place = name if isinstance(name, str) else "the archive"
        fd = os.dup(layout.fileno())
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            return DirectoryLayout(LayoutDirectory(place, fd))
        if not stat.S_ISREG(mode):
            raise InvalidLayoutError(
                f"{place} is neither a directory nor a file; write the data of a pipe to a file "
                "first",
                path=place,
            )
        if not os.fstat(fd).st_size:
            raise InvalidLayoutError(f"{place} is empty", path=place)
        if is_compressed(os.pread(fd, START, 0)):
            compressed, fd = fd, -1
            try:
                fd = _decompressed(compressed, place, check)
            finally:
                os.close(compressed)
        return TarLayout(fd, place)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise


def _decompressed(fd: int, place: str, check: Callable[[], object]) -> int:
    """Return the descriptor of a temporary file with the decompressed content of a file."""
    source = _OpenMember(fd, Member(0, os.fstat(fd).st_size))
    with tempfile.TemporaryFile() as file:
        try:
            for piece in Decompressor(source, place, place).pieces():
                check()
                file.write(piece)
            file.flush()
        except OSError as error:
            error.filename = f"{place}, decompressed into {tempfile.gettempdir()}; set TMPDIR"
            raise
        return os.dup(file.fileno())


def has_file(layout: Layout, path: str) -> bool:
    """Return whether a layout has a file at a path."""
    try:
        layout.open(path).close()
    except FileNotFoundError:
        return False
    return True


def read_whole(layout: Layout, path: str, limit: int = MANIFEST_MAX) -> bytes:
    """Return the content of a file that is small in a valid layout.

    :param limit: the most bytes that it may have
    :raises FileNotFoundError: when there is none
    :raises InvalidLayoutError: when it is larger
    """
    with closing(layout.open(path)) as file:
        if file.size > limit:
            raise too_large(layout.place, path, file.size, limit)
        return read_up_to(file, limit)


def read_up_to(file: LayoutFile, size: int) -> bytes:
    """Return at most ``size`` bytes of a file; fewer only at its end."""
    pieces: list[bytes] = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
