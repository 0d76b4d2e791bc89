"""Platforms of images, matched as containers/image matches them (``platform_matcher.go``)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

_OTHER_ARCHITECTURES = {
    "aarch64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "loongarch64": "loong64",
    "x86-64": "amd64",
    "x86_64": "amd64",
}
_OTHER_SYSTEMS = {"macos": "darwin"}

# Variants from the most to the least demanding; a machine for one runs those after it.
_VARIANTS = {"arm": ("v8", "v7", "v6", "v5"), "arm64": ("v8",)}

_LOCAL = "local"
_SPELLING = f"os/architecture[/variant], or {_LOCAL!r} for this machine's own"


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an image runs on."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse a platform as podman's ``--platform`` does: ``x86_64`` is ``amd64``, for instance.

        :raises ValueError: when it is not spelled like one
        """
        if text == _LOCAL:
            return cls.local()
        parts = text.lower().split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise ValueError(f"a platform is {_SPELLING}, not {text!r}")
        system, architecture = parts[:2]
        variant = parts[2] if len(parts) == 3 else ""
        system = _OTHER_SYSTEMS.get(system, system)
        if architecture in {"armhf", "armel"}:
            architecture, variant = "arm", "v7" if architecture == "armhf" else "v6"
        architecture = _OTHER_ARCHITECTURES.get(architecture, architecture)
        if architecture in _VARIANTS and variant.isdigit():
            variant = f"v{variant}"
        return cls(architecture, system, variant)

    @classmethod
    def local(cls) -> Platform:
        """Return the platform of this machine."""
        system = os.uname()
        machine = system.machine.lower()
        if machine.startswith("armv"):
            variant = f"v{machine[4]}"
            return cls("arm", system.sysname.lower(), variant)
        architecture = _OTHER_ARCHITECTURES.get(machine, machine)
        variant = "v8" if architecture == "arm64" else ""
        return cls(architecture, system.sysname.lower(), variant)

    @classmethod
    def of(cls, value: Any) -> Platform | None:
        """Read a platform from decoded JSON, without fields of other types; ``None`` for none."""
        if not isinstance(value, dict):
            return None
        value = {name.lower(): each for name, each in value.items()}
        fields = (value.get(name) for name in ("architecture", "os", "variant"))
        found = cls(*(field if isinstance(field, str) else "" for field in fields))
        return found if found != cls() else None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def wanted(self) -> Sequence[Platform]:
        """Return the platforms whose images run here, the best first."""
        known = _VARIANTS.get(self.architecture, ())
        if not self.variant:
            variants = ("", *known)
        elif self.variant in known:
            variants = (*known[known.index(self.variant) :], "")
        else:
            variants = (self.variant, "")
        return [Platform(self.architecture, self.os, variant) for variant in variants]


def best_of(offered: Iterable[Platform | None], wanted: Platform) -> int | None:
    """Return the position of the platform that suits best, the first of equals; ``None`` for none.

    As in containers/image, an image without a platform is chosen if no other one suits.
    """
    ranks = {platform: rank for rank, platform in enumerate(wanted.wanted())}
    candidates = [
        (len(ranks) if platform is None else ranks[platform], position)
        for position, platform in enumerate(offered)
        if platform is None or platform in ranks
    ]
    return min(candidates)[1] if candidates else None
