"""Files of one directory, by name: links are never followed, and nothing outside is reached.

The engine makes its system calls on the store's files here, except those of locks. Errors name the
file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import sys
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from ..errors import ImageStoreError, StoreCorruptError, StoreLostError
from .mounts import mount_of, mounts_in

_SAFE = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_DIRECTORY = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0)
_TMPFILE: int | None = getattr(os, "O_TMPFILE", None)
_DONTNEED: int | None = getattr(os, "POSIX_FADV_DONTNEED", None)
# EUCLEAN and EBADMSG: the file system has found metadata or a checksum that is wrong.
_DAMAGE = frozenset({errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)})
_IOV_MAX = 1024
_LEVELS_MAX = 100
_COPIED_AT_ONCE = 1024 * 1024

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700


def files_max() -> int:
    """Return how many files this process may have open (``RLIMIT_NOFILE``)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def is_crowded(fd: int) -> bool:
    """Return whether half of the files that this process may have open were so with this one.

    The kernel gives each file the lowest descriptor that is free.
    """
    return fd >= files_max() // 2


def is_damage(error: OSError) -> bool:
    """Return whether an error says that the disk or the file system is damaged."""
    return error.errno in _DAMAGE


class NamesRemoved:
    """Counts the names of each file that would be removed: removing the last one frees the file."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, int]] = Counter()

    def freed_by(self, found: os.stat_result) -> int:
        """Count one more name of a file, and return how many bytes its removal would free."""
        file = found.st_dev, found.st_ino
        self._counts[file] += 1
        return found.st_size if self._counts[file] == found.st_nlink else 0


class _About:
    """Names a file in the errors that a block raises."""

    # Not a generator: a commit enters twenty such blocks, and each would take 2 µs longer.
    __slots__ = ("_directory", "_name")

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            error.filename = self._directory.path_of(self._name)
            del error.filename2  # None would be shown
            if error.errno == errno.EMFILE and not isinstance(error, ImageStoreError):
                error.strerror = (
                    f"{os.strerror(errno.EMFILE)} (this process may have {files_max():,}: raise "
                    "the limit, as with ulimit -n, or have fewer items and stores open at once)"
                )
                error.args = error.errno, error.strerror  # a copy is made of these


class Directory:
    """An open directory. Its methods work on the files in it."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        # Its device and inode, which no other directory gets while this one is open.
        self._identity: tuple[int, int] | None = None

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
        """Return the path of one of its files, for messages."""
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
        if self._identity is None:
            own = self.stat_self()
            self._identity = own.st_dev, own.st_ino
        if (found.st_dev, found.st_ino) != self._identity:
            raise StoreLostError(
                f"the directory {path} was replaced by another while the store was open: close "
                "the store, and open the new one",
                path=path,
            )

    def _about(self, name: str) -> _About:
        """Name a file in the errors that a block raises; refuse names that lead elsewhere."""
        if "/" in name:
            raise self.corrupt(name, "would not be in this directory")
        return _About(self, name)

    def corrupt(self, name: str, problem: str) -> ImageStoreError:
        """Return the error that says what is wrong with one of the files."""
        path = self.path_of(name)
        return StoreCorruptError(f"{path} {problem}; it was left as it is", path=path)

    def open_file(
        self,
        name: str,
        flags: int = os.O_RDONLY,
        mode: int = PRIVATE_FILE,
        *,
        is_shared: bool = True,
    ) -> int:
        """Open a regular file and return its descriptor.

        :param is_shared: whether it may have other names, by which a file elsewhere would change
        :raises StoreCorruptError: when it is something else, such as a link, or has other names
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
            found = self.stat_file(name, fd)
            if not stat.S_ISREG(found.st_mode):
                raise self.corrupt(name, "is not a regular file")
            if not is_shared and found.st_nlink > 1:
                raise self.corrupt(name, "has other names (hard links)")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def stat_file(self, name: str, fd: int) -> os.stat_result:
        """Return the status of an open file."""
        with self._about(name):
            return os.fstat(fd)

    def stat_self(self) -> os.stat_result:
        """Return the status of this directory."""
        return self.stat_file("", self.fd)

    def lock_file(self, name: str, fd: int, *, wait: bool = True) -> bool:
        """Lock an open file or directory for its writer (``flock``).

        :param wait: whether to wait for another writer
        :returns: ``False`` if another has it locked
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

        :raises StoreCorruptError: when it is something else, such as a link
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
        """Create a file without a name, which vanishes when it is closed.

        :returns: its descriptor; ``None`` if the file system has no such files
        """
        if _TMPFILE is None:
            return None
        with self._about(""):
            try:
                return os.open(".", os.O_RDWR | os.O_CLOEXEC | _TMPFILE, mode, dir_fd=self.fd)
            except OSError as error:
                # The answers of file systems and kernels that have no such files.
                if error.errno in {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}:
                    return None
                raise

    def name_file(self, fd: int, name: str) -> None:
        """Give an open file a name; a file that has the name loses it.

        :raises OSError: also when the file had names and has lost all of them
        """
        with self._about(name):
            source = f"/proc/self/fd/{fd}"
            try:
                os.link(source, name, dst_dir_fd=self.fd, follow_symlinks=True)
            except FileExistsError:
                os.unlink(name, dir_fd=self.fd)
                os.link(source, name, dst_dir_fd=self.fd, follow_symlinks=True)

    def duplicate_file(self, name: str, fd: int) -> int:
        """Return another descriptor of an open file."""
        with self._about(name):
            return os.dup(fd)

    def read_into(self, name: str, fd: int, buffer: memoryview) -> int:
        """Read the next bytes of a file; return how many, 0 at its end."""
        with self._about(name):
            return os.readv(fd, [buffer])

    def read_at(self, name: str, fd: int, size: int, position: int) -> bytes:
        """Return up to ``size`` bytes of a file from a position on; none at its end."""
        with self._about(name):
            return os.pread(fd, size, position)

    def write(self, name: str, fd: int, pieces: Sequence[memoryview]) -> None:
        """Write all of the pieces, one after the other."""
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

    def begin_sync(self, fd: int, size: int) -> None:
        """Have the file system begin to write a file, without waiting for the disk.

        Only a hint: :meth:`sync_file` is faster then, above all if many files are synced.

        :param size: the length of the file in bytes
        """
        if _DONTNEED is not None and size > 1:
            with suppress(OSError):
                # Before Linux drops a file from memory, it begins to write it. Without its last
                # byte, so that its last page, which mostly is its only one, stays in memory.
                os.posix_fadvise(fd, 0, size - 1, _DONTNEED)

    def sync_file(self, name: str, fd: int) -> None:
        """Return when the file's content has reached the disk."""
        with self._about(name):
            os.fsync(fd)

    def sync_data(self, name: str, fd: int) -> None:
        """Return when what was written has reached the disk, before :meth:`sync_file` does more."""
        with self._about(name):
            os.fdatasync(fd)

    def sync(self) -> None:
        """Return when the names in the directory have reached the disk."""
        with self._about(""):
            os.fsync(self.fd)

    def rename(self, name: str, new_name: str, into: Directory | None = None) -> None:
        """Rename a file, over a file that has the new name."""
        with self._about(name), self._about(new_name):
            os.rename(name, new_name, src_dir_fd=self.fd, dst_dir_fd=(into or self).fd)

    def keep_beside(self, name: str, other_name: str) -> None:
        """Give a file a second name; copy it if that is impossible, as without hard links."""
        with self._about(name), self._about(other_name):
            try:
                os.link(
                    name,
                    other_name,
                    src_dir_fd=self.fd,
                    dst_dir_fd=self.fd,
                    follow_symlinks=False,
                )
            except (OSError, NotImplementedError):
                # There are many reasons. One that affects a copy as well will be raised there.
                self._copy(name, other_name)

    def _copy(self, name: str, other_name: str) -> None:
        """Copy a file durably. A copy that fails is removed."""
        fd = self.open_file(name)
        try:
            copy = self.open_file(other_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                position = 0
                while piece := self.read_at(name, fd, _COPIED_AT_ONCE, position):
                    self.write(other_name, copy, [memoryview(piece)])
                    position += len(piece)
                self.sync_file(other_name, copy)
            except BaseException:
                with suppress(OSError):
                    self.unlink(other_name)
                raise
            finally:
                os.close(copy)
        finally:
            os.close(fd)

    def unlink(self, name: str) -> bool:
        """Remove a file; return whether there was one."""
        with self._about(name):
            try:
                os.unlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                return False
            return True

    def make_directory(self, name: str, mode: int = PRIVATE_DIRECTORY) -> bool:
        """Make a directory; return ``False`` if something has its name already."""
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

    def mounts(self) -> Sequence[str]:
        """Return the mount points in it, as paths. The kernel lists all mounts of the system."""
        with self._about(""):
            return tuple(mounts_in(self.fd))

    def remove_tree(self, name: str, mounts: Sequence[str] | None = None) -> int:
        """Remove a directory with everything in it, and return how many bytes that freed.

        Links are removed, not followed. A file that has names elsewhere is not freed.

        :param mounts: what :meth:`mounts` has returned a moment ago, to remove many directories
        :raises OSError: when something is mounted in it: nothing was removed then; or when
            something cannot be removed: other things may have been removed then
        """
        self.check_no_mount_in([name], mounts)
        return self._remove_tree(name, _LEVELS_MAX)

    def check_no_mount_in(self, names: Container[str], mounts: Sequence[str] | None = None) -> None:
        """Check that nothing is mounted on or in any of these directories.

        :param mounts: as for :meth:`remove_tree`
        :raises OSError: when something is
        """
        for mount in self.mounts() if mounts is None else mounts:
            if mount.partition("/")[0] in names:
                raise _mounted(self.path_of(mount))

    def _remove_tree(self, name: str, levels: int) -> int:
        freed = 0
        with self._open_level(name, levels) as directory:
            # It may have been mounted after the check.
            with self._about(name):
                is_mounted = mount_of(directory.fd) != mount_of(self.fd)
            if is_mounted:
                raise _mounted(directory.path)
            for child in directory.names():
                found = directory.stat(child)
                if found is not None and stat.S_ISDIR(found.st_mode):
                    freed += directory._remove_tree(child, levels - 1)
                elif directory.unlink(child) and found is not None and found.st_nlink == 1:
                    freed += found.st_size
        self.remove_directory(name)
        return freed

    def tree_size(self, name: str, names: NamesRemoved, mounts: Sequence[str] | None = None) -> int:
        """Return how many bytes :meth:`remove_tree` would free.

        :param names: the names that would be removed before
        :param mounts: as for :meth:`remove_tree`
        :raises OSError: when :meth:`remove_tree` would, as far as that is known
        """
        self.check_no_mount_in([name], mounts)
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
        """Iterate over the status of a file, or of a directory and everything in it.

        Links are not followed. Mounts, and files that are removed meanwhile, are left out.
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
        """Open a directory, unless it is nested deeper than those of images ever are.

        :param levels: how many more levels are allowed
        :raises OSError: when there are none left
        """
        if not levels:
            problem = f"more than {_LEVELS_MAX} nested directories: remove them by hand"
            raise OSError(errno.EMFILE, problem, self.path_of(name))
        return self.open_directory(name)

    def stat(self, name: str) -> os.stat_result | None:
        """Return the status of a file; ``None`` when there is none."""
        with self._about(name):
            try:
                return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def names(self) -> list[str]:
        """Return the names of everything in it."""
        with self._about(""):
            # Opened again: all threads that list through one descriptor share its position, and on
            # btrfs it may list the directory as it was when it was opened.
            fd = os.open(".", _DIRECTORY, dir_fd=self.fd)
            try:
                return os.listdir(fd)
            finally:
                os.close(fd)

    def is_directory(self, name: str) -> bool:
        """Return whether it is a directory, and not a link to one."""
        found = self.stat(name)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def is_file(self, name: str) -> bool:
        """Return whether it is a regular file, and not a link to one."""
        found = self.stat(name)
        return found is not None and stat.S_ISREG(found.st_mode)


def _mounted(path: str) -> OSError:
    return OSError(errno.EBUSY, "another file system is mounted there: unmount it first", path)


def make_directories(path: str) -> None:
    """Make a directory and those that are missing above it, durably, with mode 0700.

    The last one that exists is made durable, too: a process may have died that had just made it.
    """
    missing = []
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    _sync_above(path)
    for path in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(path, PRIVATE_DIRECTORY)
        _sync_above(path)


def _sync_above(path: str) -> None:
    """Make the name of a directory durable, if that is possible."""
    try:
        above = Directory.at(os.path.dirname(path))
    except PermissionError:
        return  # it may be searched but not read, like many directories above a home
    with above:
        try:
            above.sync()
        except OSError as error:
            # On a file system that is read-only, all names are durable.
            if error.errno not in {errno.EINVAL, errno.EROFS}:
                raise
