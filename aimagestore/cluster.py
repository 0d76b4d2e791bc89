"""A store beyond one machine: records in PostgreSQL, big data in an S3-compatible object store.

The same :class:`aimagestore.ImageStore`, with the same calls; needs ``aimagestore[cluster]``::

    from aimagestore import ImageStore
    from aimagestore.cluster import ClusterEngine

    engine = ClusterEngine("postgresql://db.example/images", "s3://bucket/prefix")
    async with ImageStore(engine) as store:
        await store.create(names=["first"], big_data={"manifest": b"{}"})
"""

from ._cluster.engine import ClusterEngine
from ._cluster.schema import SCHEMA_VERSION, migrate

__all__ = ["SCHEMA_VERSION", "ClusterEngine", "migrate"]

if __name__ == "__main__":
    from ._local.tour import main

    main()
