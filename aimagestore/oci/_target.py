"""A directory that images are exported into; blocking."""

from __future__ import annotations

import errno
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

_ALREADY_THERE = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


class Target(Protocol):
    """Takes blobs, and then an index entry that lists them."""

    def find(self, digest: str, size: int) -> LayoutFile | None:
        """Open a blob of this size that is there already; its content is not verified."""
        ...

    def begin(self, digest: str, size: int) -> StagedContent:
        """Begin to write a blob; the caller calls ``finish`` when it is complete."""
        ...

    def complete(self, entry: Descriptor) -> None:
        """Write what follows the blobs. Nothing is in place yet."""
        ...

    def commit(self, entry: Descriptor) -> None:
        """Put everything in place. After this the image is in the layout."""
        ...

    def stop(self) -> None:
        """Give up a write that waits for a reader. Called in another thread than the write."""
        ...

    def close(self) -> None:
        """Release it, and remove what was written unless it was committed."""
        ...


class DirectoryTarget:
    """A layout in a directory that is new, empty, or has images in it already.

    A new directory gets its name when it is complete, so that an export which fails never removes
    one that another export uses.

    :raises InvalidLayoutError: when it is a directory of something else, or damaged
    """

    def __init__(self, path: str, helpers: Executor) -> None:
        self._path = path
        self._helpers = helpers
        self._staged: dict[str, StagedFile] = {}
        self._opened = ExitStack()
        parent, self._name = os.path.split(os.path.abspath(path))
        try:
            self._parent = self._opened.enter_context(LayoutDirectory.at(parent))
            self._root = self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> LayoutDirectory | None:
        """Open the directory and check it; ``None`` when there is none."""
        try:
            root = self._opened.enter_context(LayoutDirectory.at(self._path))
        except FileNotFoundError:
            return None
        with _locked(root):
            self._check(root)
        return root

    def _check(self, root: LayoutDirectory) -> None:
        """Check that this is a layout, or empty. The directory is locked."""
        present = {name for name in root.names() if not name.startswith(STAGED_PREFIX)}
        if not present:
            return
        if LAYOUT_FILE not in present:
            raise InvalidLayoutError(
                f"{root.path} is not empty, and no OCI image layout: it was left as it is",
                path=root.path,
            )
        layout = DirectoryLayout(root)
        check_marker(read_whole(layout, LAYOUT_FILE), root.path)
        _read_index(layout)

    def find(self, digest: str, size: int) -> LayoutFile | None:
        if self._root is None:
            return None
        try:
            file = DirectoryLayout(self._root).open(blob_path(digest))
        except FileNotFoundError:
            return None
        if file.size == size:
            return file
        file.close()
        return None

    def begin(self, digest: str, size: int) -> StagedContent:
        directory = self._parent if self._root is None else self._root
        staged = self._staged[digest] = StagedFile(directory, self._helpers, EXPORTED_FILE)
        return staged

    def complete(self, entry: Descriptor) -> None:
        pass

    def commit(self, entry: Descriptor) -> None:
        if self._root is None:
            self._commit_new(entry)
        else:
            with _locked(self._root):
                self._fill(self._root, entry)
        self._parent.sync()

    def _commit_new(self, entry: Descriptor) -> None:
        """Make the directory, complete from the start."""
        name = f"{STAGED_PREFIX}{secrets.token_hex(16)}"
        self._parent.make_directory(name, _EXPORTED_DIRECTORY)
        try:
            with self._parent.open_directory(name) as made:
                self._fill(made, entry)
            if not self._rename(name):
                # Another export has made it since: what is here goes there.
                self._root = self._open()
                self.commit(entry)
                self._parent.remove_tree(name)
        except BaseException:
            with suppress(OSError):
                self._parent.remove_tree(name)
            raise

    def _rename(self, name: str) -> bool:
        """Give the new directory its name; ``False`` when there is something of that name."""
        try:
            self._parent.rename(name, self._name)
        except OSError as error:
            if error.errno not in _ALREADY_THERE:
                raise
            return False
        return True

    def _fill(self, root: LayoutDirectory, entry: Descriptor) -> None:
        """Put everything into the directory, or nothing."""
        with ExitStack() as opened, ExitStack() as undo:
            index = with_entry(_read_index(DirectoryLayout(root)), entry, self._path)
            if root.stat(LAYOUT_FILE) is None:
                self._write(root, LAYOUT_FILE, MARKER)
                undo.callback(root.unlink, LAYOUT_FILE)
            folders: dict[str, Directory] = {}
            for digest, staged in self._staged.items():
                folder, _, name = blob_path(digest).rpartition("/")
                if folder not in folders:
                    folders[folder] = _folder(root, folder, opened, undo)
                if folders[folder].stat(name) is None:
                    undo.callback(folders[folder].unlink, name)
                    staged.publish(folders[folder], name)
                else:
                    # Damaged, or committed by another export since: from here on it is not this
                    # export's to remove.
                    replace_file(folders[folder], name, staged)
            for directory in folders.values():
                directory.sync()
            self._write(root, INDEX_FILE, index)
            undo.pop_all()
        root.sync()

    def _write(self, root: Directory, name: str, data: bytes) -> None:
        staged = StagedFile(root, self._helpers, EXPORTED_FILE)
        try:
            staged.sink.write(data)
            replace_file(root, name, staged)
        finally:
            staged.discard()

    def stop(self) -> None:
        pass

    def close(self) -> None:
        for staged in self._staged.values():
            staged.discard()
        self._opened.close()


@contextmanager
def _locked(root: Directory) -> Iterator[None]:
    """Keep other exports from changing the layout inside the block."""
    fcntl.flock(root.fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(root.fd, fcntl.LOCK_UN)


def _read_index(layout: DirectoryLayout) -> bytes | None:
    try:
        return read_whole(layout, INDEX_FILE)
    except FileNotFoundError:
        return None


def _folder(root: Directory, path: str, opened: ExitStack, undo: ExitStack) -> Directory:
    """Open a directory below the layout, and make it if it is missing."""
    directory = root
    for name in path.split("/"):
        if directory.make_directory(name, _EXPORTED_DIRECTORY):
            undo.callback(directory.remove_directory, name)
            directory.sync()
        directory = opened.enter_context(directory.open_directory(name))
    return directory


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
