"""Refusals of the servers are reported when a store is opened, without retries."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from aimagestore import ImageStore, StoreUnavailableError, check

from . import moto_lacks
from .gateway import Answer, error

if TYPE_CHECKING:
    from .gateway import Gateway
    from .servers import Place

pytest.importorskip("psycopg")

DEADLINE = 30.0
SOON = 10.0
"""Seconds. Retries would go on until the deadline, much longer than this."""


async def refused(place: Place, *, read_only: bool = False) -> str:
    """Check that opening fails without retries or secrets, and return the error's message."""
    with anyio.fail_after(SOON), pytest.raises(StoreUnavailableError) as caught:
        async with ImageStore(place.location(deadline=DEADLINE), read_only=read_only):
            pass
    assert "s3cr3t" not in str(caught.value)
    return str(caught.value)


# The database


async def test_a_missing_password_is_not_an_outage(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD")
    assert "no password supplied" in await refused(place)


async def test_a_server_without_the_requested_tls_is_not_an_outage(place: Place) -> None:
    asked = replace(place, records_url=f"{place.records_url}?sslmode=require")
    assert "SSL was required" in await refused(asked)


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ('root certificate file "/none" does not exist', False),
        ("SSL error: certificate verify failed", False),
        ('authentication method requirement "scram-sha-256" failed', False),
        ("connection refused", True),
        ("FATAL:  sorry, too many clients already", True),
        ("FATAL:  the database system is starting up", True),
        ("FATAL:  das Datenbanksystem startet", True),
        ("FATAL:  terminating connection due to administrator command", True),
        ("FATAL:  server login has been failing, cached error: connect failed", True),
        ('FATAL:  password authentication failed for user "user"', False),
        ('FATAL:  no pg_hba.conf entry for host "127.0.0.1"', False),
        ('FATAL:  database "images" does not exist', False),
        ('FATAL:  role "images_reader" is not permitted to log in', False),
        ('FATAL:  permission denied for database "images"', False),
        ('FATAL:  database "images" is not currently accepting connections', False),
        ('FATAL:  unrecognized configuration parameter "datestyl"', False),
        ("FATAL:  unsupported startup parameter: options", False),
    ],
)
def test_only_transient_errors_are_tried_again(message: str, lost: bool) -> None:
    import psycopg

    from aimagestore.cluster._sessions import is_lost

    assert is_lost(psycopg.OperationalError(f"connection failed: {message}")) == lost


# The bucket


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("is_new", [False, True])
async def test_a_missing_bucket_is_named(place: Place, read_only: bool, is_new: bool) -> None:
    if not is_new:
        async with ImageStore(place.location()):
            pass
    elsewhere = replace(place, blobs_url="s3://no-such-bucket/prefix")
    message = await refused(elsewhere, read_only=read_only)
    assert "s3://no-such-bucket/prefix: there is no such bucket" in message
    with pytest.raises(StoreUnavailableError, match="no such bucket"):
        await check(elsewhere.location())


async def test_a_deleted_bucket_is_not_a_missing_item(place: Place, gateway: Gateway) -> None:
    async with ImageStore(place.location()) as store:
        await store.create("one", big_data={"key": b"data"})
        gateway.rule = lambda *_: error(404, "NoSuchBucket")
        with pytest.raises(StoreUnavailableError, match="no such bucket"):
            await store.big_data("one", "key")


@moto_lacks.authentication
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
async def test_wrong_keys_are_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, read_only: bool
) -> None:
    async with ImageStore(place.location()):
        pass
    monkeypatch.setenv(name, "s3cr3t")
    assert name in await refused(place, read_only=read_only)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error(400, "AuthorizationHeaderMalformed"), "AWS_REGION is not the region"),
        (error(301, "PermanentRedirect"), "AWS_REGION or AWS_ENDPOINT_URL is wrong"),
        (error(403, "RequestTimeTooSkewed"), "the clock of this machine is wrong"),
        (error(403, "ExpiredToken"), "AWS_SESSION_TOKEN has expired"),
        (error(403, "AccessDenied"), "the credentials do not permit s3:GetObject"),
        (Answer(403), "the credentials do not permit s3:GetObject"),
    ],
)
async def test_errors_of_the_bucket_are_named(
    place: Place, gateway: Gateway, answer: Answer, message: str
) -> None:
    gateway.rule = lambda *_: answer
    assert message in await refused(place)


@pytest.mark.parametrize(
    ("method", "permission"), [("list", "s3:ListBucket"), ("PUT", "s3:PutObject")]
)
async def test_a_first_opening_names_the_permission_that_it_lacks(
    place: Place, gateway: Gateway, method: str, permission: str
) -> None:
    def rule(asked: str, path: str, query: str) -> Answer | None:
        is_it = "list-type" in query if method == "list" else asked == method
        return error(403, "AccessDenied") if is_it else None

    gateway.rule = rule
    assert f"do not permit {permission} (AccessDenied)" in await refused(place)


def test_missing_credentials_are_named() -> None:
    """Without them the client asks the metadata address of clouds, and fails there."""
    from aimagestore.cluster._addresses import BucketAddress
    from aimagestore.cluster._blobs import Blobs

    blobs = Blobs(BucketAddress.of("s3://bucket"), 1.0)
    failure = Exception("Error performing PUT http://169.254.169.254/latest/api/token in 2 s")
    assert "set AWS_ACCESS_KEY_ID" in str(blobs.unavailable(failure))


async def test_an_endpoint_where_nothing_answers_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1"):
        async with ImageStore(place.location(deadline=1)):
            pass
