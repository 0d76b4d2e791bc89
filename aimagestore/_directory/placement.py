"""The files of one commit: how they get their names, and lose them again if it fails."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from itertools import chain

from .._core.content import InlineContent
from .._core.draft import Draft
from .._core.names import big_data_file
from .._engine.workers import call_all
from .._format.block_catalog import BlockCatalog
from ..errors import StoreCorruptError
from .files import Directory, is_crowded
from .items import DirectoryItems
from .pending import mark_name, pending_name, put_in_place
from .staged import Linkable, NewFile, StagedFile
from .stored import StoredFile

_FILES_AT_ONCE = 128
"""How many files a commit writes before it names and closes them; fewer if many are open.

By default, a process may have 1,024 files open.
"""

_Item = tuple[str, str]
"""The ID of an image, and the key of one of its items."""


class Placement:
    """The files of one commit: placed before it, and moved to their final names after it.

    :param base: the catalog before the commit
    """

    def __init__(self, root: Directory, base: BlockCatalog, items: DirectoryItems) -> None:
        self._root = root
        self._base = base
        self._items = items
        # Content that has a name, by digest: equal content is not stored twice.
        self._contents: dict[str, Linkable] = {}
        # Content that was given in memory and is in a file without a name, by digest.
        self._unnamed: dict[str, NewFile] = {}
        # The files of content that was given in memory, as long as they are open.
        self._own: list[StoredFile | NewFile] = []
        self._placed: list[tuple[StagedFile, str, str]] = []
        self._placed_own: list[tuple[str, str]] = []
        self._pending: list[tuple[str, str, str]] = []
        self._marks: list[str] = []
        self._made: list[str] = []
        self._is_root_changed = False

    def place(self, draft: Draft) -> None:
        """Put the content where readers of the next index find it, but not those of this one."""
        if draft.files:
            self._place_files(draft)
        for old, new in draft.recreated:
            # With equal records, the name of the mark would not tell whether the commit happened.
            if bytes(old.raw) != bytes(new.raw):
                self._marks.append(mark_name(new))
                os.close(self._root.open_file(self._marks[-1], os.O_WRONLY | os.O_CREAT))
        if self._is_root_changed or self._made or self._pending or self._marks:
            self._root.sync()

    def _place_files(self, draft: Draft) -> None:
        staged: list[tuple[_Item, StagedFile]] = []
        inline: dict[str, list[tuple[_Item, InlineContent]]] = {}
        for item, content in draft.files.items():
            if isinstance(content, StagedFile):
                staged.append((item, content))
            else:
                assert isinstance(content, InlineContent), "content is staged here or in memory"
                inline.setdefault(content.digest, []).append((item, content))
        self._finish([content for _, content in staged])
        self._name_all(draft, staged)
        pending = deque(inline.values())
        while pending:
            self._place_inline(draft, pending)

    def _place_inline(
        self, draft: Draft, pending: deque[list[tuple[_Item, InlineContent]]]
    ) -> None:
        """Place some of the content that was given in memory, with few files open.

        :param pending: lists of all items with the same content; those that are placed are removed
        """
        equal: list[list[tuple[_Item, InlineContent]]] = []
        try:
            while pending and len(equal) < _FILES_AT_ONCE:
                equal.append(pending.popleft())
                _, content = equal[-1][0]
                if content.digest not in self._contents and self._find_or_write(content):
                    break
            # At the same time, because file systems write what several files wait for in one go.
            call_all([file.sync for file in self._unnamed.values()], self._items.helpers)
            self._name_all(draft, chain.from_iterable(equal))
        finally:
            for file in self._own:
                file.close()
            self._own.clear()

    def _find_or_write(self, content: InlineContent) -> bool:
        """Find content in the store, or write it.

        :returns: whether the process has many files open
        """
        find = self._items.stored.find_in
        stored = find(self._base, content.digest, content.size, lambda: None)
        if stored is None:
            return self._write(content).is_crowded
        self._own.append(stored)
        self._contents[content.digest] = stored
        return stored.is_crowded

    def _write(self, content: InlineContent) -> NewFile:
        file = self._unnamed[content.digest] = NewFile(self._root, content.data, content.digest)
        self._own.append(file)
        return file

    def _finish(self, contents: Collection[StagedFile]) -> None:
        """Make content durable, or find that another writer has stored it by now."""
        for staged in contents:
            staged.search()
            if not staged.is_stored:
                stored = self._items.stored.find_verified(self._base, staged.digest, staged.size)
                if stored is not None:
                    staged.use(stored)
        # At the same time, because file systems write what several files wait for in one go.
        call_all([s.finish for s in contents if not s.is_finished], self._items.helpers)

    def _name_all(
        self, draft: Draft, items: Iterable[tuple[_Item, StagedFile | InlineContent]]
    ) -> None:
        images: dict[str, list[tuple[str, StagedFile | InlineContent]]] = {}
        for (image_id, key), content in items:
            old, new = self._base.record_of(image_id), draft.record_of(image_id)
            assert new is not None, "content belongs to an image"
            if old is not None and key in old.image.big_data_names:
                name = pending_name(new.image, key)
                if name == pending_name(old.image, key) and self._root.stat(name) is not None:
                    # The item's present content, which recovery could not rename: undoing this
                    # commit would remove it.
                    put_in_place(self._root, name, image_id, key)
                self._name(content, self._root, "", name)
                self._pending.append((name, image_id, key))
            else:
                images.setdefault(image_id, []).append((key, content))
        pending = deque(images.items())
        while pending:
            with ExitStack() as opened:
                directories: list[Directory] = []
                while pending and len(directories) < _FILES_AT_ONCE:
                    image_id, contents = pending.popleft()
                    directory = opened.enter_context(self._open_directory(image_id))
                    directories.append(directory)
                    for key, content in contents:
                        self._name(content, directory, image_id, big_data_file(key))
                    if is_crowded(directory.fd):
                        break
                # At the same time, as above.
                call_all([directory.sync for directory in directories], self._items.helpers)

    def _open_directory(self, image_id: str) -> Directory:
        """Open the directory of an image that gets new items; make it if there is none."""
        if self._root.make_directory(image_id):
            self._made.append(image_id)
        old = self._base.record_of(image_id)
        # Without items, its directory may be one that a dead writer made and did not sync.
        if old is None or not old.image.big_data_names:
            self._is_root_changed = True
        return self._root.open_directory(image_id)

    def _name(
        self, content: StagedFile | InlineContent, directory: Directory, image_id: str, name: str
    ) -> None:
        like = self._contents.get(content.digest)
        if isinstance(content, StagedFile):
            content.publish(directory, name, like)
            self._contents.setdefault(content.digest, content)
            self._placed.append((content, image_id, name))
            return
        if like is None or not like.link_to(directory, name):
            # There is none left if a file can't have another name.
            file = self._unnamed.get(content.digest) or self._write(content)
            del self._unnamed[content.digest]
            file.sync()
            file.publish(directory, name)
            self._contents[content.digest] = file
        self._placed_own.append((image_id, name))

    def undo(self) -> bool:
        """Stage again what was staged before; return whether nothing is left in its place."""
        is_undone = True
        for staged, image_id, name in self._placed:
            try:
                if image_id:
                    with self._root.open_directory(image_id) as directory:
                        staged.withdraw(directory, name)
                else:
                    staged.withdraw(self._root, name)
            except (OSError, StoreCorruptError, ValueError) as error:
                is_undone = self._remove(image_id, name) and is_undone
                staged.lose(error)
        for image_id, name in self._placed_own:
            is_undone = self._remove(image_id, name) and is_undone
        for image_id in self._made:
            with suppress(OSError):
                self._root.remove_directory(image_id)
        for name in self._marks:
            is_undone = self._remove("", name) and is_undone
        return is_undone

    def _remove(self, image_id: str, name: str) -> bool:
        try:
            if image_id:
                with self._root.open_directory(image_id) as directory:
                    directory.unlink(name)
            else:
                self._root.unlink(name)
        except (OSError, StoreCorruptError):
            return False
        return True

    def release(self) -> None:
        """Close the files, which were published."""
        for staged, _, _ in self._placed:
            staged.discard()

    def finish(self) -> None:
        """Rename pending content over the old files."""
        for name, image_id, key in self._pending:
            put_in_place(self._root, name, image_id, key)
