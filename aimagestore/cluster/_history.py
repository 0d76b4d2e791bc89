"""The history of a database as an open store has seen it: an answer that breaks it is an error.

A *head* comes with each answer of the database, as one column of the same statement. It has the
identity of the store, and the number and random token of the last commit. It also has the token of
the commit that the store saw last before it asked: a database that went back in time does not have
that commit, or has another one of that number.
"""

from __future__ import annotations

import threading
from typing import LiteralString, NamedTuple, NoReturn, Self

from ..errors import StoreIdentityError
from ._schema import check_version

_NONE = "-"

HEAD: LiteralString = f"""concat_ws(' ', s.schema_version, coalesce(s.identity::text, '{_NONE}'),
    s.version, s.pruned, pg_is_in_recovery(),
    coalesce((SELECT c.token::text FROM image_commits c WHERE c.version = s.version), '{_NONE}'),
    coalesce((SELECT c.token::text FROM image_commits c WHERE c.version = %(seen)s), '{_NONE}'))
"""
"""The column with the head, in a statement about ``image_store s``; ``seen`` is a version."""


class Commit(NamedTuple):
    """A commit that was seen.

    :ivar version: its number
    :ivar token: its random token; ``None`` where that is not known
    """

    version: int
    token: str | None


class Head(NamedTuple):
    """What the database says of itself.

    :ivar last: the last commit
    :ivar pruned: the number of the last commit whose changes are forgotten
    :ivar is_standby: whether the server is a standby, which may be behind
    :ivar seen_token: the token of the commit that was asked for
    """

    schema_version: int
    identity: str | None
    last: Commit
    pruned: int
    is_standby: bool
    seen_token: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the column."""
        schema, identity, version, pruned, is_standby, token, seen = (
            None if word == _NONE else word for word in text.split()
        )
        return cls(
            int(schema or 0),
            identity,
            Commit(int(version or 0), token),
            int(pruned or 0),
            is_standby == "t",
            seen,
        )


class History:
    """What an open store has seen of its database. Thread-safe.

    :param name: the name of the database in messages
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._mutex = threading.Lock()
        self._identity: str | None = None
        self._seen = Commit(-1, None)
        # Once the database did not continue the history, no later answer can be trusted.
        self._problem: str | None = None

    @property
    def seen(self) -> Commit:
        """The last commit that was seen. Read it before a statement, and give it to accept()."""
        return self._seen

    def accept(self, asked: Commit, text: str) -> Head:
        """Parse a head, and note its commit if it continues what was seen.

        :param asked: the commit that :attr:`seen` was before the statement began
        :raises StoreIdentityError: when it does not continue it, and from then on always
        :raises StoreSchemaError: when the tables have another version by now
        """
        head = Head.parse(text)
        check_version(head.schema_version, self._name)
        with self._mutex:
            if self._problem is not None:
                self._fail(self._problem)
            if self._identity is None:
                self._identity = head.identity
            elif head.identity != self._identity:
                self._fail("was adopted as a new store, or another one took its place")
            if head.last.version >= asked.version:
                self._compare(asked, head)
                self._note(head.last)
            elif not head.is_standby:
                self._fail(
                    f"went back in time, as when a backup is restored: commit {asked.version} was "
                    f"seen, and the last one is {head.last.version} now"
                )
        return head

    def _compare(self, asked: Commit, head: Head) -> None:
        if asked.token is None:
            return
        # Commits before the last pruned one are forgotten, so their tokens cannot be compared.
        is_known = head.seen_token is not None or asked.version > head.pruned
        if is_known and head.seen_token != asked.token:
            self._fail(
                "went back in time, as when a backup is restored, and moved on: commit "
                f"{asked.version} is not the one that was seen"
            )

    def advance(self, commit: Commit) -> None:
        """Note a commit that this store has made."""
        with self._mutex:
            self._note(commit)

    def _note(self, commit: Commit) -> None:
        # An answer from the middle of a commit may have its number without its token.
        if commit.token is not None and commit.version > self._seen.version:
            self._seen = commit

    def _fail(self, problem: str) -> NoReturn:
        self._problem = problem
        raise StoreIdentityError(
            f"the database {self._name} {problem}; to use it as it is now, open the store again, "
            "and check it",
            path=self._name,
            expected=self._identity,
        )
