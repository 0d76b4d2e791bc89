"""Finds and removes files that belong to no image and to no living writer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from .._core.digest import MANIFEST, is_manifest_key
from .._core.names import big_data_key
from .._core.podman import INSTANCES
from .._core.report import STAYS, Finding, FindingKind, Report
from .._core.view import View
from .._engine.protocol import Steps
from .._format.block_catalog import BlockCatalog
from ..errors import StoreCorruptError
from .contents import is_dead_temporary, is_image_directory, unlisted_files
from .files import Directory, NamesRemoved, is_damage


def garbage(root: Directory, catalog: BlockCatalog) -> Iterator[Finding]:
    """Find what may be removed, if no writer is at work.

    A directory that may belong to a damaged record stays, and so does everything that is neither
    an image's directory nor a temporary file, or cannot be looked at because of a damaged disk.
    """
    for name in root.names():
        try:
            yield from _garbage_in(root, catalog, name)
        except OSError as error:
            if not is_damage(error):
                raise


def _garbage_in(root: Directory, catalog: BlockCatalog, name: str) -> Iterator[Finding]:
    """Find what may be removed under one name in the store's directory."""
    record = catalog.record_of(name)
    if is_dead_temporary(root, name, catalog):
        yield Finding(FindingKind.TEMPORARY_STALE, path=root.path_of(name))
    elif record is not None:
        if root.is_directory(name):
            for file in unlisted_files(root, record.image):
                path = os.path.join(root.path_of(name), file)
                yield Finding(FindingKind.ITEM_UNLISTED, id=name, path=path)
    elif is_image_directory(root, name) and not catalog.is_damaged(name):
        path = root.path_of(name)
        yield Finding(FindingKind.DIRECTORY_ORPHANED, id=name, path=path)


def needed_item(catalog: View, finding: Finding) -> str | None:
    """Return the key of an unlisted item that podman needs; ``None`` for other findings.

    podman reads the manifest, the config and the instances of an image even if the record does not
    list them. containers/storage leaves such an item if it is killed after it wrote the file and
    before it saved the record.
    """
    record = catalog.record_of(finding.id)
    if finding.kind is not FindingKind.ITEM_UNLISTED or record is None:
        return None
    key = big_data_key(os.path.basename(finding.path))
    if key in {INSTANCES, f"sha256:{finding.id}"}:  # an image has its ID from its config
        return key
    is_lacking = MANIFEST not in record.image.big_data_names
    return key if key is not None and is_lacking and is_manifest_key(key) else None


def remove(
    root: Directory, catalog: BlockCatalog, findings: Iterator[Finding], dry_run: bool
) -> Steps[Report]:
    """Remove what was found; the lock is held. A step is one finding.

    What cannot be removed stays, and is reported with the reason.
    """
    found = list(findings)
    reported: list[Finding] = []
    freed = 0
    names = NamesRemoved()  # counted in a dry run only
    mounts = cache(root.mounts)
    for done, finding in enumerate(found, 1):
        name = os.path.basename(finding.path)
        try:
            if finding.kind is FindingKind.DIRECTORY_ORPHANED:
                if dry_run:
                    freed += root.tree_size(name, names, mounts())
                else:
                    freed += root.remove_tree(name, mounts())
            elif finding.kind is FindingKind.ITEM_UNLISTED:
                with root.open_directory(finding.id) as directory:
                    freed += _remove_file(directory, name, names, dry_run)
            elif root.is_directory(name):
                freed += _remove_staged(root, name, names, dry_run)
            else:
                freed += _remove_file(root, name, names, dry_run)
        except (OSError, StoreCorruptError) as error:
            reported.append(replace(finding, detail=f"{STAYS}{error}"))
        else:
            reported.append(finding)
        yield done, len(found)
    return Report(tuple(reported), images=len(catalog), bytes=freed)


def _remove_staged(root: Directory, name: str, names: NamesRemoved, dry_run: bool) -> int:
    with root.open_directory(name) as directory:
        # A living writer may have made it since it was found, and not locked it then.
        if not root.lock_file(name, directory.fd, wait=False):
            return 0
        return root.tree_size(name, names) if dry_run else root.remove_tree(name)


def _remove_file(directory: Directory, name: str, names: NamesRemoved, dry_run: bool) -> int:
    found = directory.stat(name)
    if found is None:
        return 0
    if dry_run:
        return names.freed_by(found)
    directory.unlink(name)
    return found.st_size if found.st_nlink == 1 else 0
