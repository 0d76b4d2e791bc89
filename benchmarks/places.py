"""The stores of a cluster, with as many images as a scenario wants."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aimagestore._local.cluster import LocalCluster
from aimagestore.cluster import migrate

from .place import Place


@dataclass
class Places:
    """The stores of one run, made as they are asked for."""

    local: LocalCluster
    _stores: dict[int, Place] = field(default_factory=dict)

    def store(self, size: int) -> Place:
        """A store with so many images, and whatever else scenarios have put there."""
        if size not in self._stores:
            database = f"store{size}"
            self.local.postgres.create_database(database)
            url = self.local.postgres.url(database)
            migrate(url)
            _load(url, size)
            self._stores[size] = Place(url, self.local.blobs_url(database))
        return self._stores[size]


@contextmanager
def serving() -> Iterator[Places]:
    """Servers for the block, known to all processes that are started meanwhile."""
    with LocalCluster() as local:
        os.environ.update(local.environment)
        yield Places(local)


def _load(url: str, size: int) -> None:
    raise NotImplementedError
