"""The engine interface: what the async shell needs of an engine, by role.

Every method may block and is called in worker threads, several at a time, except where it says that
it never blocks. An engine is opened from a location. It is read, it has a lock, it is written under
that lock, it keeps items, and it is closed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from .._core.catalog import Catalog
from .._core.content import Content, Copies
from .._core.draft import Draft, Plan
from .._core.events import ChangeEvent
from .._core.image import Image
from .._core.layers import Container, Layer
from .._core.mutations import Mutation
from .._core.view import View
from .lock import AnyGrant, AnyLine

if TYPE_CHECKING:
    from .._core.report import Finding, Report
    from .._core.usage import StoredContent

T = TypeVar("T")

Outcome = Plan | Exception
"""The outcome of one mutation of a batch: what it did, or why it failed."""

Steps = Generator[tuple[int, int], None, T]
"""Blocking work in steps. Each yields how much is done, and how much there is in all.

Closing the generator between two steps stops the work there.
"""

Removal = Callable[[AnyGrant], Steps["Report"]]
"""Checks again, with the lock held, a part of what may be garbage; removes and reports what is."""


class ChangeUnderWayError(Exception):
    """Another program is in the middle of a change: read again with the readers' lock held.

    :ivar read_lock: the line for that lock, where it is not the engine's
    """

    read_lock: AnyLine | None = None


class Copying(Copies, Protocol):
    """Copies the items of an additional store's image into the store. Its maker closes it."""

    def steps(self) -> Steps[None]:
        """Copy the items, durably. Counts bytes."""
        ...

    def close(self) -> None:
        """Release everything, and remove what was not published. Idempotent. Never waits."""
        ...


class CopyNeededError(Exception):
    """A mutation changes an image of an additional store: copy its items first, without the lock.

    :ivar begin: begins the copying; plan the mutation again with its result as ``copies``
    """

    def __init__(self, begin: Callable[[], Copying]) -> None:
        super().__init__(begin)
        self.begin = begin


class Location(Protocol):
    """Where a store is: an immutable description, usable any number of times."""

    @property
    def name(self) -> str:
        """The name of the store in messages; without secrets."""
        ...

    def open(self, *, read_only: bool) -> Engine:
        """Open the store. After an error nothing stays open.

        Unless it is ``read_only``, this also creates a store that does not exist, where that is
        possible, and completes what a crash interrupted.
        """
        ...

    def checker(self, *, verify: bool, others: OtherStores | None = None) -> Checker:
        """Prepare a check, which works even on a store that cannot be opened.

        :param verify: whether to read every item and compare its digest
        :param others: its additional stores
        """
        ...

    def repairer(self, others: OtherStores | None = None) -> Repairer:
        """Open the store for repair, without reading its index.

        :param others: its additional stores
        """
        ...


class Elsewhere(NamedTuple):
    """What additional stores have.

    :ivar layers: all their layers, by ID
    :ivar images: the IDs of those images that were asked for
    :ivar findings: why a store could not be read
    """

    layers: Mapping[str, Layer] = MappingProxyType({})
    images: frozenset[str] = frozenset()
    findings: tuple[Finding, ...] = ()


class OtherStores(Protocol):
    """Additional stores, as a check and a repair need them."""

    def look(self, image_ids: Collection[str]) -> Steps[Elsewhere]:
        """Find out which layers they have, and which of these images."""
        ...


class Engine(Protocol):
    """An open store."""

    @property
    def name(self) -> str:
        """The name of the store in messages; without secrets."""
        ...

    @property
    def reader(self) -> Reader:
        """What reads it."""
        ...

    @property
    def lock(self) -> AnyLine:
        """The line for its lock."""
        ...

    @property
    def read_lock(self) -> AnyLine:
        """The line for a lock that keeps other programs from changing the store.

        Only for reading after :exc:`ChangeUnderWayError` was raised.
        """
        ...

    @property
    def writer(self) -> Writer:
        """What writes it, under the lock."""
        ...

    @property
    def items(self) -> Items:
        """What keeps the content of its big-data items."""
        ...

    def open_item(self, draft: Draft, image_id: str, key: str) -> io.RawIOBase:
        """Open an item that a draft has not changed, of an image that the draft has.

        Raises what :meth:`Items.open` does.
        """
        ...

    @property
    def layer_store(self) -> str | None:
        """The directory where another program keeps the layers of these images; ``None`` if none.

        Never blocks: the engine looked for it when it was opened.
        """
        ...

    @property
    def podman(self) -> PodmanReader | None:
        """What reads podman's layers and containers; ``None`` if podman cannot use the store."""
        ...

    def close(self) -> None:
        """Release everything. No other call is running."""
        ...


class PodmanReader(Protocol):
    """Reads what podman keeps beside a store, by ID. Takes no lock; never writes.

    Each method returns the same object as long as nothing has changed, leaves out damaged records,
    and raises :exc:`StoreCorruptError` when a file is damaged.

    :ivar others: what reads the layers of additional stores, which images of this store may have
    :ivar layer_store: the directory of layers; of several stores, the first one's that has one
    """

    others: Sequence[PodmanReader]
    layer_store: str | None

    def read_layers(self) -> Mapping[str, Layer]:
        """Return all layers."""
        ...

    def read_containers(self) -> Mapping[str, Container]:
        """Return all containers."""
        ...


class Reader(Protocol):
    """Reads records. Takes no lock that a writer of this library could hold.

    Methods that return records raise :exc:`ChangeUnderWayError` if they would read half of another
    program's change.
    """

    @property
    def keeps_catalog(self) -> bool:
        """Whether :meth:`current` may ever return a catalog."""
        ...

    def current(self) -> Catalog | None:
        """Return the catalog in memory if it is certainly that of the last commit, else ``None``.

        Never blocks for longer than a stat of a local file.
        """
        ...

    def read(self, look: Callable[[View], T]) -> T:
        """Call ``look`` with a view of the last commit, and return its result.

        ``look`` may be called more than once. The view is valid only during the call.
        """
        ...

    def snapshot(self) -> Catalog:
        """Return all records of the last commit."""
        ...

    def pages(self, size: int) -> Iterator[list[Image]]:
        """Iterate over all images in the order of images.json, one page in memory at a time.

        Each page is of one commit, not always of the same one. No image comes twice. After
        :exc:`ChangeUnderWayError`, the iteration can go on.

        :param size: the most images in a page
        """
        ...

    def refresh(self) -> bool:
        """Load what others have changed; return whether they had changed anything."""
        ...

    def modified(self) -> bool:
        """Return whether others have changed the store since the last read. Loads nothing."""
        ...

    def touched_since(self, when: datetime) -> bool:
        """Return whether a writer has touched the store after this time."""
        ...

    def watch(self) -> Feed:
        """Begin to collect changes from now on."""
        ...


class Writer(Protocol):
    """Writes the store. Every method needs a grant of the lock."""

    def commit(self, grant: AnyGrant, mutations: Sequence[Mutation]) -> list[Outcome]:
        """Apply mutations to the last commit, durably, and return their outcomes in order.

        A mutation that fails, fails alone: with :exc:`CopyNeededError` if it needs a copy of an
        additional store's image, and with :exc:`ChangeUnderWayError` if another program is changing
        such a store.

        :raises OSError: nothing happened, unless the message says that it may have
        """
        ...

    def draft(self, grant: AnyGrant) -> Draft:
        """Return a draft on top of the last commit, valid while the grant is held."""
        ...

    def publish(self, grant: AnyGrant, draft: Draft) -> None:
        """Commit a draft. Raises as :meth:`commit` does."""
        ...

    def prepare(self, plan: Plan, draft: Draft) -> None:
        """Check that a plan can be committed, so that one that cannot fails alone.

        Raises the error that its commit would raise.
        """
        ...

    def touch(self, grant: AnyGrant) -> None:
        """Record a write without changing anything."""
        ...

    def garbage(self, *, dry_run: bool) -> Iterator[Removal]:
        """Find what may belong to no image and no living writer, without the lock.

        Yields removals of parts of it, so that none holds the lock for long.

        :param dry_run: the removals only report it
        """
        ...


class StagedContent(Content, Protocol):
    """Content in the store that belongs to no image yet. Its owner has to discard it."""

    @property
    def sink(self) -> io.BufferedIOBase:
        """The file to write its bytes to. Flush it to complete the digest."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it was neither published nor discarded yet."""
        ...

    @property
    def is_stored(self) -> bool:
        """Whether the store had this content already."""
        ...

    def finish(self) -> None:
        """Make what was written durable, unless the store has that content already."""
        ...

    def interrupt(self) -> None:
        """Make a write that waits in another thread end within a moment. Never blocks.

        That write may fail then, and all later ones fail. Without such a write, nothing happens.
        """
        ...

    def read(self) -> bytes:
        """Return what was written."""
        ...

    def discard(self) -> None:
        """Release it, and remove it unless it was published. Idempotent."""
        ...


class Items(Protocol):
    """Keeps the content of big-data items."""

    @property
    def helpers(self) -> Executor:
        """Threads for work beside a stream: digests, reading ahead."""
        ...

    @property
    def inline_limit(self) -> int:
        """Content of fewer bytes is given to the writer in memory; all other is staged first."""
        ...

    def stage(self) -> StagedContent:
        """Begin new content, to be written to its ``sink``."""
        ...

    def stage_stored(
        self, digest: str, size: int | None, check: Callable[[], object]
    ) -> StagedContent | None:
        """Return content that the store has, for use in other items; ``None`` if it has none.

        The content is verified first, unless it was since it was written.

        :param digest: its SHA-256 digest
        :param size: its length in bytes; ``None`` for any
        :param check: called now and then while that goes on; an error that it raises ends it
        """
        ...

    def open(self, ref: str, key: str) -> tuple[Image, io.RawIOBase]:
        """Open an item, and return the image's record of the same commit with it.

        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when the record does not list the item
        :raises BigDataMissingError: when the record lists it, but its content is missing
        :raises ChangeUnderWayError: when another program may have replaced the content, but not yet
            the record
        """
        ...

    def is_same(self, one: io.RawIOBase, other: io.RawIOBase) -> bool:
        """Return whether two open items are the same stored content. Never blocks."""
        ...

    def usage(self) -> Steps[StoredContent]:
        """Find what is stored for each image, without the lock.

        What changes meanwhile may be counted as it was or as it is.
        """
        ...


class Feed(Protocol):
    """Collects the changes of a store, by any program, from a moment on."""

    @property
    def interval(self) -> float:
        """The seconds after which to poll even if the descriptor is not readable."""
        ...

    @property
    def descriptor(self) -> int | None:
        """A descriptor that becomes readable when something may have changed; ``None`` without."""
        ...

    def is_due(self) -> bool:
        """Return whether the descriptor is readable because of a change. Never blocks."""
        ...

    def poll(self) -> Sequence[ChangeEvent]:
        """Return the changes since the last poll, in order.

        :raises ChangeUnderWayError: when the only one is half of another program's change
        """
        ...

    def close(self) -> None:
        """Release everything. Idempotent."""
        ...


class Checker(Protocol):
    """Checks a store that need not be open, and changes nothing."""

    def steps(self) -> Steps[Report]:
        """Check everything, without the lock.

        :raises ChangeUnderWayError: when the records are half of another program's change
        """
        ...

    def join_lock(self) -> AnyLine | None:
        """Join the line for the lock that keeps writers out, if that is needed; else ``None``.

        It is needed when :meth:`steps` raised :exc:`ChangeUnderWayError`, and for :meth:`recheck`
        when it found something that looks damaged, because a change may have been under way. The
        caller leaves the line.
        """
        ...

    def recheck(self) -> Steps[Report]:
        """Check again, with that lock held, what looked damaged, and return the final report."""
        ...


class Repairer(Protocol):
    """A store opened for repair."""

    @property
    def lock(self) -> AnyLine:
        """The line for its lock."""
        ...

    def steps(self, grant: AnyGrant, report: Report, *, drop: bool) -> Steps[Report]:
        """Repair what was reported, where it is still so, and return what was done.

        Closing the generator before its last step leaves the records as they were.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...
