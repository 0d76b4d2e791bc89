"""A directory that images are exported into; blocking."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple, Protocol

from .._directory.files import Directory
from .._directory.staged import STAGED_PREFIX, StagedFile, remove_dead, staged_name
from .._engine.protocol import StagedContent
from ..errors import InvalidLayoutError
from ._documents import INDEX_FILE, LAYOUT_FILE, MARKER, Descriptor, blob_path
from ._foreign import MANIFEST_FILE, VERSION, VERSION_FILE, check_version, name_in_dir
from ._index import with_entries
from ._layout import DirectoryLayout, LayoutDirectory, LayoutFile, read_whole
from ._reader import check_marker

# A layout is no secret of the store's: who may read it is for the umask to say.
_EXPORTED_FILE = 0o666
_EXPORTED_DIRECTORY = 0o777

_ALREADY_THERE = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


class Content(NamedTuple):
    """One file of a layout: a manifest or an index, which is in memory, or a blob."""

    digest: str
    size: int
    document: bytes | None


class Target(Protocol):
    """Takes blobs, and then the index entries that list them."""

    def find(self, content: Content) -> LayoutFile | None:
        """Open a file of this size that is there already; its content is not verified."""
        ...

    def begin(self, content: Content) -> StagedContent:
        """Begin to write a file; the caller calls ``finish`` when it is complete."""
        ...

    def complete(self, entries: Sequence[Descriptor]) -> None:
        """Write what follows the blobs. Nothing is in place yet."""
        ...

    def commit(self, entries: Sequence[Descriptor]) -> None:
        """Put everything in place. After this the images are in the layout."""
        ...

    def stop(self) -> bool:
        """Give up a write that waits for a reader. Called in another thread than the write.

        :returns: whether the write ends soon; otherwise it must be left to its thread
        """
        ...

    def close(self) -> None:
        """Release it, and remove what was written unless it was committed."""
        ...


class DirectoryTarget:
    """A directory that is new, empty, or has images in it already.

    A new directory gets its name when it is complete, so that an export which fails never removes
    one that another export uses. What a killed export has left is removed by the next one.

    :raises InvalidLayoutError: when it is a directory of something else, or damaged
    """

    def __init__(self, path: str, helpers: Executor) -> None:
        self._path = path
        self._helpers = helpers
        # The files, by their paths in the directory.
        self._staged: dict[str, StagedFile] = {}
        self._opened = ExitStack()
        parent, self._name = os.path.split(os.path.realpath(path))
        try:
            self._parent = self._opened.enter_context(LayoutDirectory.at(parent))
            remove_dead(self._parent)
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
            remove_dead(root)
            present = {name for name in root.names() if not name.startswith(STAGED_PREFIX)}
            if present:
                self._check(root, present)
        return root

    def _check(self, root: LayoutDirectory, present: set[str]) -> None:
        """Check that a directory that is not empty is one to export into. It is locked."""
        raise NotImplementedError

    def _place_of(self, content: Content) -> str:
        """Return the path of a file in the directory."""
        raise NotImplementedError

    def _fill(self, root: LayoutDirectory, entries: Sequence[Descriptor]) -> None:
        """Put everything into the directory, or nothing. It is locked, or nobody else has it."""
        raise NotImplementedError

    def begin(self, content: Content) -> StagedContent:
        directory = self._parent if self._root is None else self._root
        staged = StagedFile(directory, self._helpers, _EXPORTED_FILE)
        self._staged[self._place_of(content)] = staged
        return staged

    def complete(self, entries: Sequence[Descriptor]) -> None:
        pass

    def commit(self, entries: Sequence[Descriptor]) -> None:
        if self._root is None:
            self._commit_new(entries)
        else:
            with _locked(self._root):
                self._fill(self._root, entries)
        self._parent.sync()

    def _commit_new(self, entries: Sequence[Descriptor]) -> None:
        """Make the directory, complete from the start."""
        with ExitStack() as opened:
            name, made = self._make(opened)
            try:
                self._fill(made, entries)
                if not self._rename(name):
                    # Another export has made it since: what is here goes there.
                    self._root = self._open()
                    self.commit(entries)
                    self._parent.remove_tree(name)
            except BaseException:
                with suppress(OSError):
                    self._parent.remove_tree(name)
                raise

    def _make(self, opened: ExitStack) -> tuple[str, LayoutDirectory]:
        """Make a directory beside the place of the new one, locked as long as it is open."""
        while True:
            name = staged_name()
            self._parent.make_directory(name, _EXPORTED_DIRECTORY)
            made = opened.enter_context(self._parent.open_directory(name))
            self._parent.lock_file(name, made.fd)
            if self._parent.has(name, made.fd):
                return name, made
            # Taken for a dead export's before it was locked.

    def _rename(self, name: str) -> bool:
        """Give the new directory its name; ``False`` when there is something of that name."""
        try:
            self._parent.rename(name, self._name)
        except OSError as error:
            if error.errno not in _ALREADY_THERE:
                raise
            return False
        return True

    def _publish(
        self, root: LayoutDirectory, paths: Sequence[str], opened: ExitStack, undo: ExitStack
    ) -> None:
        """Give staged files their names, durably."""
        folders: dict[str, Directory] = {"": root}
        for path in paths:
            folder, _, name = path.rpartition("/")
            if folder not in folders:
                folders[folder] = _folder(root, folder, opened, undo)
            staged = self._staged[path]
            if folders[folder].stat(name) is None:
                undo.callback(folders[folder].unlink, name)
                staged.publish(folders[folder], name)
            else:
                # Damaged, or committed by another export since: from here on it is not this
                # export's to remove.
                staged.replace(folders[folder], name)
        for directory in folders.values():
            directory.sync()

    def _write(self, root: Directory, name: str, data: bytes) -> None:
        staged = StagedFile(root, self._helpers, _EXPORTED_FILE)
        try:
            staged.sink.write(data)
            staged.replace(root, name)
        finally:
            staged.discard()

    def stop(self) -> bool:
        return True

    def close(self) -> None:
        for staged in self._staged.values():
            staged.discard()
        self._opened.close()


class LayoutTarget(DirectoryTarget):
    """An OCI image layout in a directory."""

    def _check(self, root: LayoutDirectory, present: set[str]) -> None:
        if LAYOUT_FILE not in present:
            raise InvalidLayoutError(
                f"{root.path} is not empty, and no OCI image layout: it was left as it is",
                path=root.path,
            )
        layout = DirectoryLayout(root)
        check_marker(read_whole(layout, LAYOUT_FILE), root.path)
        _read_index(layout)

    def _place_of(self, content: Content) -> str:
        return blob_path(content.digest)

    def find(self, content: Content) -> LayoutFile | None:
        if self._root is None:
            return None
        try:
            file = DirectoryLayout(self._root).open(self._place_of(content))
        except FileNotFoundError:
            return None
        if file.size == content.size:
            return file
        file.close()
        return None

    def _fill(self, root: LayoutDirectory, entries: Sequence[Descriptor]) -> None:
        with ExitStack() as opened, ExitStack() as undo:
            index = with_entries(_read_index(DirectoryLayout(root)), entries, self._path)
            if root.stat(LAYOUT_FILE) is None:
                self._write(root, LAYOUT_FILE, MARKER)
                undo.callback(root.unlink, LAYOUT_FILE)
            self._publish(root, list(self._staged), opened, undo)
            self._write(root, INDEX_FILE, index)
            undo.pop_all()
        root.sync()


# Blobs, manifests of an index, and signatures, which belong to one image.
_IN_DIR = re.compile(
    rf"(?:sha\d+-)?[0-9a-f]{{64,128}}(?:\.{re.escape(MANIFEST_FILE)})?"
    r"|(?:(?:sha\d+-)?[0-9a-f]{64,128}\.)?signature-\d+"
)


class DirTarget(DirectoryTarget):
    """A directory as skopeo's ``dir:`` has it, which takes one image in place of another.

    :param root: the digest of the image's manifest or index
    """

    def __init__(self, path: str, helpers: Executor, root: str) -> None:
        self._manifest = root
        super().__init__(path, helpers)

    def _check(self, root: LayoutDirectory, present: set[str]) -> None:
        if not check_version(DirectoryLayout(root)):
            raise InvalidLayoutError(
                f"{root.path} is not empty, and has no file {VERSION_FILE!r} as a dir: has: it "
                "was left as it is",
                path=root.path,
            )

    def _place_of(self, content: Content) -> str:
        if content.digest == self._manifest:
            return MANIFEST_FILE
        return name_in_dir(content.digest, is_manifest=content.document is not None)

    def find(self, content: Content) -> LayoutFile | None:
        return None  # another export may remove what is there

    def _fill(self, root: LayoutDirectory, entries: Sequence[Descriptor]) -> None:
        with ExitStack() as opened, ExitStack() as undo:
            if root.stat(VERSION_FILE) is None:
                self._write(root, VERSION_FILE, VERSION)
                undo.callback(root.unlink, VERSION_FILE)
            parts = [path for path in self._staged if path != MANIFEST_FILE]
            self._publish(root, parts, opened, undo)
            self._staged[MANIFEST_FILE].replace(root, MANIFEST_FILE)
            undo.pop_all()
        root.sync()
        for name in filter(_IN_DIR.fullmatch, root.names()):
            if name not in self._staged:
                root.unlink(name)


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
