"""The connections of this process to servers, and those of clients of the object store."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from pathlib import Path


def descriptors_by_name() -> Counter[str]:
    """Count the open files by path, and the sockets by the port that they are connected to.

    Pipes and the like, which event loops keep, are left out.
    """
    ports = _ports()
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # closed since, such as the descriptor of the listing itself
        # libffi opens its own file for ctypes, and keeps it.
        if not target.startswith(("anon_inode:", "pipe:")) and "/libffi.so" not in target:
            kind, _, inode = target.partition(":[")
            found[_socket_to(ports.get(inode[:-1])) if kind == "socket" else target] += 1
    return found


def connections_to(port: int | None) -> int:
    """Return the number of connections of this process to a port of this machine."""
    return descriptors_by_name()[_socket_to(port)]


def discard_clients() -> None:
    """Close the connections to the object store that no request, stream or upload uses.

    A client keeps idle connections for 90 seconds. Their number is not limited to that of the
    requests at once: a client begins a new connection for each request that finds none idle, and
    keeps it even if another one was free before. This discards the clients that no store uses, once
    no thread of a store is left. A request, stream or upload that was left behind keeps its client,
    with all its connections.
    """
    if "aimagestore.cluster" in sys.modules:
        from aimagestore.cluster._addresses import _client

        _client.cache_clear()
        gc.collect()


def _socket_to(port: int | None) -> str:
    return f"socket to port {port}"


def _ports() -> dict[str, int]:
    """Return the port that each TCP socket of this machine is connected to, by its inode."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    entries = [line.split() for line in lines]
    return {entry[9]: int(entry[2].partition(":")[2], 16) for entry in entries}
