"""Checks a directory for damage, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial

from .._core.digest import digest_of, hasher, is_digest, is_manifest_key, signed_digest
from .._core.image import Image
from .._core.names import INDEX_FILE, LOCK_FILE, big_data_file, check_key
from .._core.record import Record
from .._core.report import Finding, FindingKind, Report
from .._engine.items import CHUNK, MANIFEST_MAX
from .._engine.lock import AnyLine
from .._engine.protocol import ChangeUnderWayError, Elsewhere, OtherStores, Steps
from .._format import index
from .._format.block_catalog import EMPTY, BlockCatalog, build
from ..errors import InvalidBigDataNameError, StoreCorruptError
from .beside import PodmanFiles
from .check_beside import check_beside, images_of_containers
from .contents import image_directories
from .files import Directory, is_damage
from .garbage import garbage
from .index_file import open_index
from .lock import open_lock_file, shared_line
from .mounts import is_local
from .pending import open_current
from .podman import Podman


class DirectoryChecker:
    """Checks a directory; see :class:`aimagestore._engine.protocol.Checker`.

    What looks damaged is checked again under the readers' lock: a writer may have been at work.

    :param path: returns the path of the directory, or raises
    :param verify: as for :func:`aimagestore.check`
    :param container_stores: as for :class:`DirectoryLocation`
    :param others: the additional stores
    """

    def __init__(
        self,
        path: Callable[[], str],
        *,
        verify: bool,
        container_stores: Iterable[str] = (),
        others: OtherStores | None = None,
    ) -> None:
        self._others = others
        self._path = path
        self._container_stores = container_stores
        self._verify = verify
        self._findings: list[Finding] = []
        self._was_under_way = False
        self._images = 0
        self._items = 0
        self._bytes = 0
        # The versions and digests of intact files that have several names: each is read once.
        self._intact: set[tuple[int, int, int, str]] = set()

    def _report(self) -> Report:
        return Report(tuple(self._findings), self._images, self._items, self._bytes)

    def steps(self) -> Steps[Report]:
        self._was_under_way = False
        with Directory.at(self._path()) as root:
            yield from self._check(root)
        return self._report()

    def join_lock(self) -> AnyLine | None:
        if not (self._findings or self._was_under_way):
            return None
        with Directory.at(self._path()) as root:
            return shared_line(root)

    def recheck(self) -> Steps[Report]:
        with Directory.at(self._path()) as root:
            suspects = {finding.id for finding in self._findings if finding.id}
            return (yield from self.recheck_images(root, suspects))

    def recheck_images(
        self, root: Directory, suspects: Iterable[str], salvaged: BlockCatalog | None = None
    ) -> Steps[Report]:
        """Check some images again, and what belongs to no image; the lock keeps writers out.

        :param salvaged: what is left of a lost or damaged index, to be checked instead of it
        """
        self._findings.clear()
        self._intact.clear()
        yield from self._check(root, suspects, salvaged)
        return self._report()

    def _check(
        self,
        root: Directory,
        suspects: Iterable[str] | None = None,
        salvaged: BlockCatalog | None = None,
    ) -> Iterator[tuple[int, int]]:
        """Check all images, or only the suspects, and what belongs to no image."""
        self._check_lock(root)
        snapshot = self._read_index(root) if salvaged is None else salvaged
        if snapshot is None:
            return
        if salvaged is not None:
            self._check_elements(root.path_of(INDEX_FILE), salvaged)
        with closing(PodmanFiles(root.path, self._container_stores)) as files:
            elsewhere = Elsewhere()
            if self._others is not None:
                elsewhere = yield from self._others.look(images_of_containers(files))
            self._findings += elsewhere.findings
            podman = Podman.beside(root, files, elsewhere.layers)
            yield from self._check_records(root, snapshot, podman, suspects)
            self._findings += check_beside(files, snapshot, elsewhere.images)
        self._findings += garbage(root, snapshot)

    def _check_records(
        self,
        root: Directory,
        snapshot: BlockCatalog,
        podman: Podman | None,
        suspects: Iterable[str] | None,
    ) -> Iterator[tuple[int, int]]:
        records = list(snapshot.records())
        if suspects is not None:
            records = [record for record in records if record.id in suspects]
        total = sum(sum(record.image.big_data_sizes.values()) for record in records)
        done = 0
        for record in records:
            counted = suspects is None
            self._images += counted
            for step in self._check_image(root, record.image, counted=counted):
                done += step
                yield done, max(done, total)
            if podman is not None:
                self._check_for_podman(root, podman, record.image)

    def _add(
        self, kind: FindingKind, path: str, detail: str = "", id: str = "", key: str = ""
    ) -> None:
        self._findings.append(Finding(kind, id, key, path, detail))

    def _check_lock(self, root: Directory) -> None:
        try:
            os.close(open_lock_file(root, os.O_RDONLY))
        except StoreCorruptError as error:
            self._add(FindingKind.LOCK_DAMAGED, root.path_of(LOCK_FILE), str(error))
        except (FileNotFoundError, PermissionError):
            pass  # a store that was never changed, or that another user changes

    # The index

    def _read_index(self, root: Directory) -> BlockCatalog | None:
        path = root.path_of(INDEX_FILE)
        try:
            fd = open_index(root, is_local=is_local(root.fd))
        except ChangeUnderWayError:
            self._was_under_way = True
            raise
        except FileNotFoundError:
            return self._lost_index(root, FindingKind.INDEX_MISSING)
        except StoreCorruptError as error:
            self._add(FindingKind.INDEX_DAMAGED, path, str(error))
            return None
        try:
            size = root.stat_file(INDEX_FILE, fd).st_size
            text = index.Text(partial(root.read_into, INDEX_FILE, fd), size)
            parsed = index.parse(text, EMPTY)
        except index.MalformedIndexError as error:
            self._add(FindingKind.INDEX_DAMAGED, path, f"at byte {error.offset}: {error}")
            return None
        except OSError as error:
            if not is_damage(error):
                raise
            self._add(FindingKind.INDEX_DAMAGED, path, str(error))
            return None
        finally:
            os.close(fd)
        if parsed is None:
            return self._lost_index(root, FindingKind.INDEX_BLANK)
        snapshot = build(*parsed)
        self._check_elements(path, snapshot)
        self._check_shared_names(path, [r for b in parsed[0].values() for r in b.records], snapshot)
        return snapshot

    def _check_elements(self, path: str, snapshot: BlockCatalog) -> None:
        for element in snapshot.damaged:
            self._add(FindingKind.RECORD_DAMAGED, path, element[:100].decode(errors="replace"))
        for image_id, records in snapshot.shadowed.items():
            for _ in records:
                self._add(FindingKind.DUPLICATE_ID, path, "a later record counts", id=image_id)

    def _check_shared_names(self, path: str, records: list[Record], snapshot: BlockCatalog) -> None:
        for record in records:
            if record in snapshot.shadowed.get(record.id, ()):
                continue
            for name in record.names:
                owner = snapshot.owner_of(name)
                if owner != record.id:
                    detail = f"the name {name!r} belongs to {owner}"
                    self._add(FindingKind.DUPLICATE_NAME, path, detail, id=record.id)

    def _lost_index(self, root: Directory, kind: FindingKind) -> BlockCatalog | None:
        """Report a missing or blank index beside images; without any, the store is empty."""
        images = list(image_directories(root))
        if not images:
            return build({}, ())
        self._add(kind, root.path_of(INDEX_FILE), f"beside {len(images)} images")
        return None

    # The items

    def _check_image(self, root: Directory, image: Image, *, counted: bool) -> Iterator[int]:
        self._check_digests(root.path_of(INDEX_FILE), image)
        if not image.big_data_names:
            return
        path = root.path_of(image.id)
        with self._noting_unreadable(path, image.id):
            try:
                directory = root.open_directory(image.id)
            except FileNotFoundError:
                self._add(FindingKind.DIRECTORY_MISSING, path, id=image.id)
                return
            with directory:
                for key in image.big_data_names:
                    self._items += counted
                    yield from self._check_item(root, directory, image, key, counted=counted)

    @contextmanager
    def _noting_unreadable(self, path: str, image_id: str, key: str = "") -> Iterator[None]:
        """Note that an item or a directory cannot be read, if that ends the block."""
        try:
            yield
        except StoreCorruptError as error:
            self._add(FindingKind.ITEM_UNREADABLE, path, str(error), image_id, key)
        except OSError as error:
            if not is_damage(error):
                raise
            self._add(FindingKind.ITEM_UNREADABLE, path, str(error), image_id, key)

    def _check_digests(self, path: str, image: Image) -> None:
        for key, digest in image.big_data_digests.items():
            # An empty one, or one of an item that is not listed, only matters to manifests.
            matters = is_manifest_key(key) or (digest and key in image.big_data_names)
            if matters and not is_digest(digest):
                self._add(FindingKind.DIGEST_MALFORMED, path, repr(digest), image.id, key)
        if image.digest and not is_digest(image.digest):
            self._add(FindingKind.DIGEST_MALFORMED, path, repr(image.digest), image.id)

    def _check_for_podman(self, root: Directory, podman: Podman, image: Image) -> None:
        path = root.path_of(INDEX_FILE)
        for part in podman.unreadable_parts(image):
            detail = f"podman images fails: {part.problem}"
            if part.field == "layer":
                detail += ", unless an additional store has it"
            self._add(FindingKind.PODMAN_FAILS, path, detail, image.id, part.key)
        for layer_id in sorted(podman.missing_layers(image)):
            detail = (
                f"podman does not know its layer {layer_id}, unless an additional store has it: "
                f"podman rmi --force {image.id[:12]} removes the image"
            )
            self._add(FindingKind.LAYER_MISSING, path, detail, image.id)

    def _check_item(
        self, root: Directory, directory: Directory, image: Image, key: str, *, counted: bool
    ) -> Iterator[int]:
        try:
            name = big_data_file(check_key(key))
        except InvalidBigDataNameError as error:
            self._add(FindingKind.ITEM_MISSING, directory.path, str(error), image.id, key)
            return
        path = directory.path_of(name)
        with self._noting_unreadable(path, image.id, key):
            try:
                fd = open_current(root, image, key)
            except FileNotFoundError:
                self._add(FindingKind.ITEM_MISSING, path, id=image.id, key=key)
                return
            try:
                found = os.fstat(fd)
                size = found.st_size
                recorded = image.big_data_sizes.get(key, size)
                if size != recorded:
                    kind = FindingKind.ITEM_SHORT if size < recorded else FindingKind.ITEM_LONG
                    self._add(kind, path, f"{size} bytes, {recorded} are recorded", image.id, key)
                elif self._verify and is_digest(image.big_data_digests.get(key, "")):
                    yield from self._check_content(
                        directory, fd, found, image, key, counted=counted
                    )
            finally:
                os.close(fd)

    def _check_content(
        self,
        directory: Directory,
        fd: int,
        found: os.stat_result,
        image: Image,
        key: str,
        *,
        counted: bool,
    ) -> Iterator[int]:
        """Read an item, and compare its digest with the recorded one."""
        name, expected = big_data_file(key), image.big_data_digests[key]
        version = found.st_dev, found.st_ino, found.st_mtime_ns, expected
        if version in self._intact:
            yield found.st_size
            return
        state = hasher(expected)
        kept = b""
        size = 0
        buffer = memoryview(bytearray(CHUNK))
        while done := directory.read_into(name, fd, buffer):
            piece = buffer[:done]
            state.update(piece)
            size += done
            if is_manifest_key(key) and size <= MANIFEST_MAX:
                kept += piece
            self._bytes += done if counted else 0
            yield done
        actual = digest_of(state)
        if expected not in {actual, signed_digest(kept, expected)}:
            detail = f"its digest is {actual}, {expected} is recorded"
            self._add(FindingKind.ITEM_ALTERED, directory.path_of(name), detail, image.id, key)
        elif found.st_nlink > 1:
            self._intact.add(version)
