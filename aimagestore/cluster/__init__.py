"""A store beyond one machine: records in PostgreSQL, big data in an S3-compatible object store.

The same :class:`aimagestore.ImageStore` with the same methods, at another location::

    from aimagestore import ImageStore
    from aimagestore.cluster import ClusterLocation

    location = ClusterLocation("postgresql://db.example/images", "s3://bucket/prefix")
    async with ImageStore(location) as store:
        await store.create(names=["first"], big_data={"manifest": b"{}"})

``python -m aimagestore.cluster`` runs a demo on servers of its own.
"""

try:
    import obstore as _obstore
    import psycopg as _psycopg
except ImportError as error:
    raise ImportError(
        f"aimagestore.cluster needs {error.name or 'libpq'}: install the extra: "
        "aimagestore[cluster]",
        name=error.name,
    ) from error

from ._location import ClusterLocation
from ._schema import SCHEMA_VERSION, migrate

del _obstore, _psycopg

__all__ = ["SCHEMA_VERSION", "ClusterLocation", "migrate"]
