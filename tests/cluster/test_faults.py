"""Servers and networks that fail: what was acknowledged stays, and nothing is half-done."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from aimagestore import ImageStore, StoreUnavailableError

from ..peers.peer import Running, running
from .machines import ALL, Network, can_make_networks, network

if TYPE_CHECKING:
    from aimagestore._local.postgres import Postgres
    from aimagestore._local.server import Server

    from .proxy import Proxy
    from .servers import Place, Servers

TASKS = 8
ROUNDS = 5

# The session that commits first ends itself, when all that is left to do is to write the commit.
# A sequence counts for rolled-back transactions too.
_END_ONE_COMMIT = """
CREATE SEQUENCE commits;
CREATE FUNCTION end_first() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('commits') = 1 THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
        PERFORM pg_sleep(1);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER end_first AFTER INSERT OR UPDATE ON images
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION end_first();
"""


class Ledger:
    """Tasks that change a store, whatever happens, and what each was told."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._numbers = itertools.count()
        self.acknowledged: set[str] = set()
        self.unavailable: list[StoreUnavailableError] = []
        self.is_over = False

    async def run(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        """Change the store from some tasks until something else has been done."""
        async with anyio.create_task_group() as tasks:
            for _ in range(TASKS):
                tasks.start_soon(self._work)
            await meanwhile()
            self.is_over = True

    async def _work(self) -> None:
        while not self.is_over:
            name = f"name-{next(self._numbers)}"
            data = name.encode() * 1000
            try:
                await self._store.create(names=[name], big_data={"manifest": data})
            except StoreUnavailableError as error:
                self.unavailable.append(error)
                await anyio.sleep(0.05)
            else:
                self.acknowledged.add(name)

    async def until_acknowledged(self, more: int) -> None:
        """Wait for some more to be told that all is well."""
        enough = len(self.acknowledged) + more
        with anyio.fail_after(60):
            while len(self.acknowledged) < enough:
                await anyio.sleep(0.01)


async def check_whole(place: Place, ledger: Ledger) -> None:
    """All that was acknowledged is there, once, and what is there is whole."""
    async with ImageStore(place.engine()) as store:
        images = await store.images()
        names = [name for image in images for name in image.names]
        assert len(names) == len(set(names)) == len(images)
        assert ledger.acknowledged <= set(names)
        for image in images:
            async with store.open_big_data(image.id, "manifest", verify=True) as reader:
                assert await reader.read() == image.names[0].encode() * 1000
        await store.collect_garbage()


async def in_thread(function: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(function)


@asynccontextmanager
async def gone(server: Server) -> AsyncIterator[None]:
    """A server is not there, for the block."""
    await in_thread(server.kill)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(server.start)


async def fails(servers: Servers, call: Callable[[], Awaitable[object]]) -> None:
    """A call that can't be made says so, and nothing that is secret."""
    with anyio.fail_after(60), pytest.raises(StoreUnavailableError) as caught:
        await call()
    text = "".join(traceback.format_exception(caught.value))
    assert servers.postgres.password not in text
    assert servers.objects.secret_key not in text


# PostgreSQL


async def test_a_session_that_ends_in_its_commit(servers: Servers, place: Place) -> None:
    async with ImageStore(place.engine()) as store:
        servers.postgres.execute(_END_ONE_COMMIT, database=place.database)
        image = await store.create(names=["name"], big_data={"manifest": b"m"})
        assert await store.images() == [image]
        assert servers.postgres.execute("SELECT last_value FROM commits", (), place.database) > [
            (1,)
        ]


async def test_an_acknowledgement_that_is_lost(
    servers: Servers, place: Place, to_postgres: Proxy
) -> None:
    """The commit has happened, but nobody was told: it isn't made twice."""
    there = servers.by_way_of(place, to_postgres.port)
    async with ImageStore(there.engine()) as store:
        one = await store.create("one", names=["name"])
        to_postgres.lose_answer_to(b"COMMIT")
        two = await store.create("two", big_data={"manifest": b"m"})
        assert to_postgres.has_lost_it
        assert await store.images() == [one, two]
        to_postgres.lose_answer_to(b"COMMIT")
        two = await store.add_names("two", ["name"])
        to_postgres.lose_answer_to(b"COMMIT")
        await store.delete("one")
        to_postgres.lose_answer_to(b"COMMIT")
        async with store.transaction() as transaction:
            transaction.set_metadata("two", "text")
            three = transaction.create("three")
    async with ImageStore(place.engine()) as store:
        assert [image.id for image in await store.images()] == ["two", "three"]
        assert await store.get("three") == three
        assert (await store.get("name")).metadata == "text"


async def test_sessions_that_end_again_and_again(servers: Servers, place: Place) -> None:
    async with ImageStore(place.engine()) as store:
        ledger = Ledger(store)

        async def end_sessions() -> None:
            for _ in range(4 * ROUNDS):
                await ledger.until_acknowledged(TASKS)
                await in_thread(lambda: servers.postgres.end_sessions(place.database))

        await ledger.run(end_sessions)
    await check_whole(place, ledger)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_postgres_goes_and_comes_back(servers: Servers, place: Place, end: str) -> None:
    async with ImageStore(place.engine()) as store:
        ledger = Ledger(store)

        async def restart() -> None:
            for _ in range(ROUNDS):
                await ledger.until_acknowledged(TASKS)
                await in_thread(getattr(servers.postgres, end))
                await in_thread(servers.postgres.start)
            await ledger.until_acknowledged(TASKS)

        await ledger.run(restart)
    await check_whole(place, ledger)


async def test_a_call_while_postgres_is_gone(servers: Servers, place: Place) -> None:
    async with ImageStore(place.engine()) as store:
        await store.create("one")
        async with gone(servers.postgres), anyio.create_task_group() as tasks:
            # At the same time, since each takes as long as it is tried again.
            tasks.start_soon(fails, servers, lambda: store.get("one"))
            tasks.start_soon(fails, servers, lambda: store.create("two"))
            tasks.start_soon(fails, servers, store.transaction().__aenter__)
            tasks.start_soon(fails, servers, ImageStore(place.engine()).__aenter__)
        assert (await store.get("one")).id == "one"
        assert (await store.create("two")).id == "two"


@pytest.fixture
def net(servers: Servers) -> Iterator[Network]:
    """Another machine, which comes to PostgreSQL by a network that can be unplugged."""
    if not can_make_networks():
        pytest.skip("needs network namespaces: root, and apt-get install iproute2")
    postgres = servers.postgres
    with network(1) as net, (postgres.data / "pg_hba.conf").open("a") as access:
        before = postgres.options["listen_addresses"]
        postgres.options["listen_addresses"] += f",{net.host}"
        access.write(f"host all all {ALL} scram-sha-256\n")
        access.flush()
        postgres.stop()
        postgres.start()
        yield net
        postgres.options["listen_addresses"] = before
        postgres.stop()
        postgres.start()


@contextmanager
def on_another_machine(
    servers: Servers, place: Place, net: Network, backend: str, way: str
) -> Iterator[Running]:
    """A process there, which uses the store while the network is unplugged; see ``remote.py``."""
    there = servers.by_way_of(place, servers.postgres.port, net.host)
    urls = (there.records_url, there.blobs_url)
    command = (*net.machines[0], sys.executable, "-m", "tests.cluster.remote")
    with running(*command, backend, *urls, way) as process:
        yield process


async def test_a_client_that_is_cut_off(
    servers: Servers, place: Place, net: Network, anyio_backend: Any
) -> None:
    """For longer than its timeouts; while the others go on."""
    async with ImageStore(place.engine()) as other:
        with on_another_machine(servers, place, net, anyio_backend[0], "calls") as remote:
            assert await answer(remote) == "open"
            with net.unplugged(0):
                remote.go_on()
                with anyio.fail_after(40):
                    await other.create("other")
                    assert await answer(remote) == {"get": True, "create": True}
            remote.go_on()
            assert await answer(remote) == ["before", "other", "after"]


async def test_a_transaction_that_is_cut_off(
    servers: Servers, place: Place, net: Network, anyio_backend: Any
) -> None:
    """It holds the lock when it loses the network: the others get it all the same."""
    async with ImageStore(place.engine()) as other:
        with on_another_machine(servers, place, net, anyio_backend[0], "transaction") as remote:
            assert await answer(remote) == "in a transaction"
            with net.unplugged(0), anyio.fail_after(40):
                await other.create("other")
            remote.go_on()
            assert await answer(remote) == {"transaction": True}
            assert [image.id for image in await other.images()] == ["other"]
            remote.go_on()
            assert await answer(remote) == ["other", "after"]


async def answer(remote: Running) -> Any:
    return json.loads(await anyio.to_thread.run_sync(remote.read_line))


# The object store


async def test_the_object_store_goes_and_comes_back(servers: Servers, place: Place) -> None:
    async with ImageStore(place.engine()) as store:
        ledger = Ledger(store)

        async def restart() -> None:
            for _ in range(2):
                await ledger.until_acknowledged(TASKS)
                await in_thread(servers.objects.kill)
                await in_thread(servers.objects.start)
            await ledger.until_acknowledged(TASKS)

        await ledger.run(restart)
    await check_whole(place, ledger)


async def test_a_call_while_the_object_store_is_gone(servers: Servers, place: Place) -> None:
    async with ImageStore(place.engine()) as store:
        await store.create("one", big_data={"layer": b"old" * 100_000})
        before = await store.get("one")
        async with gone(servers.objects), anyio.create_task_group() as tasks:
            new = b"new" * 100_000
            tasks.start_soon(fails, servers, lambda: store.set_big_data("one", "layer", new))
            tasks.start_soon(fails, servers, lambda: store.big_data("one", "layer"))
            assert await store.get("one") == before, "records don't need it"
        assert await store.big_data("one", "layer") == b"old" * 100_000
        await store.set_big_data("one", "layer", b"new" * 100_000)
        assert await store.big_data("one", "layer") == b"new" * 100_000


async def chunks(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number % 256]) * 1_000_000


async def test_an_upload_that_is_cut_half_way(place: Place, to_objects: Proxy) -> None:
    """A part that fails is sent again."""
    async with ImageStore(place.engine()) as store:
        image = await store.create("one")
        to_objects.cut_after(20_000_000)
        image = await store.set_big_data("one", "layer", chunks(40))
        assert image.big_data_sizes["layer"] == 40_000_000
        async with store.open_big_data("one", "layer", verify=True) as reader:
            assert len(await reader.read()) == 40_000_000


async def test_a_download_that_is_cut_half_way(place: Place, to_objects: Proxy) -> None:
    """It goes on where it was."""
    async with ImageStore(place.engine()) as store:
        await store.create("one")
        await store.set_big_data("one", "layer", chunks(40))
        async with store.open_big_data("one", "layer", verify=True) as reader:
            data = await reader.read(1_000_000)
            to_objects.cut()
            data += await reader.read()
        assert data == b"".join([chunk async for chunk in chunks(40)])


async def test_an_upload_that_never_ends(place: Place, to_objects: Proxy) -> None:
    """It fails in the end, and changes nothing."""
    async with ImageStore(place.engine()) as store:
        before = await store.create("one", big_data={"layer": b"old" * 100_000})
        with ExitStack() as stack:

            async def cut_chunks() -> AsyncIterator[bytes]:
                for number in range(40):
                    if number == 20:
                        stack.enter_context(to_objects.refusing())
                    yield bytes([number]) * 1_000_000

            with pytest.raises(StoreUnavailableError):
                await store.set_big_data("one", "layer", cut_chunks())
        assert await store.get("one") == before
        assert await store.big_data("one", "layer") == b"old" * 100_000


# A standby


@pytest.fixture
def standby(servers: Servers) -> Iterator[Postgres]:
    """A server that follows the first."""
    standby = servers.postgres.create_standby(servers.local.root / "standby")
    standby.start()
    yield standby
    standby.kill()
    shutil.rmtree(standby.root)


async def test_a_standby_for_reads(servers: Servers, place: Place, standby: Postgres) -> None:
    there = servers.by_way_of(place, standby.port)
    async with (
        ImageStore(place.engine()) as store,
        ImageStore(there.engine(), read_only=True) as reader,
    ):
        image = await store.create(names=["name"], big_data={"manifest": b"m"})
        with anyio.fail_after(10):
            while not await reader.exists("name"):
                await anyio.sleep(0.01)
        assert await reader.get("name") == image
        assert await reader.big_data("name", "manifest") == b"m"
        async with gone(servers.postgres):
            assert await reader.get("name") == image
        await store.set_metadata("name", "later")
        with anyio.fail_after(30):
            while await reader.metadata("name") != "later":
                await anyio.sleep(0.01)


@pytest.fixture
def synchronous(servers: Servers, standby: Postgres) -> Iterator[Postgres]:
    """The standby, which has every commit before it is acknowledged."""
    postgres = servers.postgres
    postgres.options["synchronous_standby_names"] = "*"
    postgres.stop()
    postgres.start()
    yield standby
    del postgres.options["synchronous_standby_names"]
    postgres.kill()
    postgres.start()


async def test_a_standby_that_takes_over(
    servers: Servers, place: Place, synchronous: Postgres
) -> None:
    """Both are named, and whichever can be written to is used."""
    url = servers.postgres.url(place.database)
    both = replace(
        place,
        records_url=url.replace("/store", f",127.0.0.1:{synchronous.port}/store")
        + "?target_session_attrs=read-write",
    )
    async with ImageStore(both.engine()) as store:
        ledger = Ledger(store)

        async def fail_over() -> None:
            await ledger.until_acknowledged(TASKS)
            await in_thread(servers.postgres.kill)
            await in_thread(lambda: synchronous.execute("SELECT pg_promote()"))
            await ledger.until_acknowledged(TASKS)

        await ledger.run(fail_over)
    await check_whole(both, ledger)
