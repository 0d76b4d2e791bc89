"""Where a cluster's store is."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from types import UnionType

from .._core.plain import PlainType
from .._engine.protocol import OtherStores
from ._addresses import BucketAddress, DatabaseAddress
from ._checker import ClusterChecker
from ._engine import ClusterEngine
from ._grace import check_grace_period
from ._repairer import ClusterRepairer
from ._sessions import DEADLINE

# Seconds: a day. Waits of the operating system and of PostgreSQL take no number of weeks.
_LONGEST_DEADLINE = 86_400


@dataclass(frozen=True, slots=True, repr=False)
class ClusterLocation(metaclass=PlainType):
    """Where a cluster's store is: an immutable description, usable any number of times.

    Any number of stores on any number of machines may be open at one location. Its tables are
    created by :func:`aimagestore.cluster.migrate`. Credentials come from where libpq and the S3
    client look for them: ``PGPASSWORD``, ``~/.pgpass`` or a service file, and
    ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``, ``AWS_REGION``. No
    message, log or ``repr`` shows them.

    While a server is unavailable, calls that can safely be repeated are retried until the
    deadline; then they raise :exc:`aimagestore.StoreUnavailableError`. A commit whose answer was
    lost is looked up in the same time. Its error says ``may_have_happened`` when that failed.

    :param records_url: a URL or connection string of PostgreSQL. A standby serves stores that are
        opened ``read_only``
    :param blobs_url: a bucket and the prefix of this store's objects, such as
        ``s3://bucket/prefix``. Plain http is used on this machine only, unless ``AWS_ALLOW_HTTP``
        is true
    :param cache_size: the bytes of records that are kept in memory, approximately
    :param grace_period: the grace period that a new store gets when it is first opened for writing.
        From then on it is in the database, where :func:`set_grace_period` changes it
    :param deadline: seconds within which a server must answer a request. A commit gets a second
        more for every thousand images that it changes. An upload must store a part of 8 MiB in this
        time: use more on slow links. All uploads of a process together have three parts in memory;
        the others are in temporary files without names, in the directory that ``TMPDIR`` names
    :raises TypeError: when a parameter has another type
    :raises ValueError: when an address is malformed, ``cache_size`` is negative, ``grace_period``
        is not positive or longer than a hundred years, or ``deadline`` is not positive or longer
        than a day
    """

    records_url: str
    blobs_url: str
    cache_size: int = field(default=64 * 1024 * 1024, kw_only=True)
    grace_period: timedelta = field(default=timedelta(days=1), kw_only=True)
    deadline: float = field(default=DEADLINE, kw_only=True)

    def __post_init__(self) -> None:
        for name, kind, wanted in _TYPES:
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"{name} must be {wanted}, not {type(value).__name__}")
        DatabaseAddress.of(self.records_url)
        BucketAddress.of(self.blobs_url)
        if self.cache_size < 0:
            raise ValueError(f"cache_size must not be negative: {self.cache_size}")
        check_grace_period(self.grace_period)
        if not 0 < self.deadline <= _LONGEST_DEADLINE:
            raise ValueError(
                f"deadline must be positive, and at most {_LONGEST_DEADLINE:,} seconds: "
                f"{self.deadline}"
            )

    def __repr__(self) -> str:
        database = DatabaseAddress.of(self.records_url).name
        bucket = BucketAddress.of(self.blobs_url).name
        return (
            f"ClusterLocation({database!r}, {bucket!r}, cache_size={self.cache_size}, "
            f"grace_period={self.grace_period!r}, deadline={self.deadline})"
        )

    @property
    def name(self) -> str:
        """The name of the store in messages; without secrets."""
        database = DatabaseAddress.of(self.records_url).name
        return f"{database} with {BucketAddress.of(self.blobs_url).name}"

    def open(self, *, read_only: bool) -> ClusterEngine:
        """Open the store; :class:`aimagestore.ImageStore` calls this.

        :raises ValueError: when a setting in the environment cannot be used
        :raises StoreIdentityError: when the database and the bucket do not belong together
        :raises StoreSchemaError: when the database has no tables, or those of another version
        :raises StoreReadOnlyError: when it is a standby, and ``read_only`` is false
        :raises StoreUnavailableError: when a server is unavailable, or refuses
        """
        return ClusterEngine(
            DatabaseAddress.of(self.records_url),
            BucketAddress.of(self.blobs_url),
            cache_size=self.cache_size,
            grace_period=self.grace_period,
            deadline=self.deadline,
            read_only=read_only,
        )

    def checker(self, *, verify: bool, others: OtherStores | None = None) -> ClusterChecker:
        """Prepare a check; :func:`aimagestore.check` calls this.

        A cluster's images need nothing of additional stores, so those are not looked at.
        """
        return ClusterChecker(
            DatabaseAddress.of(self.records_url),
            BucketAddress.of(self.blobs_url),
            deadline=self.deadline,
            verify=verify,
        )

    def repairer(self, others: OtherStores | None = None) -> ClusterRepairer:
        """Open the store for repair; :func:`aimagestore.repair` calls this.

        Additional stores are not looked at, as for a check.

        :raises ValueError: when a setting in the environment cannot be used
        :raises StoreIdentityError: when the database and the bucket do not belong together
        :raises StoreSchemaError: when the database has no tables, or those of another version
        :raises StoreReadOnlyError: when it is a standby
        :raises StoreUnavailableError: when a server is unavailable, or refuses
        """
        return ClusterRepairer(
            DatabaseAddress.of(self.records_url),
            BucketAddress.of(self.blobs_url),
            deadline=self.deadline,
        )


_TYPES: tuple[tuple[str, type | UnionType, str], ...] = (
    ("records_url", str, "of type str"),
    ("blobs_url", str, "of type str"),
    ("cache_size", int, "of type int"),
    ("deadline", int | float, "a number"),
)
