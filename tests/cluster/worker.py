"""A process that changes a cluster's store for a while, then reports what it should hold."""

from __future__ import annotations

import sys

import anyio

from aimagestore import ImageStore
from aimagestore.cluster import ClusterLocation

from ..peers.worker import work


async def _work(records_url: str, blobs_url: str, name: str, seconds: float) -> None:
    await work(ImageStore(ClusterLocation(records_url, blobs_url)), name, seconds, "churn")


if __name__ == "__main__":
    _, backend, records_url, blobs_url, name, seconds = sys.argv
    anyio.run(_work, records_url, blobs_url, name, float(seconds), backend=backend)
