"""Network namespaces, which stand for machines."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

# It is for testing networks, so that no real one is hidden.
_RANGE = "198.18"
ALL = f"{_RANGE}.0.0/16"


@dataclass(frozen=True)
class Network:
    """Several machines, and this machine's address for them.

    :ivar machines: for each, the arguments that run a command there, to be put before it
    :ivar host: this machine's address for them
    """

    machines: list[list[str]]
    host: str

    @contextmanager
    def unplugged(self, machine: int) -> Iterator[None]:
        """Lose all that a machine sends or is sent during the block, without an error."""
        *_, name = self.machines[machine]
        _ip("link", "set", name, "down")
        yield
        _ip("link", "set", name, "up")


def can_make_networks() -> bool:
    """Whether namespaces can be made here."""
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
    """Yield ``count`` machines on one bridge, or plain processes where namespaces can't be made."""
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
