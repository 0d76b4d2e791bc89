"""PostgreSQL or the network to it fails: acknowledged changes stay, and no change is half made."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.to_thread import run_sync

from aimagestore import ImageStore, StoreUnavailableError

from ..peers.peer import Running, running
from ..support.loops import NIGHTLY
from .ledger import TASKS, Ledger, check_whole, fails, killed, until_requested
from .machines import ALL, Network, can_make_networks, network
from .proxy import Proxy

if TYPE_CHECKING:
    from .servers import Place, Servers

ROUNDS = 5 if NIGHTLY else 2
"""How often a server restarts while tasks change a store."""

# The first session that commits is terminated right before PostgreSQL writes the commit. A sequence
# also counts transactions that are rolled back.
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


async def test_a_commit_whose_session_ends_is_made_again(servers: Servers, place: Place) -> None:
    async with ImageStore(place.location()) as store:
        await servers.execute(place, _END_ONE_COMMIT)
        image = await store.create(names=["name"], big_data={"manifest": b"m"})
        assert await store.images() == [image]
        ((commits,),) = await servers.execute(place, "SELECT last_value FROM commits")
        assert commits > 1


async def test_a_touch_whose_session_ends_is_made_again(servers: Servers, place: Place) -> None:
    async with ImageStore(place.location()) as store:
        await servers.execute(place, _END_ONE_COMMIT.replace("ON images", "ON image_store"))
        statement = "SELECT touched FROM image_store"
        before = await servers.execute(place, statement)
        await store.touch()
        assert await servers.execute(place, statement) > before
        ((commits,),) = await servers.execute(place, "SELECT last_value FROM commits")
        assert commits > 1


async def test_a_commit_whose_acknowledgement_is_lost_is_not_made_twice(
    servers: Servers, place: Place, to_postgres: Proxy
) -> None:
    there = servers.by_way_of(place, to_postgres.port)
    async with ImageStore(there.location()) as store:
        one = await store.create("one", names=["name"])
        to_postgres.lose_answer_to(b"COMMIT\0")
        two = await store.create("two", big_data={"manifest": b"m"})
        assert to_postgres.has_lost_it
        assert await store.images() == [one, two]
        to_postgres.lose_answer_to(b"COMMIT\0")
        two = await store.add_names("two", ["name"])
        to_postgres.lose_answer_to(b"COMMIT\0")
        await store.delete("one")
        to_postgres.lose_answer_to(b"COMMIT\0")
        async with store.transaction() as transaction:
            await transaction.set_metadata("two", "text")
            three = await transaction.create("three")
    async with ImageStore(place.location()) as store:
        assert [image.id for image in await store.images()] == ["two", "three"]
        assert await store.get("three") == three
        assert (await store.get("name")).metadata == "text"


async def test_nothing_is_lost_when_sessions_end_again_and_again(
    servers: Servers, place: Place
) -> None:
    async with ImageStore(place.location()) as store:
        ledger = Ledger(store)

        async def end_sessions() -> None:
            for _ in range(4 * ROUNDS):
                await ledger.until_acknowledged(TASKS)
                await run_sync(servers.postgres.end_sessions, place.database)

        await ledger.run(end_sessions)
    await check_whole(place, ledger)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_nothing_is_lost_when_postgres_restarts(
    servers: Servers, place: Place, end: str
) -> None:
    async with ImageStore(place.location()) as store:
        ledger = Ledger(store)

        async def restart() -> None:
            for _ in range(ROUNDS):
                await ledger.until_acknowledged(TASKS)
                await run_sync(getattr(servers.postgres, end))
                await run_sync(servers.postgres.start)
            await ledger.until_acknowledged(TASKS)

        await ledger.run(restart)
    await check_whole(place, ledger)


async def test_calls_fail_while_postgres_is_stopped_and_work_again_afterwards(
    servers: Servers, place: Place
) -> None:
    async with ImageStore(place.location()) as store:
        await store.create("one")
        async with killed(servers.postgres), anyio.create_task_group() as tasks:
            # At the same time, because each is retried until its deadline.
            tasks.start_soon(fails, servers, lambda: store.get("one"))
            tasks.start_soon(fails, servers, lambda: store.create("two"))
            tasks.start_soon(fails, servers, store.transaction().__aenter__)
            tasks.start_soon(fails, servers, ImageStore(place.location()).__aenter__)
        assert (await store.get("one")).id == "one"
        assert (await store.create("two")).id == "two"


DEADLINE = 2.0


async def test_calls_end_by_the_deadline_while_the_server_is_silent(
    servers: Servers, place: Place, to_postgres: Proxy
) -> None:
    there = servers.by_way_of(place, to_postgres.port)
    location = there.location(deadline=DEADLINE)
    async with ImageStore(location) as store:
        await store.create("one", big_data={"key": b"1"})
        # A call in line for the lock first waits for the attempt of the call before it.
        with to_postgres.silent(), anyio.fail_after(3 * DEADLINE):
            async with anyio.create_task_group() as tasks:
                for call in (
                    lambda: store.get("one"),
                    lambda: store.create("two"),
                    lambda: store.big_data("one", "key"),
                    store.collect_garbage,
                    store.watch().__aenter__,
                    store.transaction().__aenter__,
                    ImageStore(location).__aenter__,
                ):
                    tasks.start_soon(fails, servers, call)
        with anyio.fail_after(DEADLINE):
            assert [image.id for image in await store.images()] == ["one"]


async def test_a_call_is_cancelled_at_once_while_the_server_is_silent(
    servers: Servers, place: Place, to_postgres: Proxy
) -> None:
    there = servers.by_way_of(place, to_postgres.port)
    async with ImageStore(there.location(deadline=DEADLINE)) as store:
        await store.create("one")
        with to_postgres.silent():
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: store.get("one"),
                lambda: store.create("two"),
            ]
            for call in calls:
                with anyio.fail_after(0.9), anyio.move_on_after(0.2) as scope:
                    await call()
                assert scope.cancelled_caught
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fails, servers, lambda: store.get("one"))
        assert await store.exists("one")
        assert not await store.exists("two")


async def test_a_commit_without_an_answer_says_that_it_may_have_happened(
    servers: Servers, place: Place, to_postgres: Proxy
) -> None:
    there = servers.by_way_of(place, to_postgres.port)
    async with ImageStore(there.location(deadline=DEADLINE)) as store:
        with (
            ExitStack() as stack,
            anyio.fail_after(2 * DEADLINE),
            pytest.raises(StoreUnavailableError, match="may have happened") as caught,
        ):
            async with store.transaction() as tx:
                await tx.create("one")
                stack.enter_context(to_postgres.silent())
        assert caught.value.may_have_happened


async def test_a_wait_for_the_lock_ends_when_the_server_falls_silent(
    servers: Servers, place: Place, to_postgres: Proxy
) -> None:
    there = servers.by_way_of(place, to_postgres.port)
    async with (
        ImageStore(there.location(deadline=DEADLINE)) as store,
        ImageStore(place.location()) as other,
        other.transaction(),
    ):
        # The wait may be longer than the deadline, because the server confirms that it goes on.
        with anyio.move_on_after(1.5 * DEADLINE) as scope:
            await store.create("one")
        assert scope.cancelled_caught
        with ExitStack() as stack, anyio.fail_after(2 * DEADLINE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fails, servers, lambda: store.create("two"))
                await until_requested(servers, place)
                stack.enter_context(to_postgres.silent())


@pytest.fixture
def net(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Another machine, which reaches both servers by a network that can be unplugged."""
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
        bridge = socket.create_server((net.host, 0))
        with Proxy(servers.objects.port, bridge) as to_objects:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{net.host}:{to_objects.port}")
            monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
            yield net
        postgres.options["listen_addresses"] = before
        postgres.stop()
        postgres.start()


@contextmanager
def on_another_machine(
    servers: Servers, place: Place, net: Network, backend: str, way: str
) -> Iterator[Running]:
    """Start a process there that uses the store; see ``remote.py`` for its ways."""
    there = servers.by_way_of(place, servers.postgres.port, net.host)
    urls = (there.records_url, there.blobs_url)
    command = (*net.machines[0], sys.executable, "-m", "tests.cluster.remote")
    with running(*command, backend, *urls, way) as process:
        yield process


async def test_calls_of_a_machine_without_a_network_fail_while_others_go_on(
    servers: Servers, place: Place, net: Network, anyio_backend: Any
) -> None:
    async with ImageStore(place.location()) as other:
        with on_another_machine(servers, place, net, anyio_backend[0], "calls") as remote:
            assert await answer(remote) == "open"
            with net.unplugged(0):
                remote.go_on()
                with anyio.fail_after(40):
                    await other.create("other")
                    assert await answer(remote) == {"get": True, "create": True}
            remote.go_on()
            assert await answer(remote) == ["before", "other", "after"]


async def test_others_get_the_lock_of_a_transaction_on_a_machine_without_a_network(
    servers: Servers, place: Place, net: Network, anyio_backend: Any
) -> None:
    async with ImageStore(place.location()) as other:
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
    """Return the next message of a process."""
    return json.loads(await run_sync(remote.read_line))
