"""Where podman keeps its images: storage.conf, as containers/storage 1.43 reads it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .exits import CommandError

SYSTEM_FILES: tuple[str, ...] = (
    "/etc/containers/storage.conf",
    "/usr/share/containers/storage.conf",
)
SYSTEM_GRAPH_ROOT = "/var/lib/containers/storage"

_ROOTLESS_DRIVERS = frozenset({"btrfs", "overlay", "overlay2", "vfs"})
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What storage.conf says.

    :ivar driver: the storage driver, or ``""``
    :ivar graph_root: where everything is kept
    :ivar rootless_path: where users other than root keep everything, or ``""``
    """

    driver: str = ""
    graph_root: str = ""
    rootless_path: str = ""


def podman_configuration(environment: Mapping[str, str], user: int) -> Configuration:
    """The driver and the graph root of this user's podman.

    :raises CommandError: when storage.conf cannot be read
    """
    found = _system(environment)
    if user != 0:
        found = _rootless(environment, found)
    driver = environment.get("STORAGE_DRIVER") or found.driver
    graph_root = _expand(found.graph_root or SYSTEM_GRAPH_ROOT, environment, user)
    return Configuration("overlay" if driver == "overlay2" else driver, graph_root)


def _system(environment: Mapping[str, str]) -> Configuration:
    """What counts for root, and for others where they have no file of their own."""
    if "CONTAINERS_STORAGE_CONF" in environment:
        return _read(environment["CONTAINERS_STORAGE_CONF"])
    files = list(SYSTEM_FILES)
    if "XDG_CONFIG_HOME" in environment:
        files.insert(0, _configuration_file(environment["XDG_CONFIG_HOME"]))
    for file in files:
        if os.path.exists(file):
            return _read(file)
    return Configuration()


def _rootless(environment: Mapping[str, str], system: Configuration) -> Configuration:
    home = environment.get("HOME") or os.path.expanduser("~")
    data = environment.get("XDG_DATA_HOME") or os.path.join(home, ".local/share")
    graph_root = system.rootless_path or os.path.join(data, "containers/storage")
    configuration_home = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    file = environment.get("CONTAINERS_STORAGE_CONF") or _configuration_file(configuration_home)
    if not os.path.exists(file):
        # The drivers of the system that only root can use are passed over.
        driver = system.driver if system.driver in _ROOTLESS_DRIVERS else "vfs"
        return Configuration(driver, graph_root)
    own = _read(file)
    return Configuration(own.driver, own.graph_root or own.rootless_path or graph_root)


def _configuration_file(home: str) -> str:
    return os.path.join(home, "containers/storage.conf")


def _read(file: str) -> Configuration:
    try:
        with open(file, "rb") as stream:
            storage = tomllib.load(stream).get("storage", {})
        return Configuration(
            _text(storage, "driver"),
            _text(storage, "graphroot"),
            _text(storage, "rootless_storage_path"),
        )
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise CommandError(f"cannot read {file}: {error}") from error


def _text(storage: Mapping[str, Any], key: str) -> str:
    value = storage.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a string")
    return value


def _expand(path: str, environment: Mapping[str, str], user: int) -> str:
    """A path with its variables replaced, as Go does it: those that are not set by nothing."""
    path = path.replace("$UID", str(user))
    path = _VARIABLE.sub(lambda found: environment.get(found[1] or found[2], ""), path)
    return os.path.realpath(path)
