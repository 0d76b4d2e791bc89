"""A directory that images are exported into; blocking."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple, Protocol

from .._directory.files import Directory
from .._directory.staged import (
    STAGED_PREFIX,
    StagedFile,
    make_staging_directory,
    remove_dead,
)
from .._engine.protocol import StagedContent
from ..errors import InvalidLayoutError
from ._documents import INDEX_FILE, INDEX_MAX, LAYOUT_FILE, MARKER, Descriptor, blob_path
from ._foreign import MANIFEST_FILE, VERSION, VERSION_FILE, check_version, name_in_dir
from ._index import with_entries
from ._layout import DirectoryLayout, LayoutDirectory, LayoutFile, read_whole
from ._reader import check_marker

# Unlike a store, a layout is not private: the umask decides who may read it.
_EXPORTED_FILE = 0o666
_EXPORTED_DIRECTORY = 0o777

_ALREADY_THERE = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


class Content(NamedTuple):
    """One file of a layout.

    :ivar document: the content of a manifest or an index; ``None`` for a blob
    """

    digest: str
    size: int
    document: bytes | None


class Target(Protocol):
    """What images are exported into: takes files, and then the index entries that list them."""

    def find(self, content: Content) -> LayoutFile | None:
        """Open a file with this digest and size, if there is one; its content is not verified."""
        ...

    def begin(self, content: Content) -> StagedContent:
        """Begin to write a file; the caller calls ``finish`` when it is complete."""
        ...

    def complete(self, entries: Sequence[Descriptor]) -> None:
        """Write what comes after the files. Nothing is in place yet."""
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


class _StagedBlob(StagedFile):
    """A file that is named in a staging directory, and closed, when it is complete."""

    def __init__(self, folder: Directory, name: str, helpers: Executor) -> None:
        super().__init__(folder, helpers, _EXPORTED_FILE)
        self._folder = folder
        self._final_name = name

    def finish(self) -> None:
        super().finish()
        self.publish(self._folder, self._final_name)
        self.discard()


class DirectoryTarget:
    """A directory that is new, empty, or has images in it already.

    Files are staged in a hidden directory. If there is no directory at the path, the staging
    directory gets that name when it is complete: an export that fails never removes a directory
    that another export uses. Otherwise the files are moved into the directory at the path. The next
    export removes what a killed export has left.

    :raises InvalidLayoutError: when it is a directory of something else, or damaged
    """

    def __init__(self, path: str, helpers: Executor) -> None:
        if not path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        # Resolved once, so that the directory that is looked for is the one that would be created.
        self._path = os.path.realpath(path)
        self._helpers = helpers
        self._opened = ExitStack()
        self._stage: LayoutDirectory | None = None
        self._stage_name = ""
        # Open directories in the staging directory, by their paths in it.
        self._folders: dict[str, Directory] = {}
        # The paths of the staged files.
        self._staged: list[str] = []
        self._writing: StagedFile | None = None
        parent, self._name = os.path.split(self._path)
        try:
            self._parent = self._opened.enter_context(LayoutDirectory.at(parent))
            remove_dead(self._parent)
            self._root = self._open()
        except BaseException:
            self._opened.close()
            raise
        # The directory in which the staging directory is made.
        self._base = self._parent if self._root is None else self._root

    def _open(self) -> LayoutDirectory | None:
        """Open the directory and check it; ``None`` if there is none."""
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
        """Check that a directory that is not empty may be exported into. It is locked.

        :raises InvalidLayoutError: when it may not
        """
        raise NotImplementedError

    def _place_of(self, content: Content) -> str:
        """Return the path of a file in the directory."""
        raise NotImplementedError

    def _fill(self, root: LayoutDirectory, entries: Sequence[Descriptor]) -> None:
        """Put everything into the directory, or nothing. No other export changes it meanwhile."""
        raise NotImplementedError

    def begin(self, content: Content) -> StagedContent:
        place = self._place_of(content)
        folder, _, name = place.rpartition("/")
        stage = self._staging()
        if folder not in self._folders:
            self._folders[folder] = _folder(stage, folder, self._opened)
        self._writing = _StagedBlob(self._folders[folder], name, self._helpers)
        self._staged.append(place)
        return self._writing

    def _staging(self) -> LayoutDirectory:
        """Return the staging directory, which is locked as long as it is open."""
        if self._stage is None:
            name, stage = make_staging_directory(self._base, _EXPORTED_DIRECTORY)
            self._opened.push(stage)
            self._stage_name = name
            self._stage = self._folders[""] = stage
        return self._stage

    def complete(self, entries: Sequence[Descriptor]) -> None:
        pass

    def commit(self, entries: Sequence[Descriptor]) -> None:
        if self._root is None:
            stage = self._staging()
            self._fill(stage, entries)
            if self._rename():
                self._stage_name = ""
            else:
                # Another export has made the directory meanwhile: move the files into it.
                self._root = self._open()
                self.commit(entries)
        else:
            with _locked(self._root):
                self._fill(self._root, entries)
        self._parent.sync()

    def _rename(self) -> bool:
        """Give the staging directory the target's name; ``False`` if something has that name."""
        try:
            self._parent.rename(self._stage_name, self._name)
        except OSError as error:
            if error.errno not in _ALREADY_THERE:
                raise
            return False
        return True

    def _move(
        self, root: LayoutDirectory, places: Sequence[str], opened: ExitStack, undo: ExitStack
    ) -> None:
        """Move staged files into the directory, durably. In the staging directory they stay."""
        folders: dict[str, Directory] = {"": root}
        if root is self._stage:
            folders, places = self._folders, ()
        for place in places:
            folder, _, name = place.rpartition("/")
            if folder not in folders:
                folders[folder] = _folder(root, folder, opened, undo)
            # A file that is there is damaged, or another export has committed it meanwhile: a
            # failure must not remove it.
            is_new = folders[folder].stat(name) is None
            self._folders[folder].rename(name, name, folders[folder])
            if is_new:
                undo.callback(folders[folder].unlink, name)
        for directory in folders.values():
            directory.sync()

    def _write(self, root: Directory, name: str, data: bytes) -> None:
        found = root.stat(name)
        staged = StagedFile(root, self._helpers, _EXPORTED_FILE)
        try:
            staged.sink.write(data)
            staged.replace(root, name, None if found is None else stat.S_IMODE(found.st_mode))
        finally:
            staged.discard()

    def stop(self) -> bool:
        return True

    def close(self) -> None:
        if self._writing is not None:
            self._writing.discard()
        if self._stage_name:
            with suppress(OSError):
                self._base.remove_tree(self._stage_name)
        self._opened.close()


class LayoutTarget(DirectoryTarget):
    """An OCI image layout in a directory."""

    def _check(self, root: LayoutDirectory, present: set[str]) -> None:
        if LAYOUT_FILE not in present:
            raise InvalidLayoutError(
                f"{root.path} is not empty, and not an OCI image layout: it was left as it is; "
                "give a new or an empty directory",
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
            self._move(root, self._staged, opened, undo)
            self._write(root, INDEX_FILE, index)
            undo.pop_all()
        root.sync()


# Names of blobs, of the manifests that an index lists, and of signatures.
_IN_DIR = re.compile(
    rf"(?:sha\d+-)?[0-9a-f]{{64,128}}(?:\.{re.escape(MANIFEST_FILE)})?"
    r"|(?:(?:sha\d+-)?[0-9a-f]{64,128}\.)?signature-\d+"
)


class DirTarget(DirectoryTarget):
    """A directory of skopeo's ``dir:``, with one image, which replaces the one before.

    :param root: the digest of the image's manifest or index
    """

    def __init__(self, path: str, helpers: Executor, root: str) -> None:
        self._manifest = root
        super().__init__(path, helpers)

    def _check(self, root: LayoutDirectory, present: set[str]) -> None:
        if not check_version(DirectoryLayout(root)):
            raise InvalidLayoutError(
                f"{root.path} is not empty, and has no file {VERSION_FILE!r} as a dir: has: it was "
                "left as it is; give a new or an empty directory",
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
            parts = [place for place in self._staged if place != MANIFEST_FILE]
            self._move(root, parts, opened, undo)
            if root is not self._stage:
                self._folders[""].rename(MANIFEST_FILE, MANIFEST_FILE, root)
            undo.pop_all()
        root.sync()
        for name in filter(_IN_DIR.fullmatch, root.names()):
            if name not in self._staged:
                root.unlink(name)


@contextmanager
def _locked(root: Directory) -> Iterator[None]:
    """Keep other exports from changing a directory during the block."""
    fcntl.flock(root.fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(root.fd, fcntl.LOCK_UN)


def _read_index(layout: DirectoryLayout) -> bytes | None:
    """Return the index of a layout; ``None`` if it has none yet."""
    try:
        return read_whole(layout, INDEX_FILE, INDEX_MAX)
    except FileNotFoundError:
        return None


def _folder(
    root: Directory, path: str, opened: ExitStack, undo: ExitStack | None = None
) -> Directory:
    """Open a directory below another one, and make it if it is missing.

    :param opened: closes what was opened
    :param undo: removes what was made
    """
    directory = root
    for name in path.split("/"):
        if directory.make_directory(name, _EXPORTED_DIRECTORY):
            if undo is not None:
                undo.callback(directory.remove_directory, name)
            directory.sync()
        directory = opened.enter_context(directory.open_directory(name))
    return directory
