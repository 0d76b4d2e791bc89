"""What stands before the command, and the store that it means."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import typer
from anyio import to_thread

from .._async.store import ImageStore
from .._engine.protocol import Location
from .exits import CommandError, ExitCode
from .roots import given_cluster, given_store, is_cluster, podman_store

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

    def place(self, *, writes: bool = False) -> str:
        """The image store's directory, which need not exist yet if it was given. Blocking.

        :raises CommandError: when the store may not be written to, or none can be meant
        """
        if self.root is not None:
            return given_store(self.root)
        place = podman_store()
        if writes and not self.may_write:
            raise CommandError(
                f"{place} is podman's own store: give --write before the command to change it",
                ExitCode.USAGE,
            )
        return place

    async def path(self, *, writes: bool = False) -> str:
        """The image store's directory, made where there was none.

        :raises CommandError: when the store may not be written to, or none can be meant
        """
        if self.root is not None and is_cluster(self.root):
            raise CommandError("only a directory is repaired: give one as --root", ExitCode.USAGE)
        path = await to_thread.run_sync(lambda: self.place(writes=writes))
        if not await to_thread.run_sync(os.path.lexists, path):
            async with ImageStore(path):
                pass
        logger.info("the store is %s", path)
        return path

    async def home(self, *, writes: bool = False) -> str | Location:
        """What keeps the store: a directory, made where there was none, or a cluster.

        :raises CommandError: when the store may not be written to, or none can be meant
        """
        if self.root is not None and is_cluster(self.root):
            return given_cluster(self.root)
        return await self.path(writes=writes)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[ImageStore]:
        """The store, to look at."""
        async with ImageStore(await self.home(), read_only=True) as store:
            yield store

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[ImageStore]:
        """The store, to change."""
        engine = await self.home(writes=True)
        async with ImageStore(engine, lock_timeout=self.lock_timeout) as store:
            yield store
