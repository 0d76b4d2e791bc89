"""The commit protocol of a directory, and what a crash leaves at each step of it.

All steps happen under the lock. *Crash* means the end of the process or a power cut. Each step says
what a crash leaves, and who completes or removes that.

1. **Recover** what a dead writer left (``recovery.py``), and make the index durable: its writer
   may have died before step 6.
2. **Clear** directories without a record where new images go.
   *Crash*: whoever creates such an image clears the rest, or the garbage collection does.
3. **Place** the content. Large content is durable already; little is written here, to files without
   names, and synced. Content of new items goes into ``<id>/``, where the present index does not
   look; content that replaces an item is *pending* beside the index, under a name that only the
   next record leads to (``pending.py``). An image that takes the place of a deleted one with the
   same ID gets a *mark*. Sync these directories.
   Content that the store has already is not placed again: its file gets one more name. Every later
   step changes names only, never what is in a file.
   *Crash*: nothing has happened. What was placed is garbage: no record lists it.
4. **Write** the next index as ``.new-images.json``, sync it, and write a new last-write token, so
   that podman reads the index again.
   *Crash*: nothing has happened. The next writer removes the file.
5. **Rename** it over ``images.json``. This is the commit: every reader now finds the new records,
   and the content that belongs to them, pending or not.
   *Crash of the process*: the change has happened. *Power cut*: it has happened, or it has not.
6. **Sync** the store's directory. From here on the change survives a power cut.
7. **Rename** pending content over the old files, and sync their directories.
   *Crash*: the next writer does it; readers find the pending content meanwhile.
8. **Remove** the directories of deleted images. Where another image has the ID, remove what its
   record does not list, and then the mark.
   *Crash*: the next writer does what a mark says. Whoever uses the ID again clears other
   directories, or the garbage collection does.

A failure before step 5 undoes steps 3 and 4, and nothing has happened. After a failure of step 6 it
is not known whether the change survives a power cut; the error says so. After a failure of step 7
or 8 the change has happened: the failure is logged, and recovery does the rest.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from .._core.draft import Draft, Plan
from .._core.mutations import Mutation
from .._core.names import big_data_file
from .._engine.lock import AnyGrant
from .._engine.protocol import Outcome, Removal, Steps
from .._format import index
from .._format.block_catalog import BlockCatalog, apply_draft
from ..errors import ImageInUseError, PodmanFailsError, StoreCorruptError
from .beside import PodmanFiles
from .files import Directory
from .index_file import IndexFile
from .items import DirectoryItems
from .lock import write_token
from .pending import NEW_INDEX, mark_name, remove_unlisted
from .placement import Placement
from .recovery import Recovery

if TYPE_CHECKING:
    from .._core.report import Report

logger = logging.getLogger("aimagestore")

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_MUCH = 1024 * 1024
"""Bytes by which changes make the index larger if one of them may be the reason for a full disk."""


class _DraftError(Exception):
    """Something in a draft cannot be committed; nothing has happened.

    :ivar error: the reason
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class DirectoryWriter:
    """Commits to a directory; see :class:`aimagestore._engine.protocol.Writer`."""

    def __init__(
        self,
        root: Directory,
        index_file: IndexFile,
        recovery: Recovery,
        items: DirectoryItems,
        podman: PodmanFiles,
    ) -> None:
        self._root = root
        self._index = index_file
        self._recovery = recovery
        self._items = items
        self._podman = podman

    def touch(self, grant: AnyGrant) -> None:
        self._index.check_root()
        write_token(self._root)

    def draft(self, grant: AnyGrant) -> Draft:
        return Draft(self._index.load())

    def commit(self, grant: AnyGrant, mutations: Sequence[Mutation]) -> list[Outcome]:
        draft = self.draft(grant)
        mounts: Sequence[str] | None = None
        outcomes: list[Outcome] = []
        for mutation in mutations:
            try:
                plan = mutation(draft)
                if plan.deleted and mounts is None:
                    mounts = self._root.mounts()
                self._prepare(plan, draft, mounts)
            except Exception as error:  # noqa: BLE001 (the caller raises it)
                outcomes.append(error)
            else:
                draft.apply(plan)
                outcomes.append(plan)
        try:
            self._publish(draft)
        except _DraftError as failure:
            if len(mutations) == 1:
                raise failure.error from failure.error.__cause__
            # Commit them in halves, down to each by itself, so that only those with an error fail.
            half = len(mutations) // 2
            parts = mutations[:half], mutations[half:]
            return [outcome for part in parts for outcome in self._commit_part(grant, part)]
        return outcomes

    def _commit_part(self, grant: AnyGrant, mutations: Sequence[Mutation]) -> Sequence[Outcome]:
        try:
            return self.commit(grant, mutations)
        except Exception as error:  # noqa: BLE001 (the callers raise it)
            return [error] * len(mutations)

    def publish(self, grant: AnyGrant, draft: Draft, *, replaces_index: bool = False) -> None:
        """Commit a draft.

        :param replaces_index: whether it is made of what was left of a lost or damaged index
        """
        self._index.check_root()
        try:
            self._publish(draft, replaces_index=replaces_index)
        except _DraftError as failure:
            raise failure.error from failure.error.__cause__

    def prepare(self, plan: Plan, draft: Draft) -> None:
        """Raise what would keep a plan from being committed.

        :raises ImageInUseError: when a container uses an image that would be deleted
        :raises OSError: when something is mounted in the directory of such an image
        :raises StoreCorruptError: when a file is where a directory belongs, or the reverse
        """
        self._prepare(plan, draft)

    def _prepare(self, plan: Plan, draft: Draft, mounts: Sequence[str] | None = None) -> None:
        if plan.deleted:
            self._root.check_no_mount_in(plan.deleted, mounts)
        if plan.deleted and not plan.is_forced:
            self._check_unused(plan.deleted)
        names: dict[str, list[str]] = {}
        for image_id, key in plan.files:
            if draft.base.record_of(image_id) is not None:
                names.setdefault(image_id, []).append(big_data_file(key))
            # The directory of a new image is made later; one that is there is cleared.
            elif self._root.stat(image_id) is not None:
                self._root.open_directory(image_id).close()
        for image_id, files in names.items():
            with suppress(FileNotFoundError), self._root.open_directory(image_id) as directory:
                for name in filter(directory.is_directory, files):
                    raise directory.corrupt(name, "is a directory: move it away")

    def _check_unused(self, image_ids: Sequence[str]) -> None:
        for image_id, containers in self._podman.containers_of(image_ids).items():
            names = tuple(container.name for container in containers)
            noun = "container" if len(names) == 1 else "containers"
            raise ImageInUseError(
                f"image {image_id} is used by the {noun} {', '.join(names)}: remove the {noun} "
                "first, or delete the image with force=True",
                id=image_id,
                containers=names,
            )

    def _publish(self, draft: Draft, *, replaces_index: bool = False) -> None:
        base = draft.base
        assert isinstance(base, BlockCatalog), "the draft is one of this directory"
        self._recovery.recover(base)
        warnings = self._check_for_podman(draft)
        catalog = apply_draft(base, draft)
        is_changed = replaces_index or catalog is not base
        placement = Placement(self._root, base, self._items)
        try:
            self._place(draft, None if replaces_index else base, placement)
            if is_changed:
                self._switch(catalog)
        except BaseException as error:
            if not placement.undo():
                self._recovery.is_needed = True
            if isinstance(error, OSError) and error.errno in _NO_SPACE and _grows_much(draft):
                raise _DraftError(error) from error
            raise
        placement.release()
        if is_changed:
            self._make_durable()
        for warning in warnings:
            logger.warning(warning)
        if base.needs_save:
            logger.info("%s had two images of one name: the later kept it", self._root.path)
        try:
            placement.finish()
        except (OSError, StoreCorruptError) as error:
            self._recovery.is_needed = True
            logger.warning("committed; the next commit completes what failed now: %s", error)
        self._remove_deleted(draft, catalog)

    def _check_for_podman(self, draft: Draft) -> list[str]:
        """Check that podman can read the images that change, and return warnings to log.

        :raises _DraftError: when podman could not read a new image that is not forced
        """
        if self._podman.layer_store is None:
            return []
        from .podman import Podman  # noqa: PLC0415 (only for changes beside podman's layers)

        podman = Podman(self._root, self._podman)
        created = {*draft.created, *(new.id for _, new in draft.recreated)}
        warnings = []
        for delta in draft.record_deltas():
            image_id, old, record = delta.id, delta.old, delta.new
            if record is None or image_id in draft.copied:  # podman lists the original already
                continue
            problems = podman.new_problems(
                None if old is None else old.image, record.image, draft.files
            )
            if problems and image_id in created and image_id not in draft.forced:
                raise _DraftError(
                    PodmanFailsError(
                        f"image {image_id} was not created, because podman images would fail while "
                        f"it is in this store, beside podman's layers: {'; '.join(problems)}; "
                        "create it with force=True, or in another store",
                        id=image_id,
                        path=self._podman.layer_store,
                        problems=tuple(problems),
                    )
                )
            if problems:
                warnings.append(
                    f"podman images fails while image {image_id} is in {self._root.path}: "
                    f"{'; '.join(problems)}"
                )
            elif image_id in created and podman.lacks_layers(record.image, draft.files):
                warnings.append(
                    f"podman lists image {image_id} in {self._root.path}, but can neither run it, "
                    "nor load or pull it, before podman rmi has removed it: it has no layers there"
                )
        return warnings

    def _place(self, draft: Draft, base: BlockCatalog | None, placement: Placement) -> None:
        """Place the content.

        :param base: the catalog of the present index; ``None`` if there is none to keep
        """
        try:
            for image_id in draft.created:
                self._clear_stale_directory(image_id)
            if draft.files and base is not None:
                self._prepare_index(base)
            placement.place(draft)
        except Exception as error:
            raise _DraftError(error) from error

    def _prepare_index(self, base: BlockCatalog) -> None:
        """Make sure that there is a durable index before any content is placed.

        Otherwise, a crash between the first image's directory and the first index would leave a
        store that looks as if it had lost its index.
        """
        if not self._index.is_array:
            self._switch(base)
        self._index.make_durable()

    def _switch(self, catalog: BlockCatalog) -> None:
        """Write the next index and rename it into place."""
        try:
            self._index.switch(NEW_INDEX, self._write_index(catalog), catalog)
        except BaseException as error:
            with suppress(OSError):
                self._root.unlink(NEW_INDEX)
            if isinstance(error, OSError) and error.errno in _NO_SPACE - {errno.EFBIG}:
                raise _no_space(self._root, error, catalog) from error
            raise

    def _write_index(self, catalog: BlockCatalog) -> int:
        """Write the next index, and a new last-write token; return the open file."""
        try:
            fd = self._root.open_file(NEW_INDEX, _NEW_FILE)
        except FileExistsError:  # a commit that failed could not remove it
            self._root.unlink(NEW_INDEX)
            fd = self._root.open_file(NEW_INDEX, _NEW_FILE)
        try:
            self._root.write(NEW_INDEX, fd, list(index.compose(catalog)))
            self._root.sync_file(NEW_INDEX, fd)
            write_token(self._root)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _make_durable(self) -> None:
        try:
            self._index.make_durable()
        except OSError as error:
            self._recovery.is_needed = True
            raise OSError(
                error.errno,
                f"{error.strerror} (the change may have happened: read the store again)",
                error.filename,
            ) from error

    def _remove_deleted(self, draft: Draft, catalog: BlockCatalog) -> None:
        deleted = tuple(draft.deleted)
        if not deleted:
            return
        mounts = cache(self._root.mounts)
        for image_id in deleted:
            try:
                self._remove_image(image_id, catalog, mounts)
            except (OSError, StoreCorruptError) as error:
                self._recovery.is_needed = True
                logger.warning("deleted image %s, but not all of its files: %s", image_id, error)

    def _remove_image(
        self, image_id: str, catalog: BlockCatalog, mounts: Callable[[], Sequence[str]]
    ) -> None:
        """Remove the files of a deleted image, except those of a new image with its ID."""
        record = catalog.record_of(image_id)
        if record is not None:
            remove_unlisted(self._root, record.image)
            self._root.unlink(mark_name(record))
        else:
            with suppress(FileNotFoundError):
                self._root.remove_tree(image_id, mounts())

    def _clear_stale_directory(self, image_id: str) -> None:
        """Remove a directory without a record where that of a new image will be."""
        if self._root.stat(image_id) is not None:
            self._index.make_durable()
            self._root.remove_tree(image_id)
            logger.info("cleared %s, which no image had", self._root.path_of(image_id))

    def garbage(self, *, dry_run: bool) -> Iterator[Removal]:
        from .garbage import garbage, needed_item, remove  # noqa: PLC0415 (rarely used)

        # One removal that finds everything: only under the lock no other writer is at work.
        def collect(grant: AnyGrant) -> Steps[Report]:
            catalog = self._index.load()
            if not dry_run:
                self._recovery.recover(catalog, always=True)
                self._index.make_durable()
            found = garbage(self._root, catalog)
            if self._podman.layer_store is not None:
                found = (finding for finding in found if not needed_item(catalog, finding))
            return (yield from remove(self._root, catalog, found, dry_run))

        yield collect


def _grows_much(draft: Draft) -> bool:
    """Return whether a draft makes the index so much larger that parts of it may have space."""
    growth = 0
    for delta in draft.record_deltas():
        growth += 0 if delta.new is None else len(delta.new.raw)
        growth -= 0 if delta.old is None else len(delta.old.raw)
    return growth >= _MUCH


def _no_space(root: Directory, error: OSError, catalog: BlockCatalog) -> OSError:
    size = sum(len(piece) for piece in index.compose(catalog))
    needed = f"space for a second index for a moment, {size:,} bytes here"
    with suppress(OSError):
        found = os.fstatvfs(root.fd)
        if found.f_files and not found.f_favail:
            needed = "one more file for a moment, and there are no inodes left"
    return OSError(
        error.errno,
        f"{error.strerror} (every change, also a deletion, needs {needed}: free space outside "
        "the store, or call collect_garbage)",
        error.filename,
    )
