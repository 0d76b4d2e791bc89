"""Finds podman's storage in its configuration and its database."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from ..errors import StoreConfigurationError
from ._account import Account
from ._database import read_database
from ._driver import additional_roots, choose_driver
from ._options import Configuration
from ._rules import RULES, SYSTEM_DIRECTORIES, Rules
from ._storage import PodmanStorage


def find_storage(
    account: Account,
    rules: Rules | None,
    system_directories: Sequence[str] = SYSTEM_DIRECTORIES,
) -> PodmanStorage:
    """Find an account's storage. Blocking.

    :param rules: the rules to follow; ``None`` when they are not known
    :raises StoreConfigurationError: as :func:`locate` does
    """
    if rules is not None:
        return _find(account, rules, system_directories)
    newest, *older = RULES
    found = _find(account, newest, system_directories)
    stores = {found.image_store: newest.versions}
    for other_rules in older:
        try:
            other = _find(account, other_rules, system_directories)
        except StoreConfigurationError:
            continue  # a podman that refuses the configuration has no images
        stores.setdefault(other.image_store, other_rules.versions)
    existing = [store for store in stores if os.path.isdir(store)]
    if found.image_store in existing and len(existing) > 1:
        each = "; ".join(f"containers/storage {stores[store]}: {store}" for store in existing)
        raise StoreConfigurationError(
            "versions of podman keep images in different stores here, and no podman in PATH tells "
            f"which version is meant: {each}. Open one of them by its path",
            stores=tuple(existing),
        )
    return found


def _find(account: Account, rules: Rules, system_directories: Sequence[str]) -> PodmanStorage:
    configuration = Configuration(account, rules, system_directories)
    options = configuration.options()
    sources = configuration.sources
    recorded = read_database(options.graph_root)
    if recorded is not None:
        if not _is_same(recorded.graph_root, options.graph_root):
            raise StoreConfigurationError(
                f"podman refuses the graph root {options.graph_root}: its database {recorded.path} "
                f"belongs to another graph root, {recorded.graph_root}; set graphroot to that one",
                path=recorded.path,
            )
        options = replace(options, graph_root=recorded.graph_root)
        if recorded.driver and recorded.driver != options.driver:
            options = replace(options, driver=recorded.driver)
            sources.append(recorded.path)
    driver = choose_driver(options, rules)
    image_root = options.image_root or options.graph_root
    additional = additional_roots(options, driver)
    if options.image_root:
        additional.insert(0, options.graph_root)
    return PodmanStorage(
        graph_root=options.graph_root,
        run_root=options.run_root,
        driver=driver,
        image_store=os.path.join(image_root, f"{driver}-images"),
        additional_image_stores=tuple(
            os.path.join(root, f"{driver}-images") for root in additional
        ),
        layer_store=os.path.join(image_root, f"{driver}-layers"),
        container_store=os.path.join(options.graph_root, f"{driver}-containers"),
        is_rootless=account.is_rootless,
        sources=tuple(sources),
    )


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one == other
