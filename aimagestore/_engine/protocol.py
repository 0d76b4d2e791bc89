"""What a store needs of the place where it keeps its images.

Every method may block, and is called in worker threads, several at a time; but on the event loop
``current``, where the engine says that it does not wait, the lookups of a draft in a transaction,
and what is said not to wait.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar

from .._core.catalog import Catalog
from .._core.content import Content
from .._core.draft import Draft, Plan
from .._core.events import ChangeEvent
from .._core.image import Image
from .._core.mutations import Mutation
from .._core.report import Report
from .._core.view import View

T = TypeVar("T")

Outcome = Plan | Exception
"""What became of one change of a batch."""

Progress = Callable[[int, int], object]
"""Told how much is done, and how much there is in all."""

Removal = Callable[[Progress], Report]
"""Removes what may be garbage, and says what it was. Called with the lock held.

It tells of the findings that are dealt with.
"""


class Holder(NamedTuple):
    """Who holds a store's lock, as far as that is known.

    :ivar lock: what the lock is called
    :ivar who: the holder, and who has written last, in words
    :ivar process: the process that holds it, if it is one of this machine
    :ivar last_writer: the process that has written last, if it is one of this machine
    """

    lock: str
    who: str
    process: int | None = None
    last_writer: int | None = None


class StagedContent(Content, Protocol):
    """Content on its way into the store, belonging to no image yet."""

    @property
    def sink(self) -> io.BufferedIOBase:
        """Where its bytes are written to, which digests them as well, by its ``flush`` at last."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it is neither published nor let go of."""
        ...

    def finish(self) -> None:
        """Make what was written so far durable."""
        ...

    def discard(self) -> None:
        """Let go of it; without a trace, unless it was published. Idempotent."""
        ...


class LockClaim(Protocol):
    """A place in the line for the store's lock."""

    def wait(self) -> bool:
        """Return whether the lock is held for this claim now; it is not if it was given up.

        :raises OSError: when the lock cannot be had
        """
        ...

    def give_up(self) -> bool:
        """Leave the line; ``True`` when the lock was held already and must be released."""
        ...


class Watch(Protocol):
    """What changes in a store, by whomever, from a moment on."""

    @property
    def interval(self) -> float:
        """Seconds after which to look even if nothing has told of a change."""
        ...

    @property
    def descriptor(self) -> int | None:
        """What becomes readable when something may have changed, if there is such a thing."""
        ...

    def is_due(self) -> bool:
        """Whether what made the descriptor readable calls for a look. Never waits."""
        ...

    def changes(self) -> Sequence[ChangeEvent]:
        """What has changed since the last look, in order."""
        ...

    def close(self) -> None:
        """Release everything. Idempotent."""
        ...


class Examination(Protocol):
    """A look through a store that is not entered, for it may be too damaged for that."""

    def steps(self) -> Iterator[tuple[int, int]]:
        """Do the work, a step at a time: the bytes done, and the bytes in all."""
        ...

    @property
    def report(self) -> Report:
        """What was found, when all steps are done."""
        ...


class Engine(Protocol):
    """The blocking side of a store.

    :ivar name: what to call the store in messages
    :ivar read_only: whether nothing is to be written; decided before it is opened
    :ivar checks_instantly: whether :meth:`current` never waits
    :ivar helpers: threads for what goes on beside a stream: digesting, reading ahead
    """

    name: str
    read_only: bool
    checks_instantly: bool
    helpers: Executor

    def open(self) -> None:
        """Open the store, create it where that is wanted, load it; finish what a crash left."""
        ...

    def close(self) -> None:
        """Release everything. No other call is under way."""
        ...

    def check(self, *, verify: bool) -> Examination:
        """Look the store through, which need not be open, and change nothing.

        :param verify: whether to read every item
        """
        ...

    def current(self) -> Catalog | None:
        """The last snapshot, unless somebody has changed the store since it was taken.

        ``None`` as well where none is kept.
        """
        ...

    def read(self, look: Callable[[View], T]) -> T:
        """What a look at the store as it is now gives; it may have to look more than once.

        The view may ask for each thing that is looked up, so it is used in the look only, unless
        it is frozen there.
        """
        ...

    def refresh(self) -> bool:
        """Have what others have changed, and say whether they had."""
        ...

    def modified(self) -> bool:
        """Whether somebody else has changed the store since the last look; loads nothing."""
        ...

    def watch(self) -> Watch:
        """Begin to note what changes from now on."""
        ...

    def touched_since(self, when: datetime) -> bool:
        """Whether a writer has left its mark after that time."""
        ...

    def try_lock(self) -> bool:
        """Take the store's lock if it is free."""
        ...

    def claim_lock(self) -> LockClaim:
        """Stand in line for the store's lock. Does not wait."""
        ...

    def unlock(self) -> None:
        """Release the lock."""
        ...

    def describe_holder(self) -> Holder:
        """Who holds the lock."""
        ...

    def touch(self) -> None:
        """Leave a writer's mark. The lock is held."""
        ...

    def commit(self, changes: Sequence[Mutation]) -> list[Outcome]:
        """Make changes to the store as it is, durable when this returns. The lock is held.

        A change that cannot be made fails alone.

        :raises OSError: nothing happened; unless the last step, making the commit durable, was
            what failed: then the message says so, and :meth:`read` tells
        """
        ...

    def draft(self) -> Draft:
        """A draft of the store as it is. The lock is held, and stays so while it is used."""
        ...

    def publish(self, draft: Draft) -> None:
        """Make a draft the store's next state. The lock is held.

        :raises OSError: as :meth:`commit`
        """
        ...

    def garbage(self) -> Iterator[Removal]:
        """Look for what may belong to no image and no living writer, without the lock.

        What is found comes in pieces, so that nobody waits for the lock for long.
        """
        ...

    def stage(self) -> StagedContent:
        """Begin to write content that belongs to no image yet."""
        ...

    def layer_store(self) -> str | None:
        """Where another program keeps the layers of the images here; ``None`` where none does."""
        ...

    def open_item(self, image: Image, key: str) -> io.RawIOBase:
        """Open an item's content, as the image's record describes it.

        :raises FileNotFoundError: when there is none
        """
        ...
