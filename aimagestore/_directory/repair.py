"""Repairs a damaged directory; drops what cannot be repaired only if that is asked for."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from .._core import mutations
from .._core.digest import MANIFEST, canonical_digest, is_manifest_key, signed_payload
from .._core.draft import Draft
from .._core.layers import Layer
from .._core.mutations import Mutation
from .._core.names import (
    INDEX_FILE,
    NAME_ANNOTATIONS,
    big_data_file,
    big_data_key,
    check_text,
)
from .._core.podman import INSTANCES
from .._core.record import Record, read
from .._core.report import Finding, FindingKind, Report
from .._engine.items import MANIFEST_MAX, Measured, measure_file, run
from .._engine.lock import AnyGrant
from .._engine.protocol import OtherStores, Steps
from .._format.block_catalog import BlockCatalog, build
from .._format.blocks import Block, new_block_id
from ..errors import ImageStoreError, StoreCorruptError
from .aside import Aside
from .check import DirectoryChecker
from .contents import image_directories
from .engine import DirectoryEngine
from .files import Directory, is_damage
from .garbage import needed_item
from .podman import Podman
from .podman_repair import PodmanRepairs

logger = logging.getLogger("aimagestore")

_LOST_INDEX = frozenset(
    {FindingKind.INDEX_MISSING, FindingKind.INDEX_BLANK, FindingKind.INDEX_DAMAGED}
)
_LOST_ITEM = frozenset(
    {FindingKind.ITEM_MISSING, FindingKind.ITEM_UNREADABLE, FindingKind.ITEM_ALTERED}
)
_LOST_DIRECTORY = frozenset({FindingKind.DIRECTORY_MISSING, FindingKind.ITEM_UNREADABLE})
"""Those that are about all items of an image if they name none."""

_WRONG_SIZE = frozenset({FindingKind.ITEM_SHORT, FindingKind.ITEM_LONG})
_SECTOR_MAX = 4096
"""Bytes that are lost together if a disk is damaged."""

_UNREADABLE = frozenset({FindingKind.RECORD_DAMAGED, FindingKind.DUPLICATE_ID})


class DirectoryRepairer:
    """A directory opened for repair; see :class:`aimagestore._engine.protocol.Repairer`.

    :param others: the additional stores
    """

    def __init__(self, path: str, others: OtherStores | None = None) -> None:
        self._others = others
        self._root = Directory.at(path)
        try:
            self._engine = DirectoryEngine(self._root, read_only=False)
        except BaseException:
            self._root.close()
            raise
        self.lock = self._engine.lock

    def steps(self, grant: AnyGrant, report: Report, *, drop: bool) -> Steps[Report]:
        done: list[Finding] = []
        reported = set(map(_identity, report.findings))
        suspects = {finding.id for finding in report.findings if finding.id}
        present = (yield from self._recheck(suspects)).findings
        aside = Aside(self._root)
        is_lost = _has_lost_index(present)
        if is_lost and not _has_lost_index(report.findings):
            # One failed read does not make an index damaged.
            raise self._root.corrupt(
                INDEX_FILE, "cannot be read, unlike when it was checked: check the store again"
            )
        if is_lost:
            base = salvage(self._root)
            done.append(_rebuilt(self._root, base, aside.index))
            present = (yield from self._recheck((), base)).findings
            reported.update(map(_identity, present))
        else:
            base = self._engine.reader.load()
        draft = Draft(base)
        podman = Podman.beside(self._root, self._engine.podman, (yield from self._layers()))
        repairs = _Repairs(self._root, self._engine, podman, draft, aside.index, drop=drop)
        for repaired in repairs.repair_all([f for f in present if _identity(f) in reported]):
            done.append(repaired)
            logger.info("repair, %s, %s: %s", repaired.kind, repaired.path, repaired.detail)
        try:
            # Before directories are renamed: pending files belong in them.
            self._engine.recovery.recover(base)
            if is_lost or repairs.takes_out:
                aside.keep(repairs.taken_out)
            # In one commit: garbage collection removes directories that the index does not list.
            self._engine.writer.publish(grant, draft, replaces_index=is_lost)
        except BaseException:
            aside.undo()
            raise
        return Report(tuple(done), images=len(self._engine.reader.catalog))

    def _recheck(
        self, suspects: Iterable[str], salvaged: BlockCatalog | None = None
    ) -> Steps[Report]:
        path = self._root.path
        checker = DirectoryChecker(lambda: path, verify=True, others=self._others)
        return (yield from checker.recheck_images(self._root, suspects, salvaged))

    def _layers(self) -> Steps[Mapping[str, Layer] | None]:
        """Return the layers of the additional stores; ``None`` if one cannot be read."""
        if self._others is None:
            return {}
        elsewhere = yield from self._others.look(())
        return None if elsewhere.findings else elsewhere.layers

    def close(self) -> None:
        self._engine.close()


def _rebuilt(root: Directory, salvaged: BlockCatalog, kept: str) -> Finding:
    """Return what is done about a lost or damaged index.

    :param kept: the name that the old one will have
    """
    path = root.path_of(INDEX_FILE)
    kept_as = f"the old index is {kept}" if root.stat(INDEX_FILE) else "there was none"
    detail = f"rebuilt with {len(salvaged)} records; {kept_as}"
    logger.warning("repair, %s: %s", path, detail)
    return Finding(FindingKind.INDEX_DAMAGED, path=path, detail=detail)


def _has_lost_index(findings: Iterable[Finding]) -> bool:
    return any(finding.kind in _LOST_INDEX for finding in findings)


def _identity(finding: Finding) -> tuple[FindingKind, str, str]:
    return finding.kind, finding.id, finding.key


class _Repairs:
    """Repairs findings in a draft.

    :param podman: what podman can read, if the store is podman's
    :param kept_as: the name that the previous index will have, if anything is taken out
    """

    def __init__(
        self,
        root: Directory,
        engine: DirectoryEngine,
        podman: Podman | None,
        draft: Draft,
        kept_as: str,
        *,
        drop: bool,
    ) -> None:
        self._draft = draft
        self._kept_as = kept_as
        self._root = root
        self._writer = engine.writer
        self._drop = drop
        self._podman = (
            None
            if podman is None
            else PodmanRepairs(root, podman, draft, self._apply, kept_as, drop=drop)
        )
        self._takes_out = False

    @property
    def takes_out(self) -> bool:
        """Whether something is taken out of the index that no file can restore."""
        return self._takes_out or (self._podman is not None and self._podman.takes_out)

    @property
    def taken_out(self) -> Sequence[str]:
        """The IDs of the images whose whole records are taken out of podman's store."""
        if self._podman is None:
            return ()
        unreadable: list[str] = []
        if self._draft.drops_damaged:
            base = self._draft.base
            # Garbage collection removes no other directories.
            unreadable = [
                name
                for name in image_directories(self._root)
                if self._draft.record_of(name) is None and base.is_damaged(name)
            ]
        return [*self._podman.taken_out, *unreadable]

    def repair_all(self, findings: Sequence[Finding]) -> Iterator[Finding]:
        """Repair what was found, and iterate over what was done."""
        done = [self._repair(finding) for finding in findings]
        if self._podman is not None:
            images = dict.fromkeys(finding.id for finding in findings if finding.id)
            done += [self._podman.repair(image_id) for image_id in images]
        return (finding for finding in done if finding is not None)

    def _repair(self, finding: Finding) -> Finding | None:
        """Repair one finding, and return what was done; ``None`` if nothing was."""
        try:
            planned = list(self._plan(finding))
            for change, _ in planned:
                self._apply(change)
        except (ImageStoreError, OSError) as error:
            return replace(finding, detail=f"left as it is: {error}")
        if not planned and finding.kind is not FindingKind.DUPLICATE_NAME:
            return None
        # Loading the index has resolved a name conflict already.
        detail = "; ".join(done for _, done in planned) or "the later record keeps the name"
        return replace(finding, detail=detail)

    def _apply(self, change: Mutation) -> None:
        plan = change(self._draft)
        if plan.files:
            self._writer.prepare(plan, self._draft)
        self._draft.apply(plan)

    def _plan(self, finding: Finding) -> Iterator[tuple[Mutation, str]]:
        """Iterate over the mutations that repair a finding, each with what it does."""
        if finding.kind is FindingKind.DIRECTORY_ORPHANED:
            yield _adopt(self._root, finding.id), "its record was rebuilt from its files"
        elif finding.kind is FindingKind.DIGEST_MALFORMED:
            yield _plan_digest(self._root, self._draft, finding)
        elif finding.kind is FindingKind.ITEM_UNLISTED:
            yield from self._plan_unlisted(finding)
        elif finding.kind in _WRONG_SIZE and (size := self._true_size(finding)) is not None:
            yield size
        elif self._drop or (self._podman and finding.kind is FindingKind.RECORD_DAMAGED):
            # For one such record containers/storage refuses the whole store.
            yield from self._plan_drop(finding)

    def _plan_unlisted(self, finding: Finding) -> Iterator[tuple[Mutation, str]]:
        # By the base: in the draft, one manifest that was listed just now would hide the need for
        # another.
        key = needed_item(self._draft.base, finding)
        if self._podman is not None and key is not None:
            found = _as_podman_measures(self._root, finding.id, key)
            if key in {MANIFEST, INSTANCES, f"{MANIFEST}-{found.digest}", found.digest}:
                change = mutations.describe_big_data(finding.id, key, found)
                yield change, "its record lists it now"

    def _true_size(self, finding: Finding) -> tuple[Mutation, str] | None:
        image = self._draft.get(finding.id)
        found = _measure(self._root, image.id, finding.key)
        if found.digest != image.big_data_digests.get(finding.key):
            return None
        change = mutations.describe_big_data(image.id, finding.key, found)
        return change, f"its size was corrected: {found.size} bytes"

    def _plan_drop(self, finding: Finding) -> Iterator[tuple[Mutation, str]]:
        if finding.kind in _UNREADABLE:
            self._takes_out = True
            is_shadowed = finding.kind is FindingKind.DUPLICATE_ID
            yield (
                mutations.drop_shadowed(finding.id) if is_shadowed else mutations.drop_damaged(),
                f"taken out of the index, which stays as {self._kept_as}",
            )
        elif finding.key and finding.kind in (_LOST_ITEM | _WRONG_SIZE):
            self._takes_out = True
            yield mutations.drop_big_data(finding.id, finding.key), "dropped from the record"
        elif finding.kind in _LOST_DIRECTORY:
            self._takes_out = True
            for key in self._draft.get(finding.id).big_data_names:
                yield mutations.drop_big_data(finding.id, key), f"{key} dropped from the record"


def _plan_digest(root: Directory, draft: Draft, finding: Finding) -> tuple[Mutation, str]:
    """Plan a digest in place of a malformed one."""
    image, key = draft.get(finding.id), finding.key
    if not key:
        return mutations.reset_digest(image.id), f"{finding.detail}: replaced by its manifest's"
    found = None
    if key in image.big_data_names:
        with suppress(OSError, StoreCorruptError):
            found = _as_podman_measures(root, image.id, key)
    if found is None or found.size != image.big_data_sizes.get(key, found.size):
        # A new digest would make damaged content look whole.
        return mutations.clear_big_data_digest(image.id, key), f"{finding.detail}: removed"
    change = mutations.describe_big_data(image.id, key, found)
    return change, f"{finding.detail}: replaced by {found.digest}"


def _as_podman_measures(root: Directory, image_id: str, key: str) -> Measured:
    """Measure an item; a signed manifest's digest is that of its text without signatures."""
    found = _measure(root, image_id, key)
    if is_manifest_key(key) and found.size <= MANIFEST_MAX:
        with root.open_directory(image_id) as directory, _open(directory, big_data_file(key)) as f:
            payload = signed_payload(f.readall())
        if payload is not None:
            return Measured(found.size, canonical_digest(payload))
    return found


def _measure(root: Directory, image_id: str, key: str) -> Measured:
    with root.open_directory(image_id) as directory, _open(directory, big_data_file(key)) as file:
        return run(measure_file(file))


def _open(directory: Directory, name: str) -> io.FileIO:
    return io.FileIO(directory.open_file(name), "rb")


# A directory whose record is lost


def _adopt(root: Directory, image_id: str) -> Mutation:
    """Plan a record made from a directory: keys, sizes and digests, and names in its manifests.

    :raises StoreCorruptError: when the directory has no big data
    """
    contents: dict[str, Measured] = {}
    names: list[str] = []
    modified: list[float] = []
    with root.open_directory(image_id) as directory:
        for name in sorted(directory.names()):
            key = big_data_key(name)
            if key is None or directory.is_directory(name):  # userdata for instance
                continue
            with _open(directory, name) as file:
                modified.append(os.fstat(file.fileno()).st_mtime)
                contents[key] = run(measure_file(file))
                if is_manifest_key(key) and contents[key].size <= MANIFEST_MAX:
                    file.seek(0)
                    names += _names_in(file.readall())
        if not contents:
            # A record without items would make `podman images` fail.
            raise root.corrupt(image_id, "has no big data: collect_garbage removes it")
    return mutations.adopt(image_id, contents, names, _time(min(modified)))


def _time(seconds: float) -> datetime:
    """Return the time of a file; the present one if no record can have it."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError):
        return datetime.now(UTC)


def _names_in(manifest: bytes) -> Iterator[str]:
    try:
        annotations: Any = json.loads(manifest).get("annotations", {})
        found = [annotations.get(annotation) for annotation in NAME_ANNOTATIONS]
    except (ValueError, AttributeError, RecursionError):
        return
    for name in found:
        if isinstance(name, str) and name:
            with suppress(ValueError):  # JSON can have names that are not valid Unicode
                yield check_text(name, "a name")


# An index that is lost or damaged


def salvage(root: Directory) -> BlockCatalog:
    """Return the records that can still be read in a damaged index."""
    try:
        fd = root.open_file(INDEX_FILE)
    except FileNotFoundError:
        return build({}, ())
    try:
        text = _readable_text(root, fd)
    finally:
        os.close(fd)
    block_id = new_block_id()
    records = list(_readable_records(text, block_id))
    return build({block_id: Block.of(records)} if records else {}, ())


def _readable_text(root: Directory, fd: int) -> bytes:
    """Return the text of an index, with NULs in place of what a damaged disk does not give back."""
    pieces = []
    for position in range(0, root.stat_file(INDEX_FILE, fd).st_size, _SECTOR_MAX):
        try:
            pieces.append(root.read_at(INDEX_FILE, fd, _SECTOR_MAX, position))
        except OSError as error:
            if not is_damage(error):
                raise
            pieces.append(bytes(_SECTOR_MAX))
    return b"".join(pieces)


def _readable_records(text: bytes, block_id: int) -> Iterator[Record]:
    """Iterate over the whole records in a text, wherever they are; skip the text between them."""
    decoder = json.JSONDecoder()
    characters = text.decode(errors="surrogateescape")
    start = characters.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(characters, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            # A record always has these two fields; an object in a record's flags hardly has both.
            if "id" in value and "created" in value:
                raw = characters[start:end].encode(errors="surrogateescape")
                record = read(raw, block_id)
                if record is not None:
                    yield record
            else:
                end = start + 1
        start = characters.find("{", end)
