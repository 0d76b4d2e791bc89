"""Parses the addresses that ``copy`` takes: stores, and images as skopeo addresses them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from .exits import CommandError, ExitCode

if TYPE_CHECKING:
    from ..oci import Transport

STORAGE = "containers-storage"
DIR = "dir"

_LAYOUTS = frozenset({"oci", "oci-archive", "docker-archive", DIR})
_OTHERS = frozenset({"docker", "docker-daemon", "ostree", "sif", "tarball"})
_TRANSPORTS = {STORAGE} | _LAYOUTS | _OTHERS
# [driver@graph root+run root:options]name@ID; the run root and the options are not needed here.
_STORAGE_PLACE = re.compile(r"(?:\[(?:(?P<driver>\w+)@)?(?P<root>[^]+]*)[^]]*\])?(?P<ref>(?!\[).*)")
_ID = re.compile(r"(?:.*@)?(?P<id>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """A store, or one image in it.

    :ivar root: the store, as ``--root`` takes it; ``None`` for the store of ``--root`` itself, or
        podman's own
    :ivar ref: the image; ``None`` where the address names none
    """

    root: str | None
    ref: str | None = None


@dataclass(frozen=True, slots=True)
class LayoutAddress:
    """A layout, or one image in it.

    :ivar transport: the kind of layout
    :ivar name: the image's name in the layout; ``None`` where the address names none
    """

    transport: Transport
    path: str
    name: str | None


def is_address(text: str) -> bool:
    """Return whether a text begins with a transport, in any spelling."""
    transport, colon, _ = text.partition(":")
    return bool(colon) and transport.lower() in _TRANSPORTS


def parse_address(text: str) -> StoreAddress | LayoutAddress:
    """Parse an address. A text without a known transport is a store.

    :raises CommandError: when it is incomplete, or has a transport that only skopeo knows
    """
    transport, _, rest = text.partition(":")
    if transport == STORAGE:
        return _storage_address(text, rest)
    if transport in _LAYOUTS:
        path, _, name = (rest, "", "") if transport == DIR else rest.partition(":")
        if not path:
            raise CommandError(f"{text} has no path", ExitCode.USAGE)
        return LayoutAddress(cast("Transport", transport), path, name or None)
    if transport in _OTHERS and rest:
        raise CommandError(
            f"use skopeo for {transport}: copy knows stores, {STORAGE}:, "
            f"{', '.join(f'{known}:' for known in sorted(_LAYOUTS))}",
            ExitCode.USAGE,
        )
    if is_address(text) and transport not in _TRANSPORTS:
        raise CommandError(
            f"{text} is no address: write {transport.lower()}:, or put ./ before a path",
            ExitCode.USAGE,
        )
    return StoreAddress(text)


def _storage_address(text: str, rest: str) -> StoreAddress:
    found = _STORAGE_PLACE.fullmatch(rest)
    if found is None or found["root"] == "":
        raise CommandError(f"{text} is not {STORAGE}:[DRIVER@DIR]NAME", ExitCode.USAGE)
    root, ref = found["root"], found["ref"]
    if root is not None and found["driver"]:
        root = f"{root}/{found['driver']}-images"
    by_id = _ID.fullmatch(ref)
    return StoreAddress(root, (by_id["id"] if by_id else ref) or None)
