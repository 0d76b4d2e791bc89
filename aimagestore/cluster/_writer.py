"""Commits, each made once: what a lost server leaves open is found out before it is done again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any, LiteralString, NamedTuple
from uuid import uuid4

import psycopg

from .._core.content import InlineContent
from .._core.draft import Draft
from .._core.mutations import Mutation
from .._engine.protocol import Outcome
from ..errors import StoreUnavailableError
from .cache import Cache
from .connections import is_lost
from .lock import ClusterLock
from .staged import StagedBlob
from .views import LockedView
from .watch import Watches
from .writing import Changed, Commit, changes_of, find_commit, write

_UPLOADS = 8
_TRIES = 5


class Committer:
    """Makes commits of drafts, with the lock held.

    :param stage: begins an object
    :param check: raises what keeps an object from being referred to
    :param seconds: how long a commit is told of
    :ivar version: the last commit that was made here; -1 before the first
    """

    def __init__(
        self,
        lock: ClusterLock,
        cache: Cache,
        watches: Watches,
        *,
        stage: Callable[[], StagedBlob],
        check: Callable[[StagedBlob], None],
        seconds: float,
    ) -> None:
        self._lock = lock
        self._cache = cache
        self._watches = watches
        self._stage = stage
        self._check = check
        self._seconds = seconds
        self.version = -1

    def draft(self) -> Draft:
        """A draft of the store as it is, whose lookups raise the library's errors."""
        connection = self._lock.connection

        def execute(
            question: LiteralString, values: Mapping[str, Any]
        ) -> psycopg.Cursor[tuple[Any, ...]]:
            try:
                return connection.execute(question, values)
            except psycopg.Error as error:
                raise self._lock.connections.unavailable(error) from error

        return Draft(LockedView(execute, self._lock.version))

    def commit(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        """Make changes; one that cannot be made fails alone."""
        outcomes: list[Outcome] = []

        def make() -> Draft:
            outcomes.clear()
            draft = Draft(LockedView(self._lock.connection.execute, self._lock.version))
            draft.prefetch(
                [ref for mutation in mutations for ref in mutation.refs],
                [name for mutation in mutations for name in mutation.names],
            )
            outcomes.extend(self._apply(draft, mutation) for mutation in mutations)
            return draft

        self._settle(make)
        return outcomes

    def _apply(self, draft: Draft, mutation: Mutation) -> Outcome:
        try:
            plan = mutation(draft)
            self._check_contents(plan.files.values())
        except psycopg.Error:
            raise
        except Exception as error:  # noqa: BLE001 (whose change it is raises it)
            return error
        draft.apply(plan)
        return plan

    def _check_contents(self, contents: Iterable[Any]) -> None:
        for content in contents:
            if isinstance(content, StagedBlob):
                self._check(content)

    def publish(self, draft: Draft) -> None:
        """Make a draft the store's next state, if it is of the last one still."""
        base = self._lock.version
        name = self._lock.connections.records.name

        def again() -> Draft:
            if self._lock.version != base:
                raise StoreUnavailableError(
                    f"{name}: the session that held the lock was lost, and others have changed "
                    "the store since (nothing was changed by the transaction: try it again)"
                )
            return draft

        self._check_contents(draft.files.values())
        with self._stored(draft):
            self._settle(again)

    @contextmanager
    def _stored(self, draft: Draft) -> Iterator[None]:
        """Have all contents stored; what was in memory is gone after a block that commits nothing.

        Under the lock, but several at a time: there may be many small ones.
        """
        inline = {p: c for p, c in draft.files.items() if isinstance(c, InlineContent)}
        stored = {place: self._stage() for place in inline}
        try:
            if draft.files:
                draft.files |= stored
                with ThreadPoolExecutor(min(len(draft.files), _UPLOADS)) as uploads:
                    list(uploads.map(_store, stored.values(), inline.values()))
                    list(uploads.map(_finish, draft.files.values()))
            yield
        finally:
            for content in stored.values():
                content.discard()

    def _settle(self, make: Callable[[], Draft]) -> None:
        """Commit what is made of the store as it is; again, where that was lost on the way.

        Whether a commit whose answer was lost was made is certain once its lock can be had again.
        """
        first, token = self._lock.version, uuid4()
        attempt: _Attempt | None = None
        for number in count(1):
            try:
                if attempt is not None:
                    version = find_commit(self._lock.connection, first, token)
                    if version is not None:
                        self._conclude(attempt, version)
                        return
                    attempt.take_back()
                    attempt = None
                draft = make()
                changed = changes_of(draft)
                if not changed and not draft.files:
                    return
                attempt = _Attempt(draft, changed, self._lock.version)
                attempt.lend()
                commit = Commit(attempt.base, token, self._watches.channel, self._seconds)
                with self._watches.telling:
                    version = write(self._lock.connection, draft, changed, commit)
                    self._conclude(attempt, version)
                return
            except psycopg.Error as error:
                if attempt is not None and not is_lost(error):
                    attempt.take_back()  # the server has said what is wrong, and undone it
                    attempt = None
                if not is_lost(error) or number == _TRIES:
                    unavailable = self._lock.connections.unavailable(error)
                    raise _told(unavailable, attempt) from error
            try:
                self._lock.acquire_again()
            except StoreUnavailableError as error:
                raise _told(error, attempt) from error.__cause__

    def _conclude(self, attempt: _Attempt, version: int) -> None:
        """Take note of a commit that was made."""
        for content in attempt.contents:
            content.give_away()
        records = [(change.delta.id, change.delta.new) for change in attempt.changed]
        self._cache.advance(attempt.base, version, records)
        self._watches.tell(version, (change.told for change in attempt.changed))
        self.version = version


class _Attempt(NamedTuple):
    """A commit that may have been made.

    :ivar base: the last commit before it
    """

    draft: Draft
    changed: Sequence[Changed]
    base: int

    @property
    def contents(self) -> Sequence[StagedBlob]:
        """The objects that it refers to."""
        return [c for c in self.draft.files.values() if isinstance(c, StagedBlob)]

    def lend(self) -> None:
        for content in self.contents:
            content.lend()

    def take_back(self) -> None:
        for content in self.contents:
            content.take_back()


def _store(staged: StagedBlob, content: InlineContent) -> None:
    staged.sink.write(content.data)
    staged.finish()


def _finish(content: Any) -> None:
    content.finish()


def _told(error: StoreUnavailableError, attempt: _Attempt | None) -> StoreUnavailableError:
    """The error, with a word on what became of the change."""
    error.may_have_happened = attempt is not None
    doubt = "the change may have happened: look again"
    error.message += f" ({doubt if error.may_have_happened else 'nothing was changed'})"
    return error
