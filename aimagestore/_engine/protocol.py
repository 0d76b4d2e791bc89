"""The seam between the async shell and what keeps a store: by role, as small as two engines allow.

Everything here may block and is called in worker threads, several at a time, except where a
method says that it never blocks. An engine is opened from a location, and has five roles: it is
read, it has a lock, it is written under that lock, it keeps items, and it is closed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar

from .._core.catalog import Catalog
from .._core.content import Content, Copies
from .._core.draft import Draft, Plan
from .._core.events import ChangeEvent
from .._core.image import Image
from .._core.layers import Container, Layer
from .._core.mutations import Mutation
from .._core.report import Finding, Report
from .._core.usage import StoredContent
from .._core.view import View
from .lock import AnyGrant, AnyLine

T = TypeVar("T")

Outcome = Plan | Exception
"""The result of one mutation of a batch: what it did, or why it could not be made."""

Steps = Generator[tuple[int, int], None, T]
"""Blocking work in steps. Each yields how much is done, and how much there is in all.

Closing the generator between two steps stops the work there.
"""


Removal = Callable[[AnyGrant], Steps[Report]]
"""Looks again at one piece of what may be garbage, and removes what is. The lock is held."""


class ChangeUnderWayError(Exception):
    """Another program is in the middle of a change: read again with the readers' lock held.

    :ivar read_lock: the line for that lock, where it is not the engine's
    """

    read_lock: AnyLine | None = None


class Copying(Copies, Protocol):
    """The items of an additional store's image on their way into the store. Its maker closes it."""

    def steps(self) -> Steps[None]:
        """Copy them, durably, in bytes."""
        ...

    def close(self) -> None:
        """Release everything, and remove what was not published. Idempotent; does not wait."""
        ...


class CopyNeededError(Exception):
    """A mutation changes an image of an additional store: copy its items first, without the lock.

    :ivar begin: prepares the copying; the mutation is made again with its result as ``copies``
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
        """Open the store.

        Creates it where that is possible, and completes what a crash interrupted, unless
        ``read_only``. Whatever is raised, nothing stays open.
        """
        ...

    def checker(self, *, verify: bool, others: OtherStores | None = None) -> Checker:
        """Prepare a check, which works on stores that cannot be opened.

        :param verify: whether to read every item and compare its digest
        :param others: the additional stores
        """
        ...

    def repairer(self) -> Repairer:
        """Open the store for repair, without a look at its index."""
        ...


class Elsewhere(NamedTuple):
    """What additional stores have that a store may need.

    :ivar layers: IDs of layers
    :ivar images: IDs of images
    :ivar findings: what kept one of them from being read
    """

    layers: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    findings: tuple[Finding, ...] = ()


class OtherStores(Protocol):
    """Additional stores, as a check needs them."""

    def look(self, image_ids: Collection[str]) -> Steps[Elsewhere]:
        """Return all their layers, and which of some images they have."""
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
        """The line for the lock that keeps other programs from changing the store.

        Only for reading where :exc:`ChangeUnderWayError` was raised.
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

    def items_of(self, draft: Draft, image_id: str) -> Items:
        """Return what keeps the items of an image that a draft has not changed."""
        ...

    @property
    def layer_store(self) -> str | None:
        """The directory where another program keeps the layers of these images, if one does.

        Never blocks: the engine looked for it when it was opened.
        """
        ...

    @property
    def podman(self) -> PodmanReader | None:
        """What reads the layers and containers that podman keeps beside the images, if it can."""
        ...

    def close(self) -> None:
        """Release everything. No other call is running."""
        ...


class PodmanReader(Protocol):
    """Reads what podman keeps beside a store, by ID. Takes no lock; never writes.

    Each method returns the same object for as long as nothing has changed, leaves out damaged
    records, and raises :exc:`StoreCorruptError` when a file is damaged.
    """

    def read_layers(self) -> Mapping[str, Layer]:
        """Return all layers."""
        ...

    def read_containers(self) -> Mapping[str, Container]:
        """Return all containers."""
        ...


class Reader(Protocol):
    """Reads records; takes no lock that a writer of this library could hold.

    Methods that return records raise :exc:`ChangeUnderWayError` where what they would read is half
    of another program's change.
    """

    @property
    def keeps_catalog(self) -> bool:
        """Whether :meth:`current` may ever return a catalog."""
        ...

    def current(self) -> Catalog | None:
        """Return the catalog in memory if it is certain, at once, that it is the last commit.

        Never blocks for longer than a stat of a local file. ``None`` where the store has changed,
        or where no catalog is kept.
        """
        ...

    def read(self, look: Callable[[View], T]) -> T:
        """Call ``look`` with a view of the last commit, and return its result.

        ``look`` may be called more than once. The view is valid during the call only.
        """
        ...

    def snapshot(self) -> Catalog:
        """Return all records of the last commit."""
        ...

    def pages(self, size: int) -> Iterator[list[Image]]:
        """Iterate over all images in the order of images.json, one page in memory at a time.

        Every page is of some commit; no image comes twice.
        """
        ...

    def refresh(self) -> bool:
        """Load what others have changed; return whether they had changed anything."""
        ...

    def modified(self) -> bool:
        """Return whether others have changed the store since the last read. Loads nothing."""
        ...

    def touched_since(self, when: datetime) -> bool:
        """Return whether a writer has touched the store after that time."""
        ...

    def watch(self) -> Feed:
        """Begin to collect changes from now on."""
        ...


class Writer(Protocol):
    """Writes the store. Every method needs a grant of the lock."""

    def commit(self, grant: AnyGrant, mutations: Sequence[Mutation]) -> list[Outcome]:
        """Apply mutations to the last commit, durable when this returns.

        A mutation that cannot be made fails alone: with :exc:`CopyNeededError` if it needs a copy
        of an additional store's image, and with :exc:`ChangeUnderWayError` if it cannot tell.

        :raises OSError: nothing happened; except where the message says that it may have
        """
        ...

    def draft(self, grant: AnyGrant) -> Draft:
        """Return a draft on top of the last commit, valid while the grant is held."""
        ...

    def publish(self, grant: AnyGrant, draft: Draft) -> None:
        """Commit a draft. Raises as :meth:`commit` does; then nothing of it happened."""
        ...

    def prepare(self, plan: Plan, draft: Draft) -> None:
        """Raise what would keep a plan from being committed, so that it fails alone."""
        ...

    def touch(self, grant: AnyGrant) -> None:
        """Record a write without changing anything."""
        ...

    def garbage(self, *, dry_run: bool) -> Iterator[Removal]:
        """Find what may belong to no image and no living writer, without the lock.

        It comes in pieces, so that no removal holds the lock for long.

        :param dry_run: only report it
        """
        ...


class StagedContent(Content, Protocol):
    """Content in the store that belongs to no image yet. Its owner discards it."""

    @property
    def sink(self) -> io.BufferedIOBase:
        """Where its bytes are written; flushing it completes the digest."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it was neither published nor discarded."""
        ...

    @property
    def is_stored(self) -> bool:
        """Whether it is content that the store has already."""
        ...

    def finish(self) -> None:
        """Make what was written durable, or find that the store has it already."""
        ...

    def interrupt(self) -> None:
        """Make a write that waits in another thread end within a moment. Does not block.

        It may fail then, and no other succeeds after it. Without a write, nothing happens.
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

    def stage(self) -> StagedContent:
        """Begin new content."""
        ...

    def stage_stored(
        self, digest: str, size: int | None, check: Callable[[], object]
    ) -> StagedContent | None:
        """Return content that the store has, to be given to other items; ``None`` if it has none.

        It is verified, if it was not since it was written.

        :param digest: its SHA-256 digest
        :param size: its length in bytes; ``None`` for any
        :param check: called now and then while that takes long; what it raises ends that
        """
        ...

    def open(self, ref: str, key: str) -> tuple[Image, io.RawIOBase]:
        """Open an item, and return it with the record of the same commit.

        :raises ImageUnknownError: when there is no such image
        :raises BigDataUnknownError: when the record does not list the item
        :raises BigDataMissingError: when the record lists it, but its content is missing
        :raises ChangeUnderWayError: when another program may have replaced the content, and not
            yet the record
        """
        ...

    def is_same(self, one: io.RawIOBase, other: io.RawIOBase) -> bool:
        """Return whether two open items are one content, not just equal ones. Never blocks."""
        ...

    def usage(self) -> Steps[StoredContent]:
        """Find what is stored for each image, without the lock.

        What changes meanwhile may be counted as it was, or as it is then.
        """
        ...


class Feed(Protocol):
    """Collects what changes in a store, by whomever, from a moment on."""

    @property
    def interval(self) -> float:
        """Seconds after which to poll even without a notification."""
        ...

    @property
    def descriptor(self) -> int | None:
        """A descriptor that becomes readable when something may have changed."""
        ...

    def is_due(self) -> bool:
        """Return whether what made the descriptor readable is a change. Never blocks."""
        ...

    def poll(self) -> Sequence[ChangeEvent]:
        """Return the changes since the last poll, in order.

        :raises ChangeUnderWayError: when there is none but the half of another program's
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
        """Join the line for the lock that keeps writers out, if a change was under way.

        So it is if that was raised, or may be if something looked damaged; :meth:`recheck` is
        needed then. ``None`` otherwise, or where no such lock is needed.
        """
        ...

    def recheck(self) -> Steps[Report]:
        """Check again, with that lock held, what looked damaged; return the final report."""
        ...


class Repairer(Protocol):
    """A store opened for repair."""

    @property
    def lock(self) -> AnyLine:
        """The line for its lock."""
        ...

    def steps(self, grant: AnyGrant, report: Report, *, drop: bool) -> Steps[Report]:
        """Repair what was reported, where it is still so; return what was done.

        Closing the generator before its last step leaves the records as they were.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...
