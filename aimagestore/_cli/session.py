"""What stands before the command, and the store that it means."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import typer
from anyio import to_thread

from .._async.store import ImageStore
from .._engine.protocol import Location
from .exits import CommandError, ExitCode
from .roots import given_cluster, given_store, is_cluster, may_be_store, podman_store

logger = logging.getLogger("aimagestore")


@dataclass(frozen=True, slots=True)
class Session:
    """The store that a command works on.

    :ivar root: the directory or cluster that was given; ``None`` for podman's own store
    :ivar may_write: whether podman's own store may be changed
    :ivar lock_timeout: seconds that a change waits for the store's lock
    """

    root: str | None
    may_write: bool = False
    lock_timeout: float | None = None

    @classmethod
    def of(cls, context: typer.Context) -> Session:
        """What was given before the command."""
        parameters = context.find_root().params
        return cls(parameters["root"], parameters["write"], parameters["lock_timeout"])

    async def place(self, *, writes: bool = False) -> str:
        """The image store's directory, which need not exist yet if it was given.

        :raises CommandError: when the store may not be written to, or none can be meant
        """
        if self.root is not None:
            return await given_store(self.root)
        place = await podman_store()
        if writes and not self.may_write:
            raise CommandError(
                f"{place} is podman's own store: give --write before the command to change it",
                ExitCode.USAGE,
            )
        return place

    async def home(self, *, writes: bool = False, makes: bool = False) -> str | Location:
        """What keeps the store: a directory, or a cluster.

        :param makes: whether a directory is made where there is none
        :raises CommandError: when there is none, when the store may not be written to, or none
            can be meant
        """
        if self.root is not None and is_cluster(self.root):
            return given_cluster(self.root)
        path = await self.place(writes=writes)
        if not makes and not await to_thread.run_sync(may_be_store, path):
            raise CommandError(
                f"there is no image store at {path}: create, import and copy make one"
            )
        logger.info("the store is %s", path)
        return path

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[ImageStore]:
        """The store, to look at."""
        async with ImageStore(await self.home(), read_only=True) as store:
            yield store

    @asynccontextmanager
    async def writing(self, *, makes: bool = False) -> AsyncIterator[ImageStore]:
        """The store, to change.

        :param makes: whether a directory is made where there is none
        """
        engine = await self.home(writes=True, makes=makes)
        async with ImageStore(engine, lock_timeout=self.lock_timeout) as store:
            yield store
