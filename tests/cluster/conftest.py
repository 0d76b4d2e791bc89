"""For each test: a new database and bucket prefix, and proxies to the servers that can fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .gateway import Gateway
    from .proxy import Proxy
    from .servers import Place, Servers


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """asyncio and trio. uvloop is like asyncio in these tests, which mostly wait for servers."""
    return request.param, {}


@pytest.fixture
def place(servers: Servers) -> Iterator[Place]:
    """A place with tables, and without images."""
    with servers.new_place() as place:
        yield place


@pytest.fixture
def to_postgres(servers: Servers) -> Iterator[Proxy]:
    """A proxy to PostgreSQL that can fail."""
    from .proxy import Proxy

    with Proxy(servers.postgres.port) as proxy:
        yield proxy


@pytest.fixture
def to_objects(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy to the object store that can fail, and that this test's stores use."""
    from .proxy import Proxy

    with Proxy(servers.objects.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


@pytest.fixture
def gateway(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A gateway to the object store that this test's stores use. Its rule decides the answers."""
    from .gateway import Gateway

    with Gateway(servers.objects.port) as gateway:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url)
        yield gateway
