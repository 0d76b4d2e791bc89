"""Writes a cluster's store: makes each commit once, even if answers of the server are lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import count
from typing import Any, LiteralString, NamedTuple
from uuid import UUID, uuid4

import psycopg
from psycopg.errors import NotNullViolation

from .._core.content import Content, InlineContent
from .._core.draft import Draft, Plan
from .._core.mutations import Mutation
from .._core.view import View
from .._engine.lock import AnyGrant
from .._engine.protocol import Outcome, Removal
from ..errors import StoreIdentityError, StoreUnavailableError
from ._cache import Cache
from ._feed import Feeds
from ._garbage import Garbage
from ._history import Commit, History
from ._items import ClusterItems
from ._lock import AdvisoryLock, HeldLock
from ._reader import ClusterReader
from ._sessions import Cursor, OverdueError, Sessions, is_lost
from ._staged import StagedBlob, collected
from ._upload import MOMENT
from ._views import LockedView
from ._writing import Change, NewCommit, changes_of, find_commit, touch, used, write

# Contents of a transaction that are stored at the same time.
_UPLOADS = 8

# Attempts of one commit.
_TRIES = 5

# Changed images for which a commit may take a second more.
_IMAGES_PER_SECOND = 1000


class ClusterWriter:
    """Writes a store; see :class:`aimagestore._engine.protocol.Writer`.

    A grant's ``held`` is a :class:`HeldLock`, whose session makes the commit.
    """

    def __init__(
        self,
        sessions: Sessions,
        lock: AdvisoryLock,
        reader: ClusterReader,
        items: ClusterItems,
        garbage: Garbage,
        *,
        history: History,
        cache: Cache,
        feeds: Feeds,
    ) -> None:
        self._sessions = sessions
        self._lock = lock
        self._reader = reader
        self._cache = cache
        self._feeds = feeds
        self._items = items
        self._garbage = garbage
        self._history = history

    def commit(self, grant: AnyGrant, mutations: Sequence[Mutation]) -> list[Outcome]:
        held: HeldLock = grant.held
        outcomes: list[Outcome] = []

        def make(checks_all: bool) -> Draft:
            outcomes.clear()
            draft = Draft(LockedView(held.session.execute, self._history, held.version))
            draft.prefetch(
                [ref for mutation in mutations for ref in mutation.refs],
                [name for mutation in mutations for name in mutation.names],
            )
            outcomes.extend(
                _apply(draft, mutation, checks_all=checks_all) for mutation in mutations
            )
            return draft

        self._commit(held, make)
        return outcomes

    def draft(self, grant: AnyGrant) -> Draft:
        held: HeldLock = grant.held

        def execute(statement: LiteralString, values: Mapping[str, Any]) -> Cursor:
            try:
                return held.execute(statement, values)
            except psycopg.Error as error:
                raise self._sessions.unavailable(error) from error

        return Draft(LockedView(execute, self._history, held.version))

    def prepare(self, plan: Plan, draft: Draft) -> None:
        """Raise what would keep a plan from being committed.

        The lock is held, so the object store only gets the rest of what was staged piece by piece.
        The database tells which objects a garbage collection has taken.

        :raises ValueError: when it refers to staged data whose write has failed, or that was
            collected as garbage
        :raises StoreUnavailableError: when a server is unavailable, or refuses
        """
        staged = [content for content in plan.files.values() if isinstance(content, StagedBlob)]
        for content in staged:
            if not content.is_finished:
                content.finish()
        if any(content.is_old for content in staged):
            raise collected()
        if not all(content.is_young for content in staged):
            _check_contents(staged, draft.base)

    def publish(self, grant: AnyGrant, draft: Draft) -> None:
        held: HeldLock = grant.held
        base = held.version
        name = self._sessions.address.name

        def make(checks_all: bool) -> Draft:
            if held.version != base:
                raise StoreUnavailableError(
                    f"{name}: the session that held the lock was lost, and others have changed "
                    "the store since (the transaction changed nothing: try it again)"
                )
            if checks_all:
                current = LockedView(held.session.execute, self._history, held.version)
                _check_contents(draft.files.values(), current)
            return draft

        with self._stored(draft):
            self._commit(held, make)

    @contextmanager
    def _stored(self, draft: Draft) -> Iterator[None]:
        """Store the contents that are in memory, and remove them again if they are not committed.

        They are the bytes that a transaction was given: staged data is stored already. The lock is
        held meanwhile, because a transaction holds it from its beginning.
        """
        inline = {item: c for item, c in draft.files.items() if isinstance(c, InlineContent)}
        contents = {content.digest: content for content in inline.values()}
        stored = {digest: self._items.stage() for digest in contents}
        try:
            if stored:
                draft.files |= {item: stored[content.digest] for item, content in inline.items()}
                _store_all([(stored[digest], contents[digest].data) for digest in stored])
            yield
        finally:
            for content in stored.values():
                content.discard(waits=False)

    def _commit(self, held: HeldLock, make: Callable[[bool], Draft]) -> None:
        """Commit the draft that ``make`` returns, in another session if the first one was lost.

        When the lock is acquired again, a commit whose answer was lost was either made or undone.

        :param make: returns a draft on top of the last commit; its argument says whether to check
            that no staged data was collected as garbage
        :raises StoreIdentityError: when the database went back in time
        :raises StoreUnavailableError: when the server is unavailable, or refuses; both tell with
            ``may_have_happened`` whether the outcome is unknown
        """
        first, token = held.version, uuid4()
        begun = until = self._sessions.end_of_call()
        attempt: _Attempt | None = None
        checks_all = False
        for number in count(1):
            try:
                held.session.until, held.session.renews = until, False
                if attempt is not None:
                    version = find_commit(held.session, first, token)
                    if version is not None:
                        stored = used(held.session, [c.id for c in attempt.contents])
                        # Synchronous standbys may not have the commit, because the wait for them
                        # ends with the session. What they confirm now comes after it.
                        touch(held.session)
                        self._conclude(attempt, Commit(version, str(token)), stored)
                        return
                    attempt.mark_undone()
                    attempt = None
                draft = make(checks_all)
                changed = changes_of(draft)
                if not changed and not draft.files:
                    return
                until = held.session.until = begun + len(changed) / _IMAGES_PER_SECOND
                with self._feeds.notifying(until):
                    attempt = _Attempt(draft, changed, held.version)
                    attempt.mark_in_doubt()
                    commit = NewCommit(attempt.base, token, self._feeds.channel)
                    version, stored = write(held.session, draft, changed, commit)
                    self._conclude(attempt, Commit(version, str(token)), stored)
                return
            except psycopg.Error as error:
                # Any other error is the server's answer, and it has undone the transaction.
                is_decided = not is_lost(error) and not isinstance(error, OverdueError)
                if attempt is not None and is_decided:
                    attempt.mark_undone()
                    attempt = None
                is_collected = isinstance(error, NotNullViolation) and not checks_all
                checks_all |= is_collected
                is_late = number == _TRIES or time.monotonic() > until
                if is_late or not (is_lost(error) or is_collected):
                    unavailable = self._sessions.unavailable(error)
                    _explain(unavailable, attempt)
                    raise unavailable from error
            try:
                self._lock.reacquire(held, until)
            except (StoreIdentityError, StoreUnavailableError) as error:
                _explain(error, attempt)
                raise

    def _conclude(self, attempt: _Attempt, commit: Commit, stored: set[UUID]) -> None:
        """Note a commit that was made.

        :param stored: the objects that its new items have
        """
        for content in attempt.contents:
            content.mark_committed(is_needed=content.id in stored)
        records = [(change.delta.id, change.delta.new) for change in attempt.changed]
        self._history.advance(commit)
        self._cache.advance(attempt.base, commit.version, records)
        self._feeds.add(commit.version, (change.event for change in attempt.changed))
        self._reader.note(commit.version)

    def touch(self, grant: AnyGrant) -> None:
        held: HeldLock = grant.held
        until = self._sessions.end_of_call()
        while True:
            try:
                touch(held.session)
            except psycopg.Error as error:
                if not is_lost(error):
                    raise self._sessions.unavailable(error) from error
            else:
                return
            self._lock.reacquire(held, until)

    def garbage(self, *, dry_run: bool) -> Iterator[Removal]:
        return self._garbage.pieces(dry_run=dry_run)


class _Attempt(NamedTuple):
    """An attempt to make a commit, whose outcome may be unknown.

    :ivar base: the number of the last commit before it
    """

    draft: Draft
    changed: Sequence[Change]
    base: int

    @property
    def contents(self) -> Sequence[StagedBlob]:
        """The staged data that it refers to."""
        return [c for c in self.draft.files.values() if isinstance(c, StagedBlob)]

    def mark_in_doubt(self) -> None:
        for content in self.contents:
            content.mark_in_doubt()

    def mark_undone(self) -> None:
        for content in self.contents:
            content.mark_undone()


def _apply(draft: Draft, mutation: Mutation, *, checks_all: bool) -> Outcome:
    try:
        plan = mutation(draft)
        if checks_all:
            _check_contents(plan.files.values(), draft.base)
    except psycopg.Error:
        raise
    except Exception as error:  # noqa: BLE001 (the call that asked for the mutation raises it)
        return error
    draft.apply(plan)
    return plan


def _check_contents(contents: Iterable[Content], view: View) -> None:
    """Check that no garbage collection has taken any of these contents.

    :raises ValueError: when one has
    """
    assert isinstance(view, LockedView), "the draft is this engine's"
    if view.condemned({c.id: c.is_stored for c in contents if isinstance(c, StagedBlob)}):
        raise collected()


def _store_all(contents: Sequence[tuple[StagedBlob, bytes]]) -> None:
    """Store contents, several at the same time. If one of them fails, this ends all others.

    :raises StoreUnavailableError: when a server is unavailable, or refuses
    """
    with ThreadPoolExecutor(min(len(contents), _UPLOADS)) as uploads:
        calls = {uploads.submit(_store, staged, data): staged for staged, data in contents}
        done, rest = wait(calls, return_when=FIRST_EXCEPTION)
        failure = next((error for call in done if (error := call.exception()) is not None), None)
        if failure is None:
            return
        for call in rest:
            call.cancel()
        while rest:
            for call in rest:
                calls[call].interrupt()
            _, rest = wait(rest, MOMENT)
        raise failure


def _store(staged: StagedBlob, data: bytes) -> None:
    staged.sink.write(data)
    staged.finish()


def _explain(error: StoreIdentityError | StoreUnavailableError, attempt: _Attempt | None) -> None:
    """Add to an error what became of the change."""
    error.may_have_happened = attempt is not None
    doubt = "the change may have happened: read the store to find out"
    error.message += f" ({doubt if error.may_have_happened else 'nothing was changed'})"
