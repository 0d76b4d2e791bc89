"""Finds podman's storage."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .._async.loop import EventLoop
from .._async.threads import Threads
from ._storage import PodmanStorage


async def locate(*, environ: Mapping[str, str] | None = None) -> PodmanStorage:
    """Find the storage that ``podman info`` shows, without running podman.

    Reads ``storage.conf`` by the rules of the podman in ``PATH``, or by the newest rules if there
    is none. A driver in podman's database has precedence over the configured one. Changes nothing.
    If it is cancelled, it returns at once.

    :param environ: the environment variables, those of this process by default. ``podman unshare``
        and ``buildah unshare`` set some that tell whose storage is meant.
    :raises StoreConfigurationError: when a configuration file cannot be read, when podman refuses
        what it says, or when no podman is installed and versions of it keep images in different
        stores here
    """
    variables = dict(os.environ if environ is None else environ)
    threads = Threads(EventLoop())
    try:
        return await threads.run_abandonable(_locate, variables)
    finally:
        threads.when_idle(threads.shutdown)


def _locate(environ: Mapping[str, str]) -> PodmanStorage:
    # Imported here, because a program with a store of its own needs none of it.
    from ._account import Account  # noqa: PLC0415
    from ._finding import find_storage  # noqa: PLC0415
    from ._installed import installed_rules  # noqa: PLC0415

    return find_storage(Account.of_process(environ), installed_rules(environ))
