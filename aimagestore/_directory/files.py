"""Files of one directory, by name: never through a link, never anywhere else.

Each system call that the engine makes on the store's files is made in this module, but for the
lock's. What fails says which file it was.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from ..errors import ImageStoreError, StoreCorruptError, StoreLostError
from .mounts import mount_of, mounts_in

_SAFE = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_DIRECTORY = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0)
_TMPFILE: int | None = getattr(os, "O_TMPFILE", None)
_IOV_MAX = 1024
_LEVELS_MAX = 100

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700


class NamesRemoved:
    """The names that would be removed, counted by file: without the last one the file is freed."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, int]] = Counter()

    def freed_by(self, found: os.stat_result) -> int:
        """Return how many bytes the removal of one more name of a file would free."""
        file = found.st_dev, found.st_ino
        self._counts[file] += 1
        return found.st_size if self._counts[file] == found.st_nlink else 0


class Directory:
    """An open directory, and what can be done with the files in it."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def at(cls, path: str) -> Self:
        """Open the directory at a path; the path itself may lead through links."""
        return cls(path, os.open(path, _DIRECTORY))

    def duplicate(self) -> Self:
        """Open the same directory once more."""
        with self._about(""):
            fd = os.open(".", _DIRECTORY, dir_fd=self.fd)
        return type(self)(self.path, fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def path_of(self, name: str) -> str:
        """The path of one of its files, for messages."""
        return os.path.join(self.path, name)

    def check_path(self) -> None:
        """Check that the path still leads to the directory that was opened.

        :raises StoreLostError: when it does not
        """
        path = self.path
        try:
            found = os.stat(path)
        except FileNotFoundError as error:
            raise StoreLostError(
                f"the directory {path} was removed or moved while the store was open: close the "
                "store, and open it where it is now",
                path=path,
            ) from error
        if not os.path.samestat(found, self.stat_self()):
            raise StoreLostError(
                f"the directory {path} was replaced by another while the store was open: close "
                "the store, and open the new one",
                path=path,
            )

    @contextmanager
    def _about(self, name: str) -> Iterator[None]:
        if "/" in name:
            raise self.corrupt(name, "would not be in this directory")
        try:
            yield
        except OSError as error:
            error.filename = self.path_of(name)
            del error.filename2  # None would be shown
            raise

    def corrupt(self, name: str, problem: str) -> ImageStoreError:
        """The error that says what is wrong with one of the files."""
        path = self.path_of(name)
        return StoreCorruptError(f"{path} {problem}; it was left as it is", path=path)

    def open_file(self, name: str, flags: int = os.O_RDONLY, mode: int = PRIVATE_FILE) -> int:
        """Open a regular file and return its descriptor.

        :raises StoreCorruptError: when it is anything else, a link for instance
        """
        with self._about(name):
            try:
                fd = os.open(name, flags | _SAFE, mode, dir_fd=self.fd)
            except OSError as error:
                if error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EMLINK}:
                    raise self.corrupt(name, "is not a regular file") from error
                raise
        if flags & os.O_EXCL:
            return fd  # it was created here
        try:
            if not stat.S_ISREG(self.stat_file(name, fd).st_mode):
                raise self.corrupt(name, "is not a regular file")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def stat_file(self, name: str, fd: int) -> os.stat_result:
        """What the file system knows of an open file."""
        with self._about(name):
            return os.fstat(fd)

    def stat_self(self) -> os.stat_result:
        """What the file system knows of this directory."""
        return self.stat_file("", self.fd)

    def lock_file(self, name: str, fd: int, *, wait: bool = True) -> bool:
        """Lock an open file or directory for its writer; ``False`` if another has it locked.

        :param wait: whether to wait for the other instead
        """
        with self._about(name):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def has(self, name: str, fd: int) -> bool:
        """Return whether a name leads to this open file or directory."""
        found = self.stat(name)
        return found is not None and os.path.samestat(found, self.stat_file(name, fd))

    def set_mode(self, name: str, fd: int, mode: int) -> None:
        """Give an open file these permissions."""
        with self._about(name):
            os.fchmod(fd, mode)

    def open_directory(self, name: str) -> Self:
        """Open one of the directories in it.

        :raises StoreCorruptError: when it is something else
        """
        with self._about(name):
            try:
                return type(self)(
                    self.path_of(name), os.open(name, _DIRECTORY | _SAFE, dir_fd=self.fd)
                )
            except OSError as error:
                if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EMLINK}:
                    raise self.corrupt(name, "is not a directory") from error
                raise

    def open_unnamed(self, mode: int = PRIVATE_FILE) -> int | None:
        """Create a file that has no name and vanishes when it is closed; ``None`` if impossible."""
        if _TMPFILE is None:
            return None
        with self._about(""):
            try:
                return os.open(".", os.O_RDWR | os.O_CLOEXEC | _TMPFILE, mode, dir_fd=self.fd)
            except OSError as error:
                # What file systems and kernels answer that have no such files.
                if error.errno in {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}:
                    return None
                raise

    def name_file(self, fd: int, name: str) -> None:
        """Give an open file a name, in place of whatever has it.

        :raises OSError: for a file that had names and has lost all of them, among other reasons
        """
        with self._about(name):
            source = f"/proc/self/fd/{fd}"
            try:
                os.link(source, name, dst_dir_fd=self.fd, follow_symlinks=True)
            except FileExistsError:
                os.unlink(name, dir_fd=self.fd)
                os.link(source, name, dst_dir_fd=self.fd, follow_symlinks=True)

    def read_into(self, name: str, fd: int, buffer: memoryview) -> int:
        """Read the next bytes of a file, and say how many they are; none at its end."""
        with self._about(name):
            return os.readv(fd, [buffer])

    def read_at(self, name: str, fd: int, size: int, position: int) -> bytes:
        """Read some bytes of a file at a position; none at its end."""
        with self._about(name):
            return os.pread(fd, size, position)

    def write(self, name: str, fd: int, pieces: Sequence[memoryview]) -> None:
        """Write all of the pieces, one behind the other."""
        with self._about(name):
            pending = list(pieces)
            start = 0
            while start < len(pending):
                done = os.writev(fd, pending[start : start + _IOV_MAX])
                while start < len(pending) and done >= len(pending[start]):
                    done -= len(pending[start])
                    start += 1
                if done:
                    pending[start] = pending[start][done:]

    def sync_file(self, name: str, fd: int) -> None:
        """Return when the file's content has reached the disk."""
        with self._about(name):
            os.fsync(fd)

    def sync(self) -> None:
        """Return when the names in the directory have reached the disk."""
        with self._about(""):
            os.fsync(self.fd)

    def rename(self, name: str, new_name: str, into: Directory | None = None) -> None:
        """Rename a file, over whatever has the new name."""
        with self._about(name), self._about(new_name):
            os.rename(name, new_name, src_dir_fd=self.fd, dst_dir_fd=(into or self).fd)

    def keep_beside(self, name: str, other_name: str) -> None:
        """Give a file a second name, or only that one where a file can have but one."""
        with self._about(name), self._about(other_name):
            try:
                os.link(
                    name,
                    other_name,
                    src_dir_fd=self.fd,
                    dst_dir_fd=self.fd,
                    follow_symlinks=False,
                )
            except (PermissionError, NotImplementedError):
                os.rename(name, other_name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> bool:
        """Remove a file; ``False`` when there was none."""
        with self._about(name):
            try:
                os.unlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                return False
            return True

    def make_directory(self, name: str, mode: int = PRIVATE_DIRECTORY) -> bool:
        """Make a directory; ``False`` when something of that name is there."""
        with self._about(name):
            try:
                os.mkdir(name, mode, dir_fd=self.fd)
            except FileExistsError:
                return False
            return True

    def remove_directory(self, name: str) -> None:
        """Remove an empty directory."""
        with self._about(name):
            os.rmdir(name, dir_fd=self.fd)

    def remove_tree(self, name: str) -> int:
        """Remove a directory with everything in it, and return how many bytes that freed.

        Links are removed, not followed. A file with other names is not freed.

        :raises OSError: when something is mounted in it, and nothing was removed; or when something
            cannot be removed, and the rest may be removed
        """
        self.check_no_mount_in([name])
        return self._remove_tree(name, _LEVELS_MAX)

    def check_no_mount_in(self, names: Container[str]) -> None:
        """Check that nothing is mounted in any of these directories, or in place of one.

        :raises OSError: when something is
        """
        for mount in mounts_in(self.fd):
            if mount.partition("/")[0] in names:
                raise _mounted(self.path_of(mount))

    def _remove_tree(self, name: str, levels: int) -> int:
        freed = 0
        with self._open_level(name, levels) as directory:
            # It may have been mounted since nothing was.
            if mount_of(directory.fd) != mount_of(self.fd):
                raise _mounted(directory.path)
            for child in directory.names():
                found = directory.stat(child)
                if found is not None and stat.S_ISDIR(found.st_mode):
                    freed += directory._remove_tree(child, levels - 1)
                elif directory.unlink(child) and found is not None and found.st_nlink == 1:
                    freed += found.st_size
        self.remove_directory(name)
        return freed

    def tree_size(self, name: str, names: NamesRemoved) -> int:
        """Return how many bytes :meth:`remove_tree` would free.

        :param names: what would be removed before
        :raises OSError: when that would raise it, as far as can be known
        """
        self.check_no_mount_in([name])
        return self._tree_size(name, names, _LEVELS_MAX)

    def _tree_size(self, name: str, names: NamesRemoved, levels: int) -> int:
        size = 0
        with self._open_level(name, levels) as directory:
            for child in directory.names():
                found = directory.stat(child)
                if found is not None and stat.S_ISDIR(found.st_mode):
                    size += directory._tree_size(child, names, levels - 1)
                elif found is not None:
                    size += names.freed_by(found)
        return size

    def walk(self, name: str) -> Iterator[os.stat_result]:
        """Iterate over what the file system knows of a file, or of a directory and all in it.

        Links are not followed. What is mounted there, and what is removed meanwhile, is left out.
        """
        return self._walk(name, self.stat_self().st_dev, _LEVELS_MAX)

    def _walk(self, name: str, device: int, levels: int) -> Iterator[os.stat_result]:
        found = self.stat(name)
        if found is None or found.st_dev != device:
            return
        yield found
        if stat.S_ISDIR(found.st_mode):
            with suppress(FileNotFoundError), self._open_level(name, levels) as directory:
                for child in directory.names():
                    yield from directory._walk(child, device, levels - 1)

    def _open_level(self, name: str, levels: int) -> Self:
        """Open a directory, unless it is nested deeper than anything in an image's directory is.

        :param levels: how many more levels are allowed
        :raises OSError: when there are none left
        """
        if not levels:
            problem = f"more than {_LEVELS_MAX} directories in each other: remove them by hand"
            raise OSError(errno.EMFILE, problem, self.path_of(name))
        return self.open_directory(name)

    def stat(self, name: str) -> os.stat_result | None:
        """What the file system knows of a file; ``None`` when there is none."""
        with self._about(name):
            try:
                return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def names(self) -> list[str]:
        """The names of everything in it."""
        with self._about(""):
            # Opened anew: a descriptor has one position for all threads that list through it, and
            # on btrfs it may list the directory as it was when it was opened.
            fd = os.open(".", _DIRECTORY, dir_fd=self.fd)
            try:
                return os.listdir(fd)
            finally:
                os.close(fd)

    def is_directory(self, name: str) -> bool:
        """Whether it is a directory, and no link to one."""
        found = self.stat(name)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def is_file(self, name: str) -> bool:
        """Whether it is a regular file, and no link to one."""
        found = self.stat(name)
        return found is not None and stat.S_ISREG(found.st_mode)


def _mounted(path: str) -> OSError:
    return OSError(errno.EBUSY, "another file system is mounted there: unmount it first", path)


def make_directories(path: str) -> None:
    """Make a directory and what is missing above it, durably, for nobody else to look into."""
    missing = []
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for path in reversed(missing):
        try:
            os.mkdir(path, PRIVATE_DIRECTORY)
        except FileExistsError:
            continue
        try:
            parent = Directory.at(os.path.dirname(path))
        except PermissionError:
            continue  # one that may be searched but not read, as those above a home often are
        with parent:
            parent.sync()
