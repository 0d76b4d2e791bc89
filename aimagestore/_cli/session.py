"""The options of the program, and the store that they name."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click
import msgspec
from anyio import to_thread

from .._async.locations import AdditionalStore, location_of, stacked_location
from .._async.store import ImageStore
from .._engine.protocol import Location
from .exits import CommandError, ExitCode
from .output import say
from .roots import given_cluster, given_store, is_cluster, may_be_store, podman_storage

logger = logging.getLogger("aimagestore")


class Session(msgspec.Struct, frozen=True):
    """The store that a command works on.

    :ivar root: the directory or cluster that was given; ``None`` for podman's own store
    :ivar may_write: whether podman's own store may be changed
    :ivar lock_timeout: seconds to wait for other programs, as for :class:`ImageStore`
    :ivar additional: additional stores that were given
    """

    root: str | None
    may_write: bool = False
    lock_timeout: float | None = None
    additional: tuple[str, ...] = ()

    @classmethod
    def of(cls, context: click.Context) -> Session:
        """Return the session that the options of the program describe."""
        parameters = context.find_root().params
        return cls(
            parameters["root"],
            parameters["write"],
            parameters["lock_timeout"],
            parameters["additional_store"],
        )

    async def _directory(self, *, writes: bool) -> tuple[Location, list[AdditionalStore]]:
        """Return the store's directory, and the additional stores of podman's configuration."""
        if self.root is not None:
            return location_of(await given_store(self.root)), []
        from ..podman._opening import (  # noqa: PLC0415 - what commands with --root need not load
            additional_stores,
            storage_location,
        )

        storage = await podman_storage()
        if writes and not self.may_write:
            raise CommandError(
                f"{storage.image_store} is podman's own store: give --write to change it",
                ExitCode.USAGE,
            )
        return storage_location(storage), additional_stores(storage)

    async def location(self, *, writes: bool = False) -> Location:
        """Return the location of the store with its additional stores, for a check or a repair.

        :raises CommandError: when there is no store, or it must not be changed
        """
        return stacked_location(*await self._locate(writes=writes))

    async def _locate(
        self, *, writes: bool = False, makes: bool = False
    ) -> tuple[Location, list[AdditionalStore]]:
        """Return the locations of the store and of its additional stores.

        :param makes: whether the command creates a store where there is none
        """
        given = [AdditionalStore(await _given(root)) for root in self.additional]
        if self.root is not None and is_cluster(self.root):
            return given_cluster(self.root), given
        directory, additional = await self._directory(writes=writes)
        if not makes and not await to_thread.run_sync(may_be_store, directory.name):
            raise CommandError(
                f"there is no image store at {directory.name}: create, import, load and copy make "
                "one"
            )
        logger.info("the store is %s", directory.name)
        return directory, [*given, *additional]

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[ImageStore]:
        """Open the store to read it."""
        location, additional = await self._locate()
        async with ImageStore(
            location,
            read_only=True,
            lock_timeout=self.lock_timeout,
            additional_stores=additional,
        ) as store:
            yield store

    @asynccontextmanager
    async def writing(self, *, makes: bool = False) -> AsyncIterator[ImageStore]:
        """Open the store to change it.

        :param makes: whether a directory is created where there is none
        """
        location, additional = await self._locate(writes=True, makes=makes)
        async with ImageStore(
            location, lock_timeout=self.lock_timeout, additional_stores=additional
        ) as store:
            yield store


async def _given(root: str) -> str | Location:
    """Return the store that a root names."""
    return given_cluster(root) if is_cluster(root) else await given_store(root)


def say_layers_stay(store: ImageStore) -> None:
    """Report on standard error that the layers of deleted images stay, if podman keeps them."""
    if store.layer_store is not None:
        say(
            f"the layers stay in {store.layer_store}: podman rmi removes an image with its "
            "layers. Without the image, only podman system check --repair --max 0s and "
            "containers-storage check --repair --max 0s free them, and podman 4.3 has neither"
        )
