"""A directory that images are exported into; blocking."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol

from .._directory.files import Directory
from .._directory.staged import STAGED_PREFIX, StagedFile
from .._engine.protocol import StagedContent
from ..errors import InvalidLayoutError
from ._documents import INDEX_FILE, LAYOUT_FILE, MARKER, Descriptor, blob_path
from ._index import with_entry
from ._layout import DirectoryLayout, LayoutDirectory, LayoutFile, read_whole
from ._reader import check_marker

# A layout is no secret of the store's: who may read it is for the umask to say.
EXPORTED_FILE = 0o666
_EXPORTED_DIRECTORY = 0o777


class Target(Protocol):
    """Takes blobs, and then an index entry that lists them."""

    def find(self, digest: str, size: int) -> LayoutFile | None:
        """Open a blob of this size that is there already; its content is not verified."""
        ...

    def begin(self, digest: str, size: int) -> StagedContent:
        """Begin to write a blob; the caller calls ``finish`` when it is complete."""
        ...

    def commit(self, entry: Descriptor) -> None:
        """Put everything in place. After this the image is in the layout."""
        ...

    def close(self) -> None:
        """Release it, and remove what was written unless it was committed."""
        ...


class DirectoryTarget:
    """A layout in a directory that is new, empty, or has images in it already.

    :raises InvalidLayoutError: when it is a directory of something else, or damaged
    """

    def __init__(self, path: str, helpers: Executor) -> None:
        self._helpers = helpers
        self._staged: dict[str, StagedFile] = {}
        self._is_committed = False
        self._opened = ExitStack()
        try:
            self._open(path)
            self._check()
        except BaseException:
            self.close()
            raise

    def _open(self, path: str) -> None:
        parent, name = os.path.split(os.path.abspath(path))
        self._parent = self._opened.enter_context(Directory.at(parent))
        if self._parent.stat(name) is None and self._parent.make_directory(
            name, _EXPORTED_DIRECTORY
        ):
            self._opened.callback(self._remove_if_empty, name)
        self._root = self._opened.enter_context(LayoutDirectory.at(path))
        self._layout = DirectoryLayout(self._root)

    def _remove_if_empty(self, name: str) -> None:
        """Remove the directory that was made here, unless somebody has put something into it."""
        if not self._is_committed:
            with suppress(OSError):
                self._parent.remove_directory(name)

    def _check(self) -> None:
        with self._locked():
            present = {name for name in self._root.names() if not name.startswith(STAGED_PREFIX)}
            if not present:
                return
            path = self._root.path
            if LAYOUT_FILE not in present:
                raise InvalidLayoutError(
                    f"{path} is not empty, and no OCI image layout: it was left as it is",
                    path=path,
                )
            check_marker(read_whole(self._layout, LAYOUT_FILE), path)
            self._read_index()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other exports from changing the index inside the block."""
        fcntl.flock(self._root.fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._root.fd, fcntl.LOCK_UN)

    def _read_index(self) -> bytes | None:
        try:
            return read_whole(self._layout, INDEX_FILE)
        except FileNotFoundError:
            return None

    def find(self, digest: str, size: int) -> LayoutFile | None:
        try:
            file = self._layout.open(blob_path(digest))
        except FileNotFoundError:
            return None
        if file.size == size:
            return file
        file.close()
        return None

    def begin(self, digest: str, size: int) -> StagedContent:
        staged = self._staged[digest] = StagedFile(self._root, self._helpers, EXPORTED_FILE)
        return staged

    def commit(self, entry: Descriptor) -> None:
        with self._locked(), ExitStack() as opened, ExitStack() as undo:
            index = with_entry(self._read_index(), entry, self._root.path)
            if self._root.stat(LAYOUT_FILE) is None:
                self._write(LAYOUT_FILE, MARKER)
                undo.callback(self._root.unlink, LAYOUT_FILE)
            folders: dict[str, Directory] = {}
            for digest, staged in self._staged.items():
                folder, _, name = blob_path(digest).rpartition("/")
                if folder not in folders:
                    folders[folder] = self._folder(folder, opened, undo)
                if folders[folder].stat(name) is None:
                    undo.callback(folders[folder].unlink, name)
                    staged.publish(folders[folder], name)
                else:
                    # Damaged, or committed by another export since: from here on it is not this
                    # export's to remove.
                    replace_file(folders[folder], name, staged)
            for directory in folders.values():
                directory.sync()
            self._write(INDEX_FILE, index)
            undo.pop_all()
        self._is_committed = True
        self._root.sync()
        self._parent.sync()

    def _folder(self, path: str, opened: ExitStack, undo: ExitStack) -> Directory:
        """Open a directory below the layout, and make it if it is missing."""
        directory: Directory = self._root
        for name in path.split("/"):
            if directory.make_directory(name, _EXPORTED_DIRECTORY):
                undo.callback(directory.remove_directory, name)
                directory.sync()
            directory = opened.enter_context(directory.open_directory(name))
        return directory

    def _write(self, name: str, data: bytes) -> None:
        staged = StagedFile(self._root, self._helpers, EXPORTED_FILE)
        try:
            staged.sink.write(data)
            replace_file(self._root, name, staged)
        finally:
            staged.discard()

    def close(self) -> None:
        for staged in self._staged.values():
            staged.discard()
        self._opened.close()


def replace_file(directory: Directory, name: str, staged: StagedFile) -> None:
    """Replace the file of a name by a staged file, in one step."""
    staged.finish()
    beside = f"{STAGED_PREFIX}{secrets.token_hex(16)}"
    staged.publish(directory, beside)
    try:
        directory.rename(beside, name)
    except BaseException:
        directory.unlink(beside)
        raise
