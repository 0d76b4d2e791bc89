"""Reads files of records that another program writes, again when they have changed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

from msgspec import Raw

from .._core.layers import Container, Layer
from .._format import index
from .._format.pacing import yield_gil_every
from ..errors import StoreCorruptError
from .files import Directory

T = TypeVar("T", bound=Layer | Container)


class Records(NamedTuple, Generic[T]):
    """The records of one version of a file.

    :ivar records: those that can be read, in their order
    :ivar damaged: the elements that cannot be read
    """

    records: tuple[T, ...] = ()
    damaged: tuple[bytes, ...] = ()


_FREED_AT_ONCE: Final = 2000
"""Records that are freed before other threads get a turn."""

_NO_FILE: Final = (0, 0, 0)
"""The version of a file that does not exist."""


class RecordFile(Generic[T]):
    """One JSON array of records.

    containers/storage renames a new file over the old one, so each read gets one whole version
    without a lock. The file that was read last stays open, so no other file gets its inode.

    :param decode: decodes an element, or returns ``None`` if it is damaged
    """

    def __init__(self, directory: str, name: str, decode: Callable[[Raw], T | None]) -> None:
        self.path = os.path.join(directory, name)
        self._directory = directory
        self._name = name
        self._decode = decode
        self._mutex = threading.Lock()
        self._fd = -1
        self._version = _NO_FILE
        self._records: Records[T] = Records()

    def read(self) -> Records[T]:
        """Return the records: the same object for as long as the file is the same.

        A missing file has none.

        :raises StoreCorruptError: when the file is not a JSON array, or is in no directory
        """
        with self._mutex:
            try:
                found = os.stat(self.path, follow_symlinks=False)
                if _version_of(found) != self._version:
                    self._load()
            except FileNotFoundError:
                if self._version != _NO_FILE:
                    self._adopt(-1, _NO_FILE, Records())
            except NotADirectoryError as error:
                path = self._directory
                raise StoreCorruptError(f"{path} is not a directory", path=path) from error
            return self._records

    def _load(self) -> None:
        with Directory.at(self._directory) as directory:
            fd = directory.open_file(self._name)
            try:
                found = directory.stat_file(self._name, fd)
                records = self._parse(directory, fd, found.st_size)
            except BaseException:
                os.close(fd)
                raise
        self._adopt(fd, _version_of(found), records)

    def _parse(self, directory: Directory, fd: int, size: int) -> Records[T]:
        text = index.Text(partial(directory.read_into, self._name, fd), size)
        records: list[T] = []
        damaged: list[bytes] = []
        try:
            for elements in index.elements(text):
                for element in elements:
                    record = self._decode(element)
                    if record is None:
                        damaged.append(bytes(element))
                    else:
                        records.append(record)
        except index.MalformedIndexError as error:
            problem = f"is damaged at byte {error.offset}: {error}"
            raise directory.corrupt(self._name, problem) from error
        return Records(tuple(records), tuple(damaged))

    def _adopt(self, fd: int, version: tuple[int, int, int], records: Records[T]) -> None:
        previous, self._fd = self._fd, fd
        if previous >= 0:
            os.close(previous)
        self._version = version
        self._records = records

    def close(self) -> None:
        """Close the file, and forget the records."""
        with self._mutex:
            self._adopt(-1, _NO_FILE, Records())


def _version_of(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_dev, found.st_ino, found.st_ctime_ns


class RecordFiles(Generic[T]):
    """The files that have records of one kind.

    :param directories: the directories that may have such files
    :param names: the names of the files in each directory
    """

    def __init__(
        self, directories: Iterable[str], names: Sequence[str], decode: Callable[[Raw], T | None]
    ) -> None:
        self._files = [RecordFile(each, name, decode) for each in directories for name in names]
        # What was read last, and the mapping made of it: one attribute, set in one step, because
        # several threads read.
        self._last: tuple[list[Records[T]], Mapping[str, T]] = ([], {})

    def __iter__(self) -> Iterator[RecordFile[T]]:
        """Iterate over the files."""
        return iter(self._files)

    def read(self) -> Mapping[str, T]:
        """Return all records by ID: the same object for as long as the files are the same.

        Of two records with one ID the first counts, as upstream. Damaged ones are left out.

        :raises StoreCorruptError: when a file is not a JSON array
        """
        versions = [file.read() for file in self._files]
        if list(map(id, versions)) != list(map(id, self._last[0])):
            by_id: dict[str, T] = {}
            for version in versions:
                for record in version.records:
                    by_id.setdefault(record.id, record)
            self._replace(versions, by_id)
            return by_id
        return self._last[1]

    def _replace(self, versions: list[Records[T]], by_id: Mapping[str, T]) -> None:
        old = list(self._last[1].values())
        self._last = versions, by_id
        # Freed at once, many records would block every other thread.
        for _ in yield_gil_every(range(len(old)), _FREED_AT_ONCE):
            old.pop()

    def close(self) -> None:
        """Close the files, and forget the records."""
        for file in self._files:
            file.close()
        self._replace([], {})
