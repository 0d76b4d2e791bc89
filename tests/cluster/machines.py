"""Network namespaces, which stand for machines."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

# The range that is reserved for tests of networks, so that no real network is hidden.
_RANGE = "198.18"
ALL = f"{_RANGE}.0.0/16"
"""The addresses of all machines."""


@dataclass(frozen=True)
class Network:
    """Several machines, and their way to this one.

    :ivar machines: for each machine, the arguments that run a command there when put before it
    :ivar host: the address of this machine on their network
    """

    machines: list[list[str]]
    host: str

    @contextmanager
    def unplugged(self, machine: int) -> Iterator[None]:
        """Silently lose all packets to and from a machine during the block."""
        *_, name = self.machines[machine]
        _ip("link", "set", name, "down")
        try:
            yield
        finally:
            _ip("link", "set", name, "up")


def can_make_networks() -> bool:
    """Return whether this process can make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"aimg{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode != 0:
        return False
    _ip("netns", "del", name)
    return True


@contextmanager
def network(count: int) -> Iterator[Network]:
    """Make machines on one bridge for a block; without namespaces they are plain processes."""
    if not can_make_networks():
        yield Network([[]] * count, "127.0.0.1")
        return
    subnet = f"{_RANGE}.{os.getpid() % 256}"
    bridge = f"aimg{os.getpid()}"
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        names = [f"{bridge}-{number}" for number in range(count)]
        for number, name in enumerate(names, start=2):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _connect(name, bridge, f"{subnet}.{number}/24")
        machines = [["ip", "netns", "exec", name] for name in names]
        yield Network(machines, f"{subnet}.1")


def _connect(name: str, bridge: str, address: str) -> None:
    _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", name, "master", bridge, "up")
    _ip("-n", name, "addr", "add", address, "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True)
