"""Repairs damage as far as that is possible; drops nothing unless that was asked for."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from .._core import mutations
from .._core.digest import canonical_digest, is_manifest_key, signed_payload
from .._core.draft import Draft
from .._core.mutations import Mutation
from .._core.names import INDEX_FILE, NAME_ANNOTATIONS, big_data_file, big_data_key
from .._core.record import Record, read
from .._core.report import Finding, FindingKind, Report
from .._engine.items import MANIFEST_MAX, Measured, measure_file, run
from .._engine.lock import AnyGrant
from .._engine.protocol import Steps
from .._format.block_catalog import BlockCatalog, build
from .._format.blocks import Block, new_block_id
from ..errors import ImageStoreError, StoreCorruptError
from .check import DirectoryChecker
from .engine import DirectoryEngine
from .files import Directory

logger = logging.getLogger("aimagestore")

LOST_INDEX = frozenset(
    {FindingKind.INDEX_MISSING, FindingKind.INDEX_BLANK, FindingKind.INDEX_DAMAGED}
)
_LOST_ITEM = frozenset(
    {FindingKind.ITEM_MISSING, FindingKind.ITEM_UNREADABLE, FindingKind.ITEM_ALTERED}
)
_WRONG_SIZE = frozenset({FindingKind.ITEM_SHORT, FindingKind.ITEM_LONG})
_UNREADABLE = frozenset({FindingKind.RECORD_DAMAGED, FindingKind.DUPLICATE_ID})


class DirectoryRepairer:
    """A directory opened for repair; see :class:`aimagestore._engine.protocol.Repairer`."""

    def __init__(self, path: str) -> None:
        self._root = Directory.at(path)
        try:
            self._engine = DirectoryEngine(self._root, read_only=False)
        except BaseException:
            self._root.close()
            raise
        self.lock = self._engine.lock

    def steps(self, grant: AnyGrant, report: Report, *, drop: bool) -> Steps[Report]:
        root, path = self._root, self._root.path
        done: list[Finding] = []
        suspects = {finding.id for finding in report.findings if finding.id}
        reported = {(f.kind, f.id, f.key) for f in report.findings}
        checker = DirectoryChecker(lambda: path, verify=True)
        now = yield from checker.recheck_images(root, suspects)
        if any(finding.kind in LOST_INDEX for finding in now.findings):
            done.append(self._rebuild_index())
            checker = DirectoryChecker(lambda: path, verify=True)
            now = yield from checker.recheck_images(root, ())
            reported |= {(f.kind, f.id, f.key) for f in now.findings}
        draft = self._engine.writer.draft(grant)
        for finding in now.findings:
            if (finding.kind, finding.id, finding.key) in reported:
                repaired = repair_finding(root, draft, finding, drop=drop)
                if repaired is not None:
                    done.append(repaired)
                    logger.info("repair, %s, %s: %s", repaired.kind, repaired.path, repaired.detail)
        self._engine.writer.publish(grant, draft)
        return Report(tuple(done), images=len(self._engine.reader.catalog))

    def _rebuild_index(self) -> Finding:
        """Write an index of the records that can still be read; the old one stays beside it."""
        catalog, kept = salvage(self._root)
        self._engine.writer.replace_index(catalog)
        kept_as = f"the old index is {kept}" if kept else "there was none"
        detail = f"rebuilt with {len(catalog)} records; {kept_as}"
        path = self._root.path_of(INDEX_FILE)
        logger.warning("repair, %s: %s", path, detail)
        return Finding(FindingKind.INDEX_DAMAGED, path=path, detail=detail)

    def close(self) -> None:
        self._engine.close()


def repair_finding(
    root: Directory, draft: Draft, finding: Finding, *, drop: bool
) -> Finding | None:
    """Repair one finding in the draft, and say how; ``None`` when nothing was done."""
    try:
        planned = list(_plan(root, draft, finding, drop=drop))
        for change, _ in planned:
            draft.apply(change(draft))
    except (ImageStoreError, OSError) as error:
        return replace(finding, detail=f"left as it is: {error}")
    if not planned and finding.kind is not FindingKind.DUPLICATE_NAME:
        return None
    return replace(finding, detail="; ".join(said for _, said in planned) or "the later keeps it")


def _plan(
    root: Directory, draft: Draft, finding: Finding, *, drop: bool
) -> Iterator[tuple[Mutation, str]]:
    if finding.kind is FindingKind.DIRECTORY_ORPHANED:
        yield _adopt(root, finding.id), "its record was rebuilt from its files"
    elif finding.kind in _UNREADABLE and drop:
        yield mutations.drop_unreadable(), "dropped"
    elif finding.kind is FindingKind.DIGEST_MALFORMED:
        yield _plan_digest(root, draft, finding)
    elif finding.kind in _WRONG_SIZE:
        image = draft.get(finding.id)
        found = _measure(root, image.id, finding.key)
        if found.digest == image.big_data_digests.get(finding.key):
            change = mutations.describe_big_data(image.id, finding.key, found)
            yield change, f"its size was put right: {found.size} bytes"
        elif drop:
            yield mutations.drop_big_data(image.id, finding.key), "dropped from the record"
    elif finding.kind in _LOST_ITEM and drop:
        yield mutations.drop_big_data(finding.id, finding.key), "dropped from the record"
    elif finding.kind is FindingKind.DIRECTORY_MISSING and drop:
        for key in draft.get(finding.id).big_data_names:
            yield mutations.drop_big_data(finding.id, key), f"{key} dropped from the record"


def _plan_digest(root: Directory, draft: Draft, finding: Finding) -> tuple[Mutation, str]:
    """Plan a digest in place of a malformed one."""
    image, key = draft.get(finding.id), finding.key
    if not key:
        return mutations.reset_digest(image.id), f"{finding.detail}: that of its manifest instead"
    found = None
    with suppress(OSError, StoreCorruptError):
        found = _as_podman_measures(root, image.id, key)
    if found is None or found.size != image.big_data_sizes.get(key, found.size):
        # A new digest would make damaged content look whole.
        return mutations.clear_big_data_digest(image.id, key), f"{finding.detail}: removed"
    change = mutations.describe_big_data(image.id, key, found)
    return change, f"{finding.detail}: {found.digest} instead"


def _as_podman_measures(root: Directory, image_id: str, key: str) -> Measured:
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


# A directory whose record is gone


def _adopt(root: Directory, image_id: str) -> Mutation:
    """A record made of what the files say: keys, sizes, digests, and names in a manifest."""
    contents: dict[str, Measured] = {}
    names: list[str] = []
    made: list[float] = []
    with root.open_directory(image_id) as directory:
        for name in sorted(directory.names()):
            key = big_data_key(name)
            if key is None or directory.is_directory(name):  # userdata for instance
                continue
            with _open(directory, name) as file:
                made.append(os.fstat(file.fileno()).st_mtime)
                contents[key] = run(measure_file(file))
                if is_manifest_key(key) and contents[key].size <= MANIFEST_MAX:
                    file.seek(0)
                    names += _names_in(file.readall())
        if not contents:
            # A record without items would make `podman images` fail.
            raise root.corrupt(image_id, "has no big data: collect_garbage removes it")
    return mutations.adopt(image_id, contents, names, datetime.fromtimestamp(min(made), UTC))


def _names_in(manifest: bytes) -> Iterator[str]:
    try:
        annotations: Any = json.loads(manifest).get("annotations", {})
        found = [annotations.get(annotation) for annotation in NAME_ANNOTATIONS]
    except (ValueError, AttributeError, RecursionError):
        return
    yield from (name for name in found if isinstance(name, str) and name)


# An index that is lost or damaged


def salvage(root: Directory) -> tuple[BlockCatalog, str]:
    """The records that can still be read in a damaged index, and the name it is kept under."""
    try:
        fd = root.open_file(INDEX_FILE)
    except FileNotFoundError:
        return build({}, ()), ""
    with io.FileIO(fd, "rb") as file:
        text = file.readall()
    present = set(root.names())
    kept = next(
        name for n in range(1, len(present) + 2) if (name := f"{INDEX_FILE}.old-{n}") not in present
    )
    root.keep_beside(INDEX_FILE, kept)
    block_id = new_block_id()
    records = list(_readable_records(text, block_id))
    return build({block_id: Block.of(records, block_id)} if records else {}, ()), kept


def _readable_records(text: bytes, block_id: int) -> Iterator[Record]:
    """Every whole record in a text, wherever it stands; the text between them is passed over."""
    decoder = json.JSONDecoder()
    characters = text.decode(errors="surrogateescape")
    place = characters.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(characters, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            # A record always says when it was created; an object in a record's flags hardly does.
            if "id" in value and "created" in value:
                raw = characters[place:end].encode(errors="surrogateescape")
                record = read(raw, block_id)
                if record is not None:
                    yield record
            else:
                end = place + 1
        place = characters.find("{", end)
