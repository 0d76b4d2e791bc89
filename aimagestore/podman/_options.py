"""Reads the configuration: which files count, and which setting has precedence."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import StoreConfigurationError
from ._account import Account
from ._rules import SYSTEM_DIRECTORIES, SYSTEM_GRAPH_ROOT, SYSTEM_RUN_ROOT, Rules
from ._settings import Settings

_FILE = "storage.conf"
_NAMED_FILE = "CONTAINERS_STORAGE_CONF"

_ROOTLESS_DRIVERS = frozenset({"btrfs", "overlay", "overlay2", "vfs"})
_OVERLAY_FOR_USERS = (5, 13)
"""The first version of Linux in which users other than root can mount overlay."""


@dataclass(frozen=True)
class Options:
    """What the configuration says about a store.

    :ivar graph_root: the directory of everything that is kept
    :ivar run_root: the directory of everything that is lost when the machine stops
    :ivar driver: the storage driver; empty if it is not configured
    :ivar driver_priority: the drivers to choose from; empty for all
    :ivar image_root: the directory of images and their layers; empty for the graph root
    :ivar driver_options: options such as ``overlay.imagestore=/srv/images``
    """

    graph_root: str = ""
    run_root: str = ""
    driver: str = ""
    driver_priority: tuple[str, ...] = ()
    image_root: str = ""
    driver_options: tuple[str, ...] = ()


@dataclass
class Configuration:
    """Reads the configuration of an account. Its methods are blocking.

    :ivar account: the account
    :ivar rules: the rules by which the files are read
    :ivar system_directories: the directories of the system's files
    :ivar sources: the files that were read, in this order
    """

    account: Account
    rules: Rules
    system_directories: Sequence[str] = SYSTEM_DIRECTORIES
    sources: list[str] = field(default_factory=list)
    _texts: dict[str, bytes] = field(default_factory=dict, init=False)
    _rootless_path: str = field(default="", init=False)

    def options(self) -> Options:
        """Read the configuration.

        :raises StoreConfigurationError: when a file cannot be read, or podman refuses what it says
        """
        if self.account.is_rootless:
            self.account = _with_podmans_variables(self.account)
        options = self._merged() if self.rules.merges_files else self._single()
        if not self.rules.has_image_store:
            options = replace(options, image_root="", driver_priority=())
        if options.image_root and options.image_root == options.graph_root:
            raise self._refused(f"imagestore is the graph root itself, {options.graph_root}")
        absolute = {
            name: os.path.abspath(value)
            for name in ("graph_root", "run_root", "image_root")
            if (value := getattr(options, name))
        }
        return replace(options, **absolute)

    def _refused(self, reason: str) -> StoreConfigurationError:
        path = self.sources[-1] if self.sources else None
        where = path or "the environment"
        return StoreConfigurationError(f"podman refuses {where}: {reason}", path=path)

    def _read(self, path: str, settings: Settings) -> Settings:
        """Return the settings, updated by one more file; each file is read once."""
        text = self._texts.get(path)
        if text is None:
            self.sources.append(path)
            try:
                with open(path, "rb") as file:
                    text = self._texts[path] = file.read()
            except OSError as error:
                message = f"cannot read {path}: {error.strerror}"
                raise StoreConfigurationError(message, path=path) from error
        return settings.updated(text, path)

    # Since 1.63: several files are merged.

    def _merged(self) -> Options:
        account = self.account
        settings = Settings()
        for path in self._files():
            settings = self._read(path, settings)
        if account.has_own_storage:
            graph_root = os.path.join(account.data_home, "containers/storage")
            run_root = self._own_run_root()
            if settings.rootless_path:
                graph_root = account.expand(settings.rootless_path)
        else:
            graph_root, run_root = SYSTEM_GRAPH_ROOT, SYSTEM_RUN_ROOT
        given = account.environ.get("STORAGE_OPTS")
        options = [f"imagestore={store}" for store in settings.image_stores.values]
        return Options(
            graph_root=account.expand(settings.graph_root) if settings.graph_root else graph_root,
            run_root=account.expand(settings.run_root) if settings.run_root else run_root,
            driver=_driver(account.environ.get("STORAGE_DRIVER") or settings.driver),
            driver_priority=settings.driver_priority.values,
            image_root=settings.image_root,
            driver_options=tuple(options if given is None else given.split(",")),
        )

    def _files(self) -> Iterator[str]:
        environ = self.account.environ
        named = environ.get(_NAMED_FILE)
        if named:
            yield named
        else:
            directories = [*self.system_directories, self._own_directory()]
            files = [os.path.join(directory, _FILE) for directory in directories]
            yield from [path for path in reversed(files) if _exists(path)][:1]
            yield from self._drop_ins(files)
        if override := environ.get(f"{_NAMED_FILE}_OVERRIDE"):
            yield override

    def _own_directory(self) -> str:
        # An empty variable stands for the working directory.
        home = self.account.environ.get("XDG_CONFIG_HOME", self.account.configuration_home)
        return os.path.join(home, "containers")

    def _drop_ins(self, files: Sequence[str]) -> list[str]:
        """Return the drop-in files in the order of their names; of two, the last directory's."""
        *system, own = files
        user = self.account.user
        directories: list[str] = []
        for file in system:
            special = file.removesuffix(".conf") + (".rootless" if user else ".rootful") + ".conf.d"
            directories += [f"{file}.d", special, *([f"{special}/{user}"] if user else [])]
        found: dict[str, str] = {}
        for directory in [*directories, f"{own}.d"]:
            try:
                with os.scandir(directory) as entries:
                    names = [
                        entry.name
                        for entry in entries
                        if entry.name.endswith(".conf")
                        and not entry.is_dir(follow_symlinks=False)
                        and _exists(entry.path)
                    ]
            except FileNotFoundError:
                continue
            except OSError as error:
                message = f"cannot read {directory}: {error.strerror}"
                raise StoreConfigurationError(message, path=directory) from error
            found |= {name: os.path.join(directory, name) for name in names}
        return [found[name] for name in sorted(found, key=os.fsencode)]

    # Before 1.63: one file counts, and a user's settings replace the system's.

    def _single(self) -> Options:
        account = self.account
        path = self._system_file()
        system = self._from_file(path) if path is not None else Options()
        options = replace(
            system,
            graph_root=system.graph_root or SYSTEM_GRAPH_ROOT,
            run_root=system.run_root or SYSTEM_RUN_ROOT,
        )
        is_named = _NAMED_FILE in account.environ
        if account.has_own_storage:
            options = self._for_user(system, is_named=is_named)
            path = os.path.join(account.configuration_home, "containers", _FILE)
        elif self.rules.reads_once:
            files = [os.path.join(d, _FILE) for d in reversed(self.system_directories)]
            path = next((file for file in files if _exists(file)), None)
        if is_named and (account.has_own_storage or self.rules.reads_once):
            # The named file was read as the system's, which has no effect on a user's graph root.
            path = None
        if path is not None and _exists(path):
            defaults, options = options, self._from_file(path)
            if account.has_own_storage:
                graph_root = options.graph_root or self._rootless_path or defaults.graph_root
                run_root = options.run_root or defaults.run_root
                options = replace(options, graph_root=graph_root, run_root=run_root)
        for name, value in (("runroot", options.run_root), ("graphroot", options.graph_root)):
            if not value:
                raise self._refused(f"{name} must be set")
        return replace(
            options,
            graph_root=account.expand(options.graph_root),
            run_root=account.expand(options.run_root),
        )

    def _system_file(self) -> str | None:
        """Return the file that counts for root, and for users without a file of their own."""
        environ = self.account.environ
        named = environ.get(_NAMED_FILE)
        if named is not None:
            return named
        directories = [*self.system_directories]
        if "XDG_CONFIG_HOME" in environ:
            directories.append(self._own_directory())
        files = [os.path.join(directory, _FILE) for directory in reversed(directories)]
        return next((path for path in files if _exists(path)), None)

    def _from_file(self, path: str) -> Options:
        settings = self._read(path, Settings())
        self._rootless_path = settings.rootless_path
        environ = self.account.environ
        driver = environ.get("STORAGE_DRIVER") or settings.driver
        given = environ.get("STORAGE_OPTS")
        options = [f"{driver}.imagestore={store}" for store in settings.image_stores.values]
        return Options(
            graph_root=settings.graph_root,
            run_root=settings.run_root,
            driver=_driver(driver),
            driver_priority=settings.driver_priority.values,
            image_root=settings.image_root,
            driver_options=tuple(options if given is None else given.split(",")),
        )

    def _for_user(self, system: Options, *, is_named: bool) -> Options:
        """Return the options of a user without a file of their own.

        :param is_named: whether ``CONTAINERS_STORAGE_CONF`` names the system's file
        """
        account = self.account
        graph_root = os.path.join(account.data_home, "containers/storage")
        if self._rootless_path:
            graph_root = account.expand(self._rootless_path)
        # A driver of the system that only root can use does not count.
        driver = system.driver if system.driver in _ROOTLESS_DRIVERS else ""
        driver = _driver(account.environ.get("STORAGE_DRIVER") or driver)
        priority: tuple[str, ...] = ()
        if not driver and not self.rules.tries_overlay:
            driver = "vfs"
        elif not driver and system.driver_priority:
            priority = system.driver_priority
        elif not driver:
            driver = _driver_of_images(graph_root) or _rootless_driver(account.environ)
        given = filter(None, account.environ.get("STORAGE_OPTS", "").split(","))
        return Options(
            graph_root=graph_root,
            run_root=self._own_run_root(),
            driver=driver,
            driver_priority=priority,
            image_root=system.image_root if is_named else "",
            driver_options=(*(system.driver_options if is_named else ()), *given),
        )

    def _own_run_root(self) -> str:
        directory = self.account.runtime_directory(self.rules.run_directory)
        return os.path.join(directory, "containers")


def _with_podmans_variables(account: Account) -> Account:
    """Return the account with the variables that podman sets if they are missing."""
    home = os.path.join(os.path.realpath(account.home), ".config")
    return replace(account, environ={"XDG_CONFIG_HOME": home, **account.environ})


def _driver(name: str) -> str:
    return "overlay" if name == "overlay2" else name


def _driver_of_images(graph_root: str) -> str:
    try:
        names = sorted(os.listdir(graph_root))
    except OSError:
        return ""
    return next((n.removesuffix("-images") for n in names if n.endswith("-images")), "")


def _rootless_driver(environ: Mapping[str, str]) -> str:
    if shutil.which("fuse-overlayfs", path=environ.get("PATH")):
        return "overlay"
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    is_new = release is not None and (int(release[1]), int(release[2])) >= _OVERLAY_FOR_USERS
    return "overlay" if is_new else "vfs"


def _exists(path: str) -> bool:
    """Return whether a file exists; ``True`` also if that is not known: reading it says why."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True
