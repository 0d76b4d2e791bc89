"""What stands before the command, and the store that it means."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import typer
from anyio import to_thread

from .._async.locations import AdditionalStore, location_of, stacked_location
from .._async.store import ImageStore
from .._engine.protocol import Location
from ..podman._opening import additional_stores, storage_location
from .exits import CommandError, ExitCode
from .output import say
from .roots import given_cluster, given_store, is_cluster, may_be_store, podman_storage

logger = logging.getLogger("aimagestore")


@dataclass(frozen=True, slots=True)
class Session:
    """The store that a command works on.

    :ivar root: the directory or cluster that was given; ``None`` for podman's own store
    :ivar may_write: whether podman's own store may be changed
    :ivar lock_timeout: seconds that a change waits for the store's lock
    :ivar additional: additional stores that were given
    """

    root: str | None
    may_write: bool = False
    lock_timeout: float | None = None
    additional: tuple[str, ...] = ()

    @classmethod
    def of(cls, context: typer.Context) -> Session:
        """What was given before the command."""
        parameters = context.find_root().params
        return cls(
            parameters["root"],
            parameters["write"],
            parameters["lock_timeout"],
            tuple(parameters["additional_store"] or ()),
        )

    async def place(self, *, writes: bool = False) -> str:
        """The image store's directory, which need not exist yet if it was given.

        :raises CommandError: when the store may not be written to, or none can be meant
        """
        place, _ = await self._place(writes=writes)
        return place.name

    async def _place(self, *, writes: bool) -> tuple[Location, list[AdditionalStore]]:
        """The image store's directory, and the additional stores that podman's own has."""
        if self.root is not None:
            return location_of(await given_store(self.root)), []
        storage = await podman_storage()
        if writes and not self.may_write:
            raise CommandError(
                f"{storage.image_store} is podman's own store: give --write before the command to "
                "change it",
                ExitCode.USAGE,
            )
        return storage_location(storage), additional_stores(storage)

    async def home(self, *, writes: bool = False, makes: bool = False) -> Location:
        """What keeps the store: a directory, or a cluster; additional ones only help a check.

        :param makes: whether a directory is made where there is none
        :raises CommandError: when there is none, when the store may not be written to, or none
            can be meant
        """
        return stacked_location(*await self._home(writes=writes, makes=makes))

    async def _home(
        self, *, writes: bool = False, makes: bool = False
    ) -> tuple[Location, list[AdditionalStore]]:
        """What keeps the store, and its additional stores."""
        given = [AdditionalStore(await _given(root)) for root in self.additional]
        if self.root is not None and is_cluster(self.root):
            return given_cluster(self.root), given
        place, additional = await self._place(writes=writes)
        if not makes and not await to_thread.run_sync(may_be_store, place.name):
            raise CommandError(
                f"there is no image store at {place.name}: create, import and copy make one"
            )
        logger.info("the store is %s", place.name)
        return place, [*given, *additional]

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[ImageStore]:
        """The store, to look at."""
        home, additional = await self._home()
        async with ImageStore(home, read_only=True, additional_stores=additional) as store:
            yield store

    @asynccontextmanager
    async def writing(self, *, makes: bool = False) -> AsyncIterator[ImageStore]:
        """The store, to change.

        :param makes: whether a directory is made where there is none
        """
        home, additional = await self._home(writes=True, makes=makes)
        async with ImageStore(
            home, lock_timeout=self.lock_timeout, additional_stores=additional
        ) as store:
            yield store


async def _given(root: str) -> str | Location:
    """The store that is given by a root."""
    return given_cluster(root) if is_cluster(root) else await given_store(root)


def say_layers_stay(store: ImageStore) -> None:
    """Say on standard error what becomes of the layers of images that were deleted here.

    Nothing is said where no other program keeps them.
    """
    if store.layer_store is not None:
        say(
            f"the layers stay in {store.layer_store}: podman rmi removes an image with its "
            "layers. Those of a deleted image are freed only by podman system check "
            "--repair --max 0s and containers-storage check --repair --max 0s, which podman "
            "4.3 does not have"
        )
