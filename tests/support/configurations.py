"""Configurations of podman's storage, and the storage that each generation of podman then uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USER = 1000

REFUSED = "refused"


@dataclass(frozen=True)
class Configuration:
    """Files and variables, and the storage that podman uses with them.

    ``{base}`` stands for the directory of the test, in which ``etc`` and ``usr`` are the system's
    configuration directories, and ``home`` is the user's home.

    :ivar name: what it is about
    :ivar expected: the storage for every generation, or for the oldest, the middle and the newest:
        the driver and the graph root, then ``images=`` with a separate directory for images, then
        ``also=`` with the additional stores; or ``REFUSED``
    :ivar files: the text of each file
    :ivar environ: environment variables
    :ivar user: the ID of the user who runs podman
    :ivar inside: the program in whose ``unshare`` podman runs
    :ivar directories: directories that exist before
    :ivar links: symbolic links, and their targets
    """

    name: str
    expected: str | tuple[str, str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    user: int = 0
    inside: str = ""
    directories: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    def expected_of(self, generation: int) -> str:
        """Return the expected storage for a generation, with the placeholder ``{base}``.

        :param generation: 0 for the oldest versions, 2 for the newest
        """
        return self.expected if isinstance(self.expected, str) else self.expected[generation]

    def variables(self, base: Path) -> dict[str, str]:
        """Return the whole environment: the configuration's variables, a home and directories."""
        always = {
            "HOME": f"{base}/home",
            "TMPDIR": f"{base}/tmp",
            "XDG_RUNTIME_DIR": f"{base}/run",
        }
        return always | {name: _at(value, base) for name, value in self.environ.items()}

    def make(self, base: Path) -> None:
        """Make the files. All but those of the system belong to the user."""
        for directory in ("etc", "usr", "var", "home", "run", "tmp", "srv"):
            (base / directory).mkdir()
        for name, text in self.files.items():
            file = base / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_at(text, base))
        for directory in self.directories:
            (base / directory).mkdir(parents=True, exist_ok=True)
        for name, target in self.links.items():
            (base / name).symlink_to(_at(target, base))
        (base / "run").chmod(0o700)
        if self.user and os.geteuid() == 0:
            for directory in ("home", "run", "tmp", "srv"):
                for parent, _, names in os.walk(base / directory):
                    for path in (parent, *(os.path.join(parent, name) for name in names)):
                        os.chown(path, self.user, self.user, follow_symlinks=False)


def shown(found: Mapping[str, Any]) -> str:
    """Return a storage that was found, in the notation of :attr:`Configuration.expected`."""
    if "refused" in found:
        return REFUSED
    driver, graph_root = found["driver"], found["graph_root"]
    text = f"{driver} {graph_root}"
    image_root = os.path.dirname(found["image_store"])
    also = [os.path.dirname(store) for store in found["additional_image_stores"]]
    if image_root != graph_root:
        text += f" images={image_root}"
        assert also.pop(0) == graph_root
    return text + (f" also={','.join(also)}" if also else "")


def _at(text: str, base: Path) -> str:
    return text.replace("{base}", str(base))


def storage(*, options: str = "", **settings: str) -> str:
    """Return the text of a storage.conf, with a run root."""
    settings = {"runroot": "{base}/run/root", **settings}
    lines = "".join(f'{key} = "{value}"\n' for key, value in settings.items() if value)
    return f"[storage]\n{lines}[storage.options]\n{options}\n"


# Expected storage.
SYSTEM = "overlay /var/lib/containers/storage"
OWN = "{base}/home/.local/share/containers/storage"
USERS = f"vfs {OWN}"
A, B, C = ("vfs {base}/srv/a", "vfs {base}/srv/b", "vfs {base}/srv/c")

# Texts and names of files. VFS leads to A. As drop-ins over it, OTHER leads to B and THIRD to C.
VFS = storage(driver="vfs", graphroot="{base}/srv/a")
OTHER = '[storage]\ngraphroot = "{base}/srv/b"\n'
THIRD = '[storage]\ngraphroot = "{base}/srv/c"\n'
ALSO = 'additionalimagestores = ["{base}/srv/x"]'
HOME_FILE = "home/.config/containers/storage.conf"

VFS_DRIVER = {"STORAGE_DRIVER": "vfs"}

CONFIGURATIONS = [
    # Root.
    Configuration("nothing", SYSTEM),
    Configuration("a file of the distribution", A, {"usr/storage.conf": VFS}),
    Configuration(
        "a file of the administrator hides the distribution's",
        "overlay {base}/srv/b",
        {"usr/storage.conf": VFS, "etc/storage.conf": storage(graphroot="{base}/srv/b")},
    ),
    Configuration(
        "a file without a run root",
        (REFUSED, REFUSED, A),
        {"etc/storage.conf": '[storage]\ndriver = "vfs"\ngraphroot = "{base}/srv/a"\n'},
    ),
    Configuration(
        "a file without a graph root",
        (REFUSED, REFUSED, "vfs /var/lib/containers/storage"),
        {"etc/storage.conf": storage(driver="vfs")},
    ),
    Configuration(
        "a file in root's home",
        (A, A, B),
        {"etc/storage.conf": VFS, HOME_FILE: storage(driver="vfs", graphroot="{base}/srv/b")},
    ),
    Configuration(
        "a file in root's configuration directory",
        (B, A, B),
        {
            "etc/storage.conf": VFS,
            "home/xdg/containers/storage.conf": storage(driver="vfs", graphroot="{base}/srv/b"),
        },
        {"XDG_CONFIG_HOME": "{base}/home/xdg"},
    ),
    Configuration(
        "only a file in root's configuration directory",
        B,
        {"home/xdg/containers/storage.conf": storage(driver="vfs", graphroot="{base}/srv/b")},
        {"XDG_CONFIG_HOME": "{base}/home/xdg"},
    ),
    Configuration(
        "a configuration directory without a file",
        A,
        {"etc/storage.conf": VFS, HOME_FILE: OTHER},
        {"XDG_CONFIG_HOME": "{base}/home/xdg"},
    ),
    Configuration(
        "a named file",
        A,
        {"own.conf": VFS, "etc/storage.conf": OTHER},
        {"CONTAINERS_STORAGE_CONF": "{base}/own.conf"},
    ),
    Configuration(
        "a named file hides the home's and drop-ins",
        A,
        {
            "own.conf": VFS,
            "home/xdg/containers/storage.conf": OTHER,
            "etc/storage.conf.d/a.conf": OTHER,
        },
        {"CONTAINERS_STORAGE_CONF": "{base}/own.conf", "XDG_CONFIG_HOME": "{base}/home/xdg"},
    ),
    Configuration(
        "an empty name of a file",
        (REFUSED, REFUSED, A),
        {"etc/storage.conf": VFS},
        {"CONTAINERS_STORAGE_CONF": ""},
    ),
    Configuration(
        "a named file that is missing",
        REFUSED,
        {"etc/storage.conf": VFS},
        {"CONTAINERS_STORAGE_CONF": "{base}/missing.conf"},
    ),
    Configuration(
        "a named file of overrides",
        (A, A, B),
        {"etc/storage.conf": VFS, "etc/storage.conf.d/a.conf": THIRD, "over.conf": OTHER},
        {"CONTAINERS_STORAGE_CONF_OVERRIDE": "{base}/over.conf"},
    ),
    Configuration(
        "a named file, and one of overrides",
        (A, A, B),
        {"own.conf": VFS, "over.conf": OTHER},
        {
            "CONTAINERS_STORAGE_CONF": "{base}/own.conf",
            "CONTAINERS_STORAGE_CONF_OVERRIDE": "{base}/over.conf",
        },
    ),
    Configuration(
        "a drop-in of the administrator",
        (A, A, B),
        {"usr/storage.conf": VFS, "etc/storage.conf.d/a.conf": OTHER},
    ),
    Configuration(
        "a drop-in of the distribution beside the administrator's file",
        (A, A, B),
        {"etc/storage.conf": VFS, "usr/storage.conf.d/a.conf": OTHER},
    ),
    Configuration(
        "a drop-in that hides one of the same name",
        (A, A, B),
        {
            "etc/storage.conf": VFS,
            "etc/storage.conf.d/a.conf": OTHER,
            "usr/storage.conf.d/a.conf": THIRD,
        },
    ),
    Configuration(
        "drop-ins in the order of their names",
        (A, A, C),
        {
            "etc/storage.conf": VFS,
            "etc/storage.conf.d/10-a.conf": OTHER,
            "usr/storage.conf.d/20-a.conf": THIRD,
        },
    ),
    Configuration(
        "a drop-in for root",
        (A, A, B),
        {
            "etc/storage.conf": VFS,
            "etc/storage.conf.d/a.conf": THIRD,
            "etc/storage.rootful.conf.d/a.conf": OTHER,
        },
    ),
    Configuration(
        "drop-ins for users only",
        A,
        {
            "etc/storage.conf": VFS,
            "etc/storage.rootless.conf.d/a.conf": OTHER,
            "etc/storage.rootless.conf.d/0/a.conf": OTHER,
        },
    ),
    Configuration(
        "a drop-in in root's home",
        (A, A, B),
        {
            "etc/storage.conf": VFS,
            "home/.config/containers/storage.conf.d/a.conf": OTHER,
            "etc/storage.rootful.conf.d/a.conf": THIRD,
        },
    ),
    Configuration(
        "a drop-in without any file",
        (SYSTEM, SYSTEM, A),
        {"etc/storage.conf.d/a.conf": VFS},
    ),
    Configuration(
        "what is no drop-in, and one that is a link",
        (A, A, C),
        {
            "etc/storage.conf": VFS,
            "etc/storage.conf.d/a.conf.bak": OTHER,
            "etc/storage.conf.d/b.conf/a.conf": OTHER,
            "third.conf": THIRD,
        },
        links={"etc/storage.conf.d/c.conf": "{base}/third.conf"},
    ),
    Configuration(
        "a driver in the environment",
        A,
        {"etc/storage.conf": storage(driver="overlay", graphroot="{base}/srv/a")},
        {"STORAGE_DRIVER": "vfs"},
    ),
    Configuration(
        "the other name of overlay",
        "overlay {base}/srv/a",
        {"etc/storage.conf": storage(driver="overlay2", graphroot="{base}/srv/a")},
    ),
    Configuration(
        "no driver, and the files of overlay",
        "overlay {base}/srv/a",
        {"etc/storage.conf": storage(graphroot="{base}/srv/a")},
        directories=("srv/a/overlay", "srv/a/overlay-images"),
    ),
    Configuration(
        "no driver, and the files of vfs",
        "overlay {base}/srv/a",
        {"etc/storage.conf": storage(graphroot="{base}/srv/a")},
        directories=("srv/a/vfs", "srv/a/vfs-images"),
    ),
    Configuration(
        "no driver, and the files of two",
        ("overlay {base}/srv/a", REFUSED, REFUSED),
        {"etc/storage.conf": storage(graphroot="{base}/srv/a")},
        directories=("srv/a/vfs", "srv/a/overlay"),
    ),
    Configuration(
        "an order of drivers",
        ("overlay {base}/srv/a", A, A),
        {
            "etc/storage.conf": storage(graphroot="{base}/srv/a").replace(
                "[storage]\n", '[storage]\ndriver_priority = ["vfs", "overlay"]\n'
            )
        },
    ),
    Configuration(
        "an order of drivers, and the files of one",
        "overlay {base}/srv/a",
        {
            "etc/storage.conf": storage(graphroot="{base}/srv/a").replace(
                "[storage]\n", '[storage]\ndriver_priority = ["vfs", "overlay"]\n'
            )
        },
        directories=("srv/a/overlay",),
    ),
    Configuration(
        "a directory for images",
        (A, f"{A} images={{base}}/srv/i", f"{A} images={{base}}/srv/i"),
        {
            "etc/storage.conf": storage(
                driver="vfs", graphroot="{base}/srv/a", imagestore="{base}/srv/i"
            )
        },
    ),
    Configuration(
        "a directory for images that is the graph root",
        (A, REFUSED, REFUSED),
        {
            "etc/storage.conf": storage(
                driver="vfs", graphroot="{base}/srv/a", imagestore="{base}/srv/a"
            )
        },
    ),
    Configuration(
        "an additional store",
        f"{A} also={{base}}/srv/x",
        {"etc/storage.conf": storage(driver="vfs", graphroot="{base}/srv/a", options=ALSO)},
        directories=("srv/x",),
    ),
    Configuration(
        "an additional store, a directory for images, and overlay",
        (
            "overlay {base}/srv/a also={base}/srv/x",
            "overlay {base}/srv/a images={base}/srv/i also={base}/srv/x",
            "overlay {base}/srv/a images={base}/srv/i also={base}/srv/x",
        ),
        {
            "etc/storage.conf": storage(
                driver="overlay", graphroot="{base}/srv/a", imagestore="{base}/srv/i", options=ALSO
            )
        },
        directories=("srv/x",),
    ),
    Configuration(
        "a drop-in that adds a store",
        (
            f"{A} also={{base}}/srv/x",
            f"{A} also={{base}}/srv/x",
            f"{A} also={{base}}/srv/x,{{base}}/srv/y",
        ),
        {
            "etc/storage.conf": storage(driver="vfs", graphroot="{base}/srv/a", options=ALSO),
            "etc/storage.conf.d/a.conf": "[storage.options]\nadditionalimagestores = "
            '["{base}/srv/y", {append = true}]\n',
        },
        directories=("srv/x", "srv/y"),
    ),
    Configuration(
        "a drop-in that replaces a store",
        (f"{A} also={{base}}/srv/x", f"{A} also={{base}}/srv/x", f"{A} also={{base}}/srv/y"),
        {
            "etc/storage.conf": storage(driver="vfs", graphroot="{base}/srv/a", options=ALSO),
            "etc/storage.conf.d/a.conf": "[storage.options]\nadditionalimagestores = "
            '["{base}/srv/y"]\n',
        },
        directories=("srv/x", "srv/y"),
    ),
    Configuration(
        "an additional store in the environment",
        f"{A} also={{base}}/srv/y,{{base}}/srv/z",
        {"etc/storage.conf": storage(driver="vfs", graphroot="{base}/srv/a", options=ALSO)},
        {"STORAGE_OPTS": "vfs.imagestore={base}/srv/y,vfs.imagestore={base}/srv/z"},
        directories=("srv/x", "srv/y", "srv/z"),
    ),
    Configuration(
        "variables in a path",
        "vfs {base}/srv/x-0/y",
        {"etc/storage.conf": storage(driver="vfs", graphroot="{base}/srv/${OWN}-$UID/$NO/y")},
        {"OWN": "x"},
    ),
    Configuration(
        "a link in a path",
        "vfs {base}/srv/real/g",
        {"etc/storage.conf": storage(driver="vfs", graphroot="{base}/srv/link/g")},
        directories=("srv/real/g",),
        links={"srv/link": "real"},
    ),
    Configuration(
        "a link in a path that does not exist yet",
        "vfs {base}/srv/link/g",
        {"etc/storage.conf": storage(driver="vfs", graphroot="{base}/srv/no/../link/g")},
        directories=("srv/real",),
        links={"srv/link": "real"},
    ),
    Configuration("a file that is no TOML", REFUSED, {"etc/storage.conf": "[storage\n"}),
    Configuration("a number for a driver", REFUSED, {"etc/storage.conf": "[storage]\ndriver = 1"}),
    Configuration(
        "keys in capitals",
        A,
        {"etc/storage.conf": VFS.replace("driver", "Driver").replace("graphroot", "GraphRoot")},
    ),
    # A user.
    Configuration("nothing, for a user", (USERS, f"overlay {OWN}", f"overlay {OWN}"), user=USER),
    Configuration(
        "a user's directory of data",
        "vfs {base}/home/data/containers/storage",
        environ={"XDG_DATA_HOME": "{base}/home/data", **VFS_DRIVER},
        user=USER,
    ),
    Configuration(
        "the system's graph root, for a user",
        (USERS, USERS, A),
        {"etc/storage.conf": VFS},
        user=USER,
    ),
    Configuration(
        "the system's path for users",
        "vfs {base}/srv/u-1000",
        {"etc/storage.conf": storage(driver="vfs", rootless_storage_path="{base}/srv/u-$UID")},
        user=USER,
    ),
    Configuration(
        "the system's graph root and path for users",
        ("vfs {base}/srv/u", "vfs {base}/srv/u", A),
        {
            "etc/storage.conf": storage(
                driver="vfs", graphroot="{base}/srv/a", rootless_storage_path="{base}/srv/u"
            )
        },
        user=USER,
    ),
    Configuration(
        "a driver that users cannot use",
        (USERS, f"overlay {OWN}", USERS),
        {
            "usr/storage.conf": storage(driver="devicemapper"),
            "etc/storage.conf.d/a.conf": '[storage]\ndriver = "vfs"\n',
        },
        user=USER,
    ),
    Configuration(
        "a user's file",
        B,
        {"etc/storage.conf": VFS, HOME_FILE: storage(driver="vfs", graphroot="{base}/srv/b")},
        user=USER,
    ),
    Configuration(
        "a user's file without a graph root",
        USERS,
        {
            "etc/storage.conf": storage(driver="vfs", rootless_storage_path="{base}/srv/u"),
            HOME_FILE: storage(driver="vfs"),
        },
        user=USER,
    ),
    Configuration(
        "a user's file with a path for users",
        "vfs {base}/srv/own",
        {HOME_FILE: storage(driver="vfs", rootless_storage_path="{base}/srv/own")},
        user=USER,
    ),
    Configuration(
        "a file in a user's configuration directory",
        B,
        {
            HOME_FILE: VFS,
            "home/xdg/containers/storage.conf": storage(driver="vfs", graphroot="{base}/srv/b"),
        },
        {"XDG_CONFIG_HOME": "{base}/home/xdg"},
        user=USER,
    ),
    Configuration(
        "a named file, for a user",
        (USERS, USERS, A),
        {"own.conf": VFS, HOME_FILE: OTHER},
        {"CONTAINERS_STORAGE_CONF": "{base}/own.conf"},
        user=USER,
    ),
    Configuration(
        "a named file with a path for users and more",
        (
            "vfs {base}/srv/u also={base}/srv/x",
            "vfs {base}/srv/u images={base}/srv/i also={base}/srv/x",
            "vfs {base}/srv/u images={base}/srv/i also={base}/srv/x",
        ),
        {
            "own.conf": storage(
                driver="vfs",
                rootless_storage_path="{base}/srv/u",
                imagestore="{base}/srv/i",
                options=ALSO,
            )
        },
        {"CONTAINERS_STORAGE_CONF": "{base}/own.conf"},
        directories=("srv/x",),
        user=USER,
    ),
    Configuration(
        "a named file without a run root",
        (REFUSED, A, A),
        {"own.conf": '[storage]\ndriver = "vfs"\ngraphroot = "{base}/srv/a"\n'},
        {"CONTAINERS_STORAGE_CONF": "{base}/own.conf"},
    ),
    Configuration(
        "a named file without a graph root, for a user",
        USERS,
        {"own.conf": storage(driver="vfs"), HOME_FILE: OTHER},
        {"CONTAINERS_STORAGE_CONF": "{base}/own.conf"},
        user=USER,
    ),
    Configuration(
        "a drop-in for users",
        (USERS, USERS, B),
        {
            "usr/storage.conf": storage(driver="vfs"),
            "etc/storage.rootless.conf.d/a.conf": OTHER,
            "etc/storage.rootful.conf.d/z.conf": THIRD,
        },
        user=USER,
    ),
    Configuration(
        "a drop-in for one user",
        (USERS, USERS, B),
        {
            "usr/storage.conf": storage(driver="vfs"),
            "etc/storage.rootless.conf.d/1000/a.conf": OTHER,
            "etc/storage.rootless.conf.d/1001/z.conf": THIRD,
            "etc/storage.rootless.conf.d/a.conf": THIRD,
        },
        user=USER,
    ),
    Configuration(
        "a drop-in in a user's home",
        (USERS, USERS, B),
        {
            "usr/storage.conf": storage(driver="vfs"),
            "home/.config/containers/storage.conf.d/a.conf": OTHER,
        },
        user=USER,
    ),
    Configuration("a driver in the environment, for a user", USERS, environ=VFS_DRIVER, user=USER),
    Configuration(
        "no runtime directory", USERS, environ={"XDG_RUNTIME_DIR": "", **VFS_DRIVER}, user=USER
    ),
    Configuration(
        "images of vfs, for a user",
        (USERS, USERS, f"overlay {OWN}"),
        directories=("home/.local/share/containers/storage/vfs-images",),
        user=USER,
    ),
    Configuration(
        "the system's directory for images, for a user",
        (USERS, USERS, f"{USERS} images={{base}}/srv/i"),
        {"etc/storage.conf": storage(driver="vfs", imagestore="{base}/srv/i")},
        user=USER,
    ),
    Configuration(
        "the system's additional store, for a user",
        (USERS, USERS, f"{USERS} also={{base}}/srv/x"),
        {"etc/storage.conf": storage(driver="vfs", options=ALSO)},
        directories=("srv/x",),
        user=USER,
    ),
    Configuration(
        "a user's additional store",
        f"{USERS} also={{base}}/srv/x",
        {HOME_FILE: storage(driver="vfs", options=ALSO)},
        directories=("srv/x",),
        user=USER,
    ),
    # In a user's namespace.
    *(
        configuration
        for program in ("podman", "buildah")
        for configuration in (
            Configuration(
                f"nothing, in {program} unshare",
                (USERS, f"overlay {OWN}", f"overlay {OWN}"),
                user=USER,
                inside=program,
            ),
            Configuration(
                f"the system's graph root, in {program} unshare",
                (USERS, USERS, A),
                {"etc/storage.conf": VFS},
                user=USER,
                inside=program,
            ),
            Configuration(
                f"a user's file, in {program} unshare",
                B,
                {
                    "etc/storage.conf": VFS,
                    HOME_FILE: storage(driver="vfs", graphroot="{base}/srv/b"),
                },
                user=USER,
                inside=program,
            ),
            Configuration(
                f"a drop-in for one user, in {program} unshare",
                (USERS, USERS, B),
                {
                    "usr/storage.conf": VFS,
                    "etc/storage.rootless.conf.d/1000/a.conf": OTHER,
                    "etc/storage.rootful.conf.d/z.conf": THIRD,
                },
                user=USER,
                inside=program,
            ),
        )
    ),
]
