"""Chooses the storage driver, and reads its options for additional stores."""

from __future__ import annotations

import os

from ..errors import StoreConfigurationError
from ._options import Options
from ._rules import Rules


def choose_driver(options: Options, rules: Rules) -> str:
    """Return the configured driver, else the graph root's, else the first of all. Blocking.

    Whether the driver works here is not tried.

    :raises StoreConfigurationError: when the graph root has several, so that podman refuses it
    """
    if options.driver:
        return options.driver
    known = {*rules.drivers, "vfs"} if rules.counts_vfs else {*rules.drivers}
    graph_root = options.graph_root
    prior = sorted(name for name in known if os.path.exists(os.path.join(graph_root, name)))
    candidates = options.driver_priority or rules.drivers
    for driver in candidates:
        if driver in prior:
            if len(prior) > 1:
                raise StoreConfigurationError(
                    f"podman refuses {graph_root}, which has the files of several storage drivers: "
                    f"{', '.join(prior)}; set STORAGE_DRIVER, or driver in storage.conf",
                    path=graph_root,
                )
            return driver
    return candidates[0]


def additional_roots(options: Options, driver: str) -> list[str]:
    """Return the graph roots of additional stores that a driver's options name."""
    names = {"overlay": ("overlay", "overlay2", ""), "vfs": ("vfs", "")}.get(driver, ())
    keys = {f"{name}.imagestore".lstrip(".") for name in names} | {".imagestore"}
    if driver == "overlay":
        keys |= {"additionalimagestore", *(f"{name}.additionalimagestore" for name in names)}
    found: list[str] = []
    for option in options.driver_options:
        key, _, value = option.partition("=")
        if key.strip().lower() in keys:
            found += (os.path.normpath(path) for path in value.strip().split(",") if path)
    return found
