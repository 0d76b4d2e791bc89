"""The grace period of a store, which is in the database and the same for all programs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from ._addresses import DatabaseAddress
from ._schema import check_schema
from ._sessions import DEADLINE, Session, Sessions

_LONGEST = timedelta(days=36_500)

_SET = "UPDATE image_store SET grace_period = %s"


def check_grace_period(grace_period: Any) -> None:
    """Check that a grace period can be used.

    :raises TypeError: when it is not a timedelta
    :raises ValueError: when it is not positive, or longer than a hundred years
    """
    if not isinstance(grace_period, timedelta):
        raise TypeError(
            f"grace_period must be of type timedelta, not {type(grace_period).__name__}"
        )
    if grace_period <= timedelta(0):
        raise ValueError(
            f"grace_period must be positive: {grace_period}; without one, data would be "
            "collected while it is being staged or read"
        )
    if grace_period > _LONGEST:
        raise ValueError(f"grace_period must be at most {_LONGEST.days} days: {grace_period}")


def set_grace_period(records_url: str, grace_period: timedelta) -> None:
    """Change the grace period of a store, at once and for all programs that use it. Blocks.

    For the grace period, :meth:`aimagestore.ImageStore.collect_garbage` keeps staged data, the
    content of replaced and deleted items, which open readers can still read, and the changes for
    watches. A database that is restored to a moment within it finds all of its objects.

    :param records_url: as for :class:`ClusterLocation`
    :param grace_period: more than zero, and at most a hundred years
    :raises TypeError: when ``grace_period`` is not a timedelta
    :raises ValueError: when the address is malformed, or the period is too short or too long
    :raises StoreSchemaError: when the database has no tables, or those of another version
    :raises StoreUnavailableError: when the server is unavailable, or refuses
    """
    check_grace_period(grace_period)
    sessions = Sessions(DatabaseAddress.of(records_url), DEADLINE)

    def change(session: Session) -> None:
        check_schema(session, sessions.address.name)
        session.execute(_SET, [grace_period])

    try:
        sessions.call(change)
    finally:
        sessions.close()
