"""The user whose storage podman would use, and that user's directories."""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass

_CAP_SYS_ADMIN = 21
_WHOLE_RANGE = 4294967295
"""The number of user IDs in a namespace that maps all of them."""

_RUNTIME_DIRECTORIES = "/run/user"

# The variables that ``podman unshare`` and ``buildah unshare`` set.
_USER = "_CONTAINERS_ROOTLESS_UID"
_IN_NAMESPACE = "_CONTAINERS_USERNS_CONFIGURED"

# $NAME, ${NAME}, and the special parameters of a shell, as Go expands them.
_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|\{|([*#$@!?0-9-])|(\w+))", re.ASCII)


@dataclass(frozen=True)
class Account:
    """A user and an environment.

    :ivar environ: the environment variables
    :ivar user: the user ID, as it is outside of a user namespace
    :ivar is_rootless: whether podman works without root's privileges
    """

    environ: Mapping[str, str]
    user: int
    is_rootless: bool

    @classmethod
    def of_process(cls, environ: Mapping[str, str]) -> Account:
        """Return the account of this process. Blocking."""
        user = os.getuid()
        if given := environ.get(_USER):
            user = int(given) if re.fullmatch(r"[0-9]+", given, re.ASCII) else 0
        is_rootless = user != 0 or bool(environ.get(_IN_NAMESPACE)) or not _has_all_privileges()
        return cls(environ, user, is_rootless)

    @property
    def has_own_storage(self) -> bool:
        """Whether the storage is the user's own, and not the system's.

        Root in a user namespace uses the system's storage: that of a container, for example.
        """
        return self.user != 0

    @property
    def home(self) -> str:
        """The home directory; empty when there is none."""
        if home := self.environ.get("HOME"):
            return home
        try:
            return pwd.getpwuid(self.user).pw_dir
        except KeyError:
            return ""

    @property
    def configuration_home(self) -> str:
        """The directory of the user's configuration files."""
        return self.environ.get("XDG_CONFIG_HOME") or os.path.join(self.home, ".config")

    @property
    def data_home(self) -> str:
        """The directory of the user's data."""
        return self.environ.get("XDG_DATA_HOME") or os.path.join(self.home, ".local/share")

    def runtime_directory(self, name: str) -> str:
        """Return the directory of the user's runtime files. Blocking.

        :param name: its name in the temporary directory, without the user's ID
        """
        if directory := self.environ.get("XDG_RUNTIME_DIR"):
            return os.path.realpath(directory)
        directory = os.path.join(_RUNTIME_DIRECTORIES, str(self.user))
        if _is_private(directory):
            return directory
        temporary = self.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - named, not used
        return os.path.join(temporary, f"{name}-{self.user}")

    def expand(self, path: str) -> str:
        """Return a path of the configuration with variables and links resolved. Blocking."""
        path = path.replace("$UID", str(self.user))
        path = _VARIABLE.sub(
            lambda found: self.environ.get(found[1] or found[2] or found[3] or "", ""), path
        )
        try:
            return os.path.realpath(path, strict=True)
        except OSError:
            absolute = os.path.abspath(path)
            # Python keeps two slashes at the beginning.
            return absolute[1:] if absolute.startswith("//") else absolute


def _is_private(directory: str) -> bool:
    try:
        status = os.lstat(directory)
    except OSError:
        return False
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return is_own and status.st_mode & 0o722 == 0o700


def _has_all_privileges() -> bool:
    """Return whether this process may mount, and sees all users; ``True`` if it is not known."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", file.read(), re.MULTILINE)
        with open("/proc/self/uid_map", encoding="utf-8") as file:
            sees_all = str(_WHOLE_RANGE) in file.read().split()
    except OSError:
        return True
    may_mount = capabilities is None or bool(int(capabilities[1], 16) >> _CAP_SYS_ADMIN & 1)
    return may_mount and sees_all
