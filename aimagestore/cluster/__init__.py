"""A store beyond one machine: records in PostgreSQL, big data in an S3-compatible object store.

The same :class:`aimagestore.ImageStore` with the same methods, at another location::

    from aimagestore import ImageStore
    from aimagestore.cluster import ClusterLocation

    location = ClusterLocation("postgresql://db.example/images", "s3://bucket/prefix")
    async with ImageStore(location) as store:
        await store.create(names=["first"], big_data={"manifest": b"{}"})

``python -m aimagestore.cluster`` runs a demo on servers of its own.
"""

from importlib import import_module as _import_module


def _require_clients() -> None:
    for client in ("obstore", "psycopg"):
        try:
            _import_module(client)
        except ImportError as error:
            raise ImportError(
                f"aimagestore.cluster needs {error.name or 'libpq'}: install the extra: "
                "aimagestore[cluster]",
                name=error.name,
            ) from error


_require_clients()

from ._diagnosis import Diagnosis, Severity  # noqa: E402 (a clear error comes first)
from ._doctor import doctor  # noqa: E402
from ._grace import set_grace_period  # noqa: E402
from ._identity import adopt  # noqa: E402
from ._location import ClusterLocation  # noqa: E402
from ._schema import SCHEMA_VERSION, migrate  # noqa: E402

__all__ = [
    "SCHEMA_VERSION",
    "ClusterLocation",
    "Diagnosis",
    "Severity",
    "adopt",
    "doctor",
    "migrate",
    "set_grace_period",
]
