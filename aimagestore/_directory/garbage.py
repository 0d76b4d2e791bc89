"""Removes what belongs to no image and to no living writer."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .._core.names import is_id
from .._core.report import Finding, FindingKind, Report
from .._engine.protocol import Progress
from .._format.block_catalog import BlockCatalog
from .contents import is_dead_temporary, is_image_directory, unlisted_files
from .files import Directory


def garbage(root: Directory, snapshot: BlockCatalog) -> Iterator[Finding]:
    """What may go, if no writer is at it.

    A directory that a damaged record may belong to stays, and so does whatever is not an
    image's directory or a temporary.
    """
    for name in root.names():
        record = snapshot.record_of(name)
        if is_dead_temporary(root, name, snapshot):
            yield Finding(FindingKind.TEMPORARY_STALE, path=root.path_of(name))
        elif record is not None:
            if root.is_directory(name):
                for file in unlisted_files(root, record.image):
                    path = os.path.join(root.path_of(name), file)
                    yield Finding(FindingKind.ITEM_UNLISTED, id=name, path=path)
        elif is_id(name) and is_image_directory(root, name) and not _may_be_damaged(snapshot, name):
            path = root.path_of(name)
            yield Finding(FindingKind.DIRECTORY_ORPHANED, id=name, path=path)


def _may_be_damaged(snapshot: BlockCatalog, image_id: str) -> bool:
    """Whether a record that cannot be read may be this image's."""
    return any(image_id.encode() in element for element in snapshot.damaged)


def remove(root: Directory, findings: Iterator[Finding], progress: Progress) -> Report:
    """Remove what was found. The store's lock is held, so no writer is at it."""
    removed = list(findings)
    freed = 0
    for done, finding in enumerate(removed, 1):
        name = os.path.basename(finding.path)
        if finding.kind is FindingKind.DIRECTORY_ORPHANED:
            with root.open_directory(name) as directory:
                for file in directory.names():
                    freed += _remove_file(directory, file)
            root.remove_directory(name)
        elif finding.kind is FindingKind.ITEM_UNLISTED:
            with root.open_directory(finding.id) as directory:
                freed += _remove_file(directory, name)
        else:
            freed += _remove_file(root, name)
        progress(done, len(removed))
    return Report(tuple(removed), bytes=freed)


def _remove_file(directory: Directory, name: str) -> int:
    found = directory.stat(name)
    directory.unlink(name)
    return found.st_size if found is not None else 0
