"""The containers/storage directory as an engine: what is on disk, and how it gets there."""

from __future__ import annotations

import errno
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import NamedTuple, TypeVar

from .._core.draft import Draft, Plan
from .._core.events import changes_between
from .._core.image import Image
from .._core.mutations import Mutation
from .._core.names import INDEX_FILE, LOCK_FILE, big_data_file
from .._core.report import Finding, FindingKind, Report
from .._core.view import View
from .._engine.protocol import Holder, Outcome, Progress, Removal
from .._format import index
from .._format.block_catalog import EMPTY, BlockCatalog, apply_draft
from ..errors import DuplicateImageNamesError, ImageStoreError, StoreCorruptError
from .check import Check
from .contents import image_directories
from .files import Directory, make_directories
from .garbage import garbage, remove
from .lock import Claim, StoreLock
from .mounts import is_local
from .placement import (
    NEW_INDEX,
    Placement,
    is_waiting_name,
    put_in_place,
    waiting_items,
    waiting_name,
)
from .repair import LOST_INDEX, mend, salvage
from .staged import StagedFile
from .watch import DirectoryWatch, open_inotify

logger = logging.getLogger("aimagestore")

_HELPERS = 4
_IMAGE_STORE = "-images"
_LAYER_STORE = "-layers"

T = TypeVar("T")


class _Loaded(NamedTuple):
    """A snapshot, and what tells that its file is still the store's index.

    The file stays open: its inode cannot become another file's, so while it keeps its link and
    its time of change it is the file that was read.
    """

    snapshot: BlockCatalog
    fd: int
    inode: int = 0
    links: int = 0
    changed: int = 0
    is_array: bool = False

    @classmethod
    def of(
        cls, snapshot: BlockCatalog, fd: int, found: os.stat_result, *, is_array: bool = True
    ) -> _Loaded:
        return cls(snapshot, fd, found.st_ino, found.st_nlink, found.st_ctime_ns, is_array)

    def is_file(self, now: os.stat_result) -> bool:
        """Whether this is what the file system says of the file that was read."""
        return (
            now.st_ctime_ns == self.changed
            and now.st_ino == self.inode
            and now.st_nlink == self.links
        )


class DirectoryEngine:
    """The engine of a store in a directory; see :class:`aimagestore._engine.protocol.Engine`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self.read_only = False
        self.checks_instantly = True
        self.helpers: Executor = ThreadPoolExecutor(
            _HELPERS, thread_name_prefix="aimagestore helper"
        )
        self._loaded = _Loaded(EMPTY, -1)
        # Held while the next snapshot becomes the current one, so that all see them in one order.
        self._load_mutex = threading.Lock()
        self._watches: list[DirectoryWatch] = []
        # Whether the index that was loaded is known to have reached the disk.
        self._is_settled = False
        # Set when a writer may have died between its commit and the last renames.
        self._may_be_unfinished = True

    # Opening and closing

    def open(self) -> None:
        if not self.read_only:
            make_directories(self.name)
        self._root = Directory.at(self.name)
        try:
            self.checks_instantly = is_local(self._root.fd)
            self._lock = StoreLock(self._root, LOCK_FILE)
            if not self.read_only:
                os.close(self._lock.open_file())
            self._load_index()
            if not self.read_only and self._needs_lock() and self.try_lock():
                try:
                    self.commit([])
                except OSError as error:
                    logger.warning("could not finish what a crash left: %s", error)
                finally:
                    self.unlock()
        except BaseException:
            self.close()
            raise

    def open_damaged(self) -> None:
        """Open a store whose index may be damaged or lost, without a look at it."""
        self._root = Directory.at(self.name)
        self._lock = StoreLock(self._root, LOCK_FILE)

    def check(self, *, verify: bool) -> Check:
        return Check(self.name, verify=verify)

    def _needs_lock(self) -> bool:
        """Whether something is left to do that no call has asked for."""
        self._may_be_unfinished = any(self._leftovers())
        return self._loaded.snapshot.needs_save or self._may_be_unfinished

    def close(self) -> None:
        self._watches.clear()
        self.helpers.shutdown()
        self._adopt(_Loaded(EMPTY, -1))
        self._root.close()

    # Reading the index

    def current(self) -> BlockCatalog | None:
        loaded = self._loaded
        if loaded.fd >= 0:
            try:
                now = os.fstat(loaded.fd)
            except OSError:  # closed meanwhile by a thread that has loaded a newer one
                return None
            return loaded.snapshot if loaded.is_file(now) else None
        return loaded.snapshot if self._root.stat(INDEX_FILE) is None else None

    def modified(self) -> bool:
        return not self._is_loaded()

    def _is_loaded(self) -> bool:
        """Whether the store's index is the file that was loaded last, asked by its name."""
        loaded = self._loaded
        found = self._root.stat(INDEX_FILE)
        if found is None or loaded.fd < 0:
            return found is None and loaded.fd < 0
        return loaded.is_file(found)

    def load(self) -> BlockCatalog:
        """The snapshot of the store as it is now."""
        with self._load_mutex:
            return self._load()

    def read(self, look: Callable[[View], T]) -> T:
        return look(self.load())

    def refresh(self) -> bool:
        is_modified = self.modified()
        self.load()
        return is_modified

    def _load(self) -> BlockCatalog:
        if not self._is_loaded():
            self._load_index()
        return self._loaded.snapshot

    def _load_index(self) -> None:
        previous = self._loaded.snapshot
        fd = self._open_index()
        if fd is None:
            self._adopt(_Loaded(EMPTY, -1))
            return
        try:
            found = self._root.stat_file(INDEX_FILE, fd)
            text = index.Text(partial(self._root.read_into, INDEX_FILE, fd), found.st_size)
            parsed = index.parse(text, previous)
            if parsed is None and (image_id := next(image_directories(self._root), None)):
                raise self._lost_index("is blank", image_id)
            snapshot = previous.with_blocks(*(parsed or ({}, ())))
            if snapshot.needs_save and self.read_only:
                raise DuplicateImageNamesError(
                    f"{self._root.path_of(INDEX_FILE)} has two images of one name: "
                    "open the store for writing once to cure it",
                    path=self._root.path_of(INDEX_FILE),
                )
        except index.MalformedIndexError as error:
            os.close(fd)
            raise self._root.corrupt(
                INDEX_FILE, f"is damaged at byte {error.offset}: {error}"
            ) from error
        except BaseException:
            os.close(fd)
            raise
        self._may_be_unfinished |= _replaces_items(previous, snapshot)
        self._is_settled = False
        self._adopt(_Loaded.of(snapshot, fd, found, is_array=parsed is not None))

    def _open_index(self) -> int | None:
        """Open the index; ``None`` when the store has none yet.

        :raises StoreCorruptError: when it has none any more
        """
        while True:
            try:
                return self._root.open_file(INDEX_FILE)
            except FileNotFoundError:
                image_id = next(image_directories(self._root), None)
            if image_id is None:
                return None
            # An image that was just made has an index by now.
            if self._root.stat(INDEX_FILE) is None:
                raise self._lost_index("is missing", image_id)

    def _lost_index(self, problem: str, image_id: str) -> ImageStoreError:
        return self._root.corrupt(
            INDEX_FILE, f"{problem}, but there are images, {image_id} for one: repair the store"
        )

    def _adopt(self, loaded: _Loaded) -> None:
        previous, self._loaded = self._loaded, loaded
        if previous.fd >= 0:
            os.close(previous.fd)
        if self._watches and loaded.snapshot is not previous.snapshot:
            changes = changes_between(previous.snapshot, loaded.snapshot)
            for watch in self._watches:
                watch.add(changes, loaded.snapshot)
        # A large snapshot goes block by block: in one go that would hold up every other thread.
        blocks = list(previous.snapshot.blocks.values())
        del previous
        while blocks:
            blocks.pop()

    def watch(self) -> DirectoryWatch:
        inotify = open_inotify(self._root)
        try:
            with self._load_mutex:
                watch = DirectoryWatch(inotify, self._load(), self)
                self._watches.append(watch)
        except BaseException:
            if inotify is not None:
                inotify.close()
            raise
        return watch

    def forget(self, watch: DirectoryWatch) -> None:
        """Tell this watch no more; :meth:`close` may have forgotten it already."""
        with self._load_mutex, suppress(ValueError):
            self._watches.remove(watch)

    def touched_since(self, when: datetime) -> bool:
        mark = self._root.stat(LOCK_FILE) or self._root.stat(INDEX_FILE)
        return mark is not None and mark.st_mtime > when.timestamp()

    # The lock

    def try_lock(self) -> bool:
        return self._lock.try_acquire()

    def claim_lock(self) -> Claim:
        return self._lock.claim()

    def unlock(self) -> None:
        self._lock.release()

    def describe_holder(self) -> Holder:
        process, writer = self._lock.holder(), self._lock.last_writer()
        who = f"process {process} holds it" if process else "who holds it the kernel does not tell"
        last = f", process {writer} was the last to write" if writer else ""
        return Holder(self._root.path_of(LOCK_FILE), who + last, process, writer)

    def touch(self) -> None:
        self._lock.write_token()

    # Changing the store

    def draft(self) -> Draft:
        return Draft(self.load())

    def commit(self, changes: Sequence[Mutation]) -> list[Outcome]:
        draft = self.draft()
        outcomes: list[Outcome] = []
        for change in changes:
            try:
                edit = change(draft)
                self._prepare(edit, draft.base)
            except Exception as error:  # noqa: BLE001 (whose change it is raises it)
                outcomes.append(error)
            else:
                draft.apply(edit)
                outcomes.append(edit)
        self.publish(draft)
        return outcomes

    def _prepare(self, edit: Plan, base: View) -> None:
        """Look for what would stop this one change, so that it does not stop its neighbours.

        :raises StoreCorruptError: when an image's directory is something else
        """
        if edit.created is not None and base.record_of(edit.created.id) is None:
            self._clear_stale_directory(edit.created.id)
        for image_id in {image_id for image_id, _ in edit.files}:
            with suppress(FileNotFoundError):
                self._root.open_directory(image_id).close()

    def publish(self, draft: Draft) -> None:
        base = draft.base
        assert isinstance(base, BlockCatalog), "drafts here are made of the loaded catalog"
        snapshot = apply_draft(base, draft)
        if self._may_be_unfinished:
            self._finish_leftovers(base)
        placement = Placement(self._root, base, self.stage)
        try:
            for image_id in draft.created:
                self._clear_stale_directory(image_id)
            if draft.files:
                self._prepare_index(base)
                placement.place(draft.files)
            if snapshot is not base:
                self._write_index(snapshot)
                self._switch_index(snapshot)
        except BaseException:
            self._may_be_unfinished |= not placement.undo()
            raise
        finally:
            placement.release()
        if snapshot is not base:
            self._sync_commit()
        if base.needs_save:
            logger.info("%s had two images of one name: the later kept it", self.name)
        try:
            placement.finish()
        except (OSError, StoreCorruptError) as error:
            self._may_be_unfinished = True
            logger.warning("committed, but left something to the next commit: %s", error)
        self._clear_deleted(draft, snapshot)

    def _write_index(self, snapshot: BlockCatalog) -> None:
        """Write the next index beside the present one, durably."""
        self._root.unlink(NEW_INDEX)
        fd = self._root.open_file(NEW_INDEX, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            self._root.write(NEW_INDEX, fd, list(index.compose(snapshot)))
            self._root.sync_file(NEW_INDEX, fd)
            self._lock.write_token()
        except BaseException as error:
            with suppress(OSError):
                self._root.unlink(NEW_INDEX)
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise self._no_room(error, snapshot) from error
            raise
        finally:
            os.close(fd)

    def _no_room(self, error: OSError, snapshot: BlockCatalog) -> OSError:
        size = sum(len(piece) for piece in index.compose(snapshot))
        return OSError(
            error.errno,
            f"{error.strerror} (every change, a deletion too, needs room for a second index for a "
            f"moment, {size:,} bytes here: make some outside the store, or collect_garbage)",
            error.filename,
        )

    def _switch_index(self, snapshot: BlockCatalog) -> None:
        """Put the next index into place: from here on the change has happened."""
        fd = self._root.open_file(NEW_INDEX)
        with self._load_mutex:
            try:
                self._root.rename(NEW_INDEX, INDEX_FILE)
            except BaseException:
                os.close(fd)
                with suppress(OSError):
                    self._root.unlink(NEW_INDEX)
                raise
            try:
                loaded = _Loaded.of(snapshot, fd, os.fstat(fd))
            except OSError:
                loaded = _Loaded(snapshot, fd, is_array=True)  # in place, but looked at again
            self._adopt(loaded)

    def _prepare_index(self, base: BlockCatalog) -> None:
        """Have a durable index before any file is put in place.

        A crash between the first image's directory and the first index would leave what also is
        left of a store that has lost its index.
        """
        if not self._loaded.is_array:
            self._write_index(base)
            self._switch_index(base)
            self._is_settled = False
        self._settle_index()

    def _settle_index(self) -> None:
        """Make sure that the index that was loaded outlasts a power cut.

        Another writer may have died between its rename and its sync. Before that is made up for,
        nothing may go that the index before it needs.
        """
        if not self._is_settled:
            self._root.sync()
            self._is_settled = True

    def _sync_commit(self) -> None:
        self._is_settled = False
        try:
            self._settle_index()
        except OSError as error:
            self._may_be_unfinished = True
            raise OSError(
                error.errno,
                f"{error.strerror} (the change may have happened: look again)",
                error.filename,
            ) from error

    def _clear_deleted(self, draft: Draft, snapshot: BlockCatalog) -> None:
        for image_id in draft.deleted:
            try:
                self._clear_image(image_id, snapshot)
            except (OSError, StoreCorruptError) as error:
                logger.warning("deleted image %s, but not all of its files: %s", image_id, error)

    def _clear_image(self, image_id: str, snapshot: BlockCatalog) -> None:
        """Remove what a deleted image has left, except what a new one of its ID has put there."""
        record = snapshot.record_of(image_id)
        if record is None:
            self._remove_image_directory(image_id)
            return
        keep = {big_data_file(key) for key in record.image.big_data_names}
        with suppress(FileNotFoundError), self._root.open_directory(image_id) as directory:
            for name in directory.names():
                if name not in keep:
                    directory.unlink(name)

    def _clear_stale_directory(self, image_id: str) -> None:
        """Clear what lies where a new image's directory will be."""
        if self._root.stat(image_id) is not None:
            self._settle_index()
            self._remove_image_directory(image_id)
            logger.info("cleared %s, which no image had", self._root.path_of(image_id))

    def _remove_image_directory(self, image_id: str) -> None:
        """Remove a directory and the files in it, if it is there; nothing below them."""
        try:
            directory = self._root.open_directory(image_id)
        except FileNotFoundError:
            return
        with directory:
            for name in directory.names():
                directory.unlink(name)
        self._root.remove_directory(image_id)

    # What a crash leaves between a commit and its last renames

    def _leftovers(self) -> Iterator[str]:
        return (name for name in self._root.names() if name == NEW_INDEX or is_waiting_name(name))

    def _finish_leftovers(self, snapshot: BlockCatalog) -> None:
        """Rename what waits for it, and remove what nobody waits for. The lock is held."""
        names = set(self._leftovers())
        try:
            if names:
                self._settle_index()
            for name, image_id, key in waiting_items(snapshot, names):
                names.remove(name)
                put_in_place(self._root, name, image_id, key)
                logger.info("finished a commit of a writer that died: %r of %s", key, image_id)
            for name in names:
                self._root.unlink(name)
                logger.info("removed what a writer left that died: %s", self._root.path_of(name))
        except (OSError, StoreCorruptError) as error:
            logger.warning("could not finish what a crash left: %s", error)
        else:
            self._may_be_unfinished = False

    def garbage(self) -> Iterator[Removal]:
        # Whether a writer is at it is told by the lock, so under that all of it is looked for.
        yield self._collect_garbage

    def _collect_garbage(self, progress: Progress) -> Report:
        snapshot = self.load()
        self._finish_leftovers(snapshot)
        self._settle_index()
        report = remove(self._root, garbage(self._root, snapshot), progress)
        return replace(report, images=len(snapshot))

    def repair(self, report: Report, *, drop: bool, progress: Progress) -> Report:
        """Undo what was reported, where it is still so. The lock is held."""
        done: list[Finding] = []
        suspects = {finding.id for finding in report.findings if finding.id}
        told = {(f.kind, f.id, f.key) for f in report.findings}
        now = Check(self.name, verify=True).look_again(self._root, suspects, progress)
        if any(finding.kind in LOST_INDEX for finding in now.findings):
            done.append(self._rebuild_index())
            now = Check(self.name, verify=True).look_again(self._root, (), progress)
            told |= {(f.kind, f.id, f.key) for f in now.findings}
        self._load_index()
        draft = Draft(self._loaded.snapshot)
        for finding in now.findings:
            if (finding.kind, finding.id, finding.key) in told:
                repaired = mend(self._root, draft, finding, drop=drop)
                if repaired is not None:
                    done.append(repaired)
                    logger.info("repair, %s, %s: %s", repaired.kind, repaired.path, repaired.detail)
        self.publish(draft)
        return Report(tuple(done), images=len(self._loaded.snapshot))

    def _rebuild_index(self) -> Finding:
        """Write an index of the records that can still be read, beside the one that was there."""
        self._lock.write_token()
        snapshot, kept = salvage(self._root)
        self._write_index(snapshot)
        self._switch_index(snapshot)
        self._root.sync()
        detail = f"rebuilt with {len(snapshot)} records; the old index is {kept or 'gone'}"
        path = self._root.path_of(INDEX_FILE)
        logger.warning("repair, %s: %s", path, detail)
        return Finding(FindingKind.INDEX_DAMAGED, path=path, detail=detail)

    # Big data

    def stage(self) -> StagedFile:
        return StagedFile(self._root, self.helpers)

    def layer_store(self) -> str | None:
        # As containers/storage lays out a graph root.
        parent, name = os.path.split(os.path.realpath(self.name))
        driver = name.removesuffix(_IMAGE_STORE)
        layers = os.path.join(parent, driver + _LAYER_STORE)
        return layers if driver not in {"", name} and os.path.isdir(layers) else None

    def open_item(self, image: Image, key: str) -> io.FileIO:
        fd = -1
        if digest := image.big_data_digests.get(key):
            with suppress(FileNotFoundError):
                fd = self._root.open_file(waiting_name(image.id, key, digest))
        if fd < 0:
            with self._root.open_directory(image.id) as directory:
                fd = directory.open_file(big_data_file(key))
        return io.FileIO(fd, "rb")


def _replaces_items(before: BlockCatalog, after: BlockCatalog) -> bool:
    """Whether a commit of somebody else's gave an item other content."""
    for record in after.records_not_in(before):
        old = before.record_of(record.id)
        if old is None or bytes(old.raw) == bytes(record.raw):
            continue
        digests = record.image.big_data_digests
        if any(digests.get(k) != d for k, d in old.image.big_data_digests.items()):
            return True
    return False
