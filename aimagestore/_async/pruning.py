"""Measuring the space that images take, and pruning them by a policy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from .._core.digest import MANIFEST
from .._core.documents import DOCUMENT_MAX, read_documents, read_manifest
from .._core.image import Image
from .._core.layers import PodmanRecords
from .._core.podman import INSTANCES
from .._core.pruning import (
    Candidate,
    PrunePolicy,
    PruneResult,
    attach_result,
    named_by,
    plan_prune,
    used_by,
)
from .._core.usage import Deletion, StoredContent, Usage
from .._engine import items
from .._engine.lock import AnyGrant
from .._engine.protocol import ChangeUnderWayError, Feed
from ..errors import BigDataMissingError, BigDataUnknownError, ImageInUseError, ImageUnknownError
from .core import StoreCore
from .layers import read_with_layers
from .staging import Progress
from .threads import Stepper

logger = logging.getLogger("aimagestore")

_AT_ONCE = 50
"""Images that are deleted in one commit. Others wait for the lock as long as that takes."""

_COMMITS = 200
"""Commits after which all images should be deleted: each may write the whole index again."""

_AT_ONCE_MAX = 1000
"""The most images that are deleted in one commit."""


async def measure(core: StoreCore) -> StoredContent:
    """Find what is stored for each image. If interrupted, this stops at once."""
    return await core.read_whole(lambda: Stepper(core.engine.items.usage(), core.threads).run())


async def usage_of(core: StoreCore) -> Usage:
    """Measure each image and the whole store. If interrupted, this stops at once."""
    # The thread takes these out and frees them, which takes long for many images.
    found = [(await measure(core), *await read_with_layers(core))]
    is_podmans = core.engine.podman is not None

    def usage() -> Usage:
        content, catalog, records = found.pop()
        sizes = {i.id: records.layers_size(i) for i in catalog.images} if is_podmans else {}
        return content.usage(sizes, _containers(records))

    return await core.threads.run_abandonable(usage)


def _containers(records: PodmanRecords) -> dict[str, tuple[str, ...]]:
    """Return the names of the containers that use each image, by its ID."""
    users = records.users.items()
    return {image_id: tuple(each.name for each in found) for image_id, found in users}


class Pruning:
    """One pruning of a store.

    Worker threads change its state while the task waits, because there may be many images.
    """

    def __init__(self, core: StoreCore) -> None:
        self._core = core
        # What was deleted so far, how much that freed, and why other images are kept.
        self._deleted: list[Image] = []
        self._deletion = Deletion(StoredContent({}, 0))
        self._kept: dict[str, str] = {}
        # The image indexes that others made or changed meanwhile and that are not read yet, and the
        # IDs of those that are read, by the digests of the images that they list.
        self._unread: list[Image] = []
        self._listed: dict[str, str] = {}

    async def run(self, policy: PrunePolicy, progress: Progress | None) -> PruneResult:
        """Delete the images that the policy does not keep, in several commits.

        An exception that ends this early carries the result so far, for :meth:`PruneResult.of`.
        """
        core = self._core
        try:
            feed = await core.read_whole(
                lambda: core.threads.run_abandonable(
                    core.engine.reader.watch, dispose=lambda feed: feed.close()
                )
            )
            core.own(feed, feed.close)
            try:
                await self._run(policy, feed, progress)
            finally:
                await core.release(feed)
            result = self._result()
        except BaseException as error:
            attach_result(error, self._result())
            logger.info("pruning ended early: %d images had been deleted", len(self._deleted))
            raise
        finally:
            core.threads.spawn(self._forget)
        return result

    async def _run(self, policy: PrunePolicy, feed: Feed, progress: Progress | None) -> None:
        candidates = await self._plan(policy)
        at_once = max(_AT_ONCE, min(len(candidates) // _COMMITS, _AT_ONCE_MAX))
        for start in range(0, len(candidates), at_once):
            await self._delete(candidates[start : start + at_once], feed)
            if progress is not None:
                progress(min(start + at_once, len(candidates)), len(candidates))

    async def forecast(self, policy: PrunePolicy) -> PruneResult:
        """Return what :meth:`run` would delete."""
        candidates = await self._plan(policy)

        def count() -> PruneResult:
            for candidate in candidates:
                self._note_deleted(candidate.image)
            result = self._result()
            self._forget()
            return result

        return await self._core.threads.run_abandonable(count)

    def _forget(self) -> None:
        """Free what was measured. In a worker thread: it takes long for many images."""
        self._deletion = Deletion(StoredContent({}, 0))

    def _note_deleted(self, image: Image) -> None:
        self._deleted.append(image)
        self._deletion.add(image.id)

    def _result(self) -> PruneResult:
        return PruneResult(tuple(self._deleted), self._deletion.freed, self._kept.copy())

    async def _plan(self, policy: PrunePolicy) -> Sequence[Candidate]:
        core = self._core
        # The threads take these out and free them, which takes long for many images.
        found = [await read_with_layers(core)]
        contents = [await measure(core)]
        instances = await core.read_whole(
            lambda: core.threads.run_while_wanted(partial(self._instances, found[0][0].images))
        )

        def plan(check: Callable[[], None]) -> Sequence[Candidate]:
            catalog, records = found.pop()
            planned = plan_prune(
                catalog.images,
                policy,
                now=datetime.now(UTC),
                containers=_containers(records),
                instances=instances,
                check=check,
            )
            self._deletion = Deletion(contents.pop())
            self._kept |= planned.kept
            return planned.candidates

        return await core.threads.run_while_wanted(plan)

    def _instances(self, images: Iterable[Image], check: Callable[[], object]) -> Mapping[str, str]:
        """Return the IDs of image indexes, by the digests of the images that they list.

        :param check: called before each image; what it raises ends this
        """
        found: dict[str, str] = {}
        for image in images:
            check()
            # Only image indexes have this item of podman's.
            is_index = INSTANCES in image.big_data_names
            if not is_index or image.big_data_sizes.get(MANIFEST, 0) > DOCUMENT_MAX:
                continue
            try:
                text = items.read_item(self._core.engine.items, image.id, MANIFEST)
            except (ImageUnknownError, BigDataUnknownError, BigDataMissingError):
                continue  # it was deleted meanwhile, or is damaged, which a check reports
            found |= dict.fromkeys(read_documents(read_manifest(text), None).instances, image.id)
        return found

    async def _delete(self, candidates: Sequence[Candidate], feed: Feed) -> None:
        """Delete images in one commit. If interrupted, this returns when that is decided."""
        core, is_done = self._core, False
        while not is_done:
            # Without the lock, because nobody is to wait for an object store.
            await core.read_whole(
                lambda: core.threads.run_while_wanted(partial(self._read_indexes, feed))
            )
            async with core.hold() as grant:
                is_done = await core.threads.run_shielded(
                    grant.run, self._commit, grant, candidates, feed
                )

    def _read_indexes(self, feed: Feed, check: Callable[[], object]) -> None:
        """Read the image indexes that are new or changed."""
        self._note_indexes(feed)
        self._listed |= self._instances(self._unread, check)
        self._unread = []

    def _note_indexes(self, feed: Feed) -> None:
        images = (event.image for event in feed.poll())
        self._unread += [i for i in images if i is not None and INSTANCES in i.big_data_names]

    def _commit(self, grant: AnyGrant, candidates: Sequence[Candidate], feed: Feed) -> bool:
        """Delete images, unless there is an image index that is not read yet.

        :returns: whether they were deleted
        """
        try:
            self._note_indexes(feed)
        except ChangeUnderWayError:  # in an additional store
            return False
        if self._unread:
            return False
        listed = {each.image.id: lister for each in candidates if (lister := self._lister(each))}
        self._kept |= {image_id: named_by(lister) for image_id, lister in listed.items()}
        candidates = [each for each in candidates if each.image.id not in listed]
        mutations = [candidate.mutation() for candidate in candidates]
        outcomes = self._core.engine.writer.commit(grant, mutations)
        for candidate, outcome in zip(candidates, outcomes, strict=True):
            image = candidate.image
            if isinstance(outcome, ImageUnknownError):
                continue
            if isinstance(outcome, ImageInUseError):
                self._kept[image.id] = used_by(outcome.containers)
            elif isinstance(outcome, Exception):
                self._kept[image.id] = f"it cannot be deleted: {outcome}"
            elif outcome.deleted:
                self._note_deleted(image)
            else:
                self._kept[image.id] = "it was changed meanwhile, or a newer image was"
        return True

    def _lister(self, candidate: Candidate) -> str | None:
        """Return the ID of an image index that was made or changed meanwhile and lists an image."""
        return next((self._listed[d] for d in candidate.image.digests if d in self._listed), None)
