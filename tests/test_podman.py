"""Locating podman's storage by the rules of each version, tested without podman."""

from __future__ import annotations

import dataclasses
import os
import platform
import sqlite3
import struct
from pathlib import Path

import anyio
import pytest

from aimagestore import ImageStoreError, StoreConfigurationError
from aimagestore.podman import (
    PodmanStorage,
    _account,
    _database,
    _finding,
    _installed,
    _options,
    locate,
)
from aimagestore.podman._account import Account
from aimagestore.podman._driver import additional_roots
from aimagestore.podman._options import Options
from aimagestore.podman._rules import RULES
from aimagestore.podman._settings import Settings, Strings

from .support.configurations import (
    CONFIGURATIONS,
    REFUSED,
    USER,
    VFS,
    Configuration,
    shown,
    storage,
)

GENERATIONS = list(enumerate(reversed(RULES)))


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretend that the machine has no storage yet, and that its users can mount overlay."""
    monkeypatch.setattr(_options, "SYSTEM_GRAPH_ROOT", f"{tmp_path}/var/storage")
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-test")


def find(
    configuration: Configuration, base: Path, generation: int | None, **variables: str
) -> PodmanStorage:
    user = configuration.user
    account = Account(configuration.variables(base) | variables, user, is_rootless=user != 0)
    rules = None if generation is None else GENERATIONS[generation][1]
    return _finding.find_storage(account, rules, (f"{base}/usr", f"{base}/etc"))


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda each: each.name)
def test_the_storage_is_where_each_version_has_it(
    configuration: Configuration, tmp_path: Path
) -> None:
    configuration.make(tmp_path)
    for generation in range(len(RULES)):
        expected = configuration.expected_of(generation)
        expected = expected.replace("/var/lib/containers", "{base}/var")
        try:
            found = shown(dataclasses.asdict(find(configuration, tmp_path, generation)))
        except StoreConfigurationError:
            found = REFUSED
        assert found == expected.replace("{base}", str(tmp_path)), generation


def test_the_table_has_many_configurations_with_different_names() -> None:
    assert len(CONFIGURATIONS) >= 40
    assert len({each.name for each in CONFIGURATIONS}) == len(CONFIGURATIONS)


def test_each_kind_of_store_has_its_directory(tmp_path: Path) -> None:
    text = storage(driver="vfs", graphroot="/g", imagestore="/i", options="")
    text += 'additionalimagestores = ["/x/", "/y"]\n'
    configuration = Configuration("", "", {"etc/storage.conf": text})
    configuration.make(tmp_path)
    assert find(configuration, tmp_path, 2) == PodmanStorage(
        graph_root="/g",
        run_root=f"{tmp_path}/run/root",
        driver="vfs",
        image_store="/i/vfs-images",
        additional_image_stores=("/g/vfs-images", "/x/vfs-images", "/y/vfs-images"),
        layer_store="/i/vfs-layers",
        container_store="/g/vfs-containers",
        is_rootless=False,
        sources=(f"{tmp_path}/etc/storage.conf",),
    )


def test_the_sources_are_in_the_order_of_reading(tmp_path: Path) -> None:
    files = {
        "etc/storage.conf": VFS,
        "usr/storage.conf.d/b.conf": "",
        "etc/storage.conf.d/a.conf": "",
    }
    configuration = Configuration("", "", files)
    configuration.make(tmp_path)
    names = ["etc/storage.conf", "etc/storage.conf.d/a.conf", "usr/storage.conf.d/b.conf"]
    found = find(configuration, tmp_path, 2)
    assert found.sources == tuple(f"{tmp_path}/{name}" for name in names)


# Files


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (b"[storage]\n\n[storage]", 3, "twice"),
        (b"[storage]\nx = '''", 2, "Expected"),
        (b"\n# \xff\n", 2, "not UTF-8"),
        (b"[storage]\n\n  Driver = 1", 3, "driver is not a string"),
        (b"[storage]\n'graphroot'= []", 2, "graphroot is not a string"),
        (b"storage = 1", 1, "storage is not a table"),
        (b"[storage]\noptions = ''", 2, "options is not a table"),
        (b"storage.options = ''", 1, "options is not a table"),
        (b"[storage]\ndriver_priority = 'vfs'", 2, "driver_priority is not a list"),
        (b"[storage]\ndriver_priority = [1]", 2, "not strings"),
        (b"[storage]\ndriver_priority = [{append = 1}]", 2, "not strings"),
        (b"[storage]\ndriver_priority = [{append = true, x = 1}]", 2, "not strings"),
    ],
)
def test_a_message_names_the_file_and_the_line(text: bytes, line: int, reason: str) -> None:
    with pytest.raises(StoreConfigurationError) as caught:
        Settings().updated(text, "/etc/storage.conf")
    assert (caught.value.path, caught.value.line) == ("/etc/storage.conf", line)
    assert reason in str(caught.value)
    assert f"/etc/storage.conf, line {line}: " in str(caught.value)
    assert isinstance(caught.value, ImageStoreError | ValueError)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    configuration = Configuration("", "", directories=("etc/storage.conf",))
    configuration.make(tmp_path)
    for generation in range(len(RULES)):
        with pytest.raises(StoreConfigurationError, match="Is a directory") as caught:
            find(configuration, tmp_path, generation)
        assert caught.value.path == f"{tmp_path}/etc/storage.conf"
        assert isinstance(caught.value.__cause__, OSError)
    configuration = Configuration("", "", {"etc/storage.conf.d": ""})
    (tmp_path / "etc/storage.conf").rmdir()
    (tmp_path / "etc/storage.conf.d").touch()
    with pytest.raises(StoreConfigurationError, match=r"storage\.conf\.d: Not a directory"):
        find(configuration, tmp_path, 2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([["a"], ["b"]], ("b",)),
        ([["a"], [{"append": True}, "b"]], ("a", "b")),
        ([["a", {"append": True}], ["b"]], ("a", "b")),
        ([["a", {"append": True}], ["b"], ["c", {"append": False}]], ("c",)),
    ],
)
def test_a_list_replaces_or_extends_another(
    values: list[list[object]], expected: tuple[str, ...]
) -> None:
    strings = Strings()
    for value in values:
        strings = strings.updated(value)
    assert strings.values == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/$A/${A}/$B", "/x/x"),
        ("/$UID/$UIDS", "/7/7S"),
        ("/$A_/${}b/$$c/$1d", "/b/c/d"),
        ("/a$", "/a$"),
        ("/${A", "/A"),
        ("/no/../b//c/", "/b/c"),
    ],
)
def test_variables_are_expanded_as_go_expands_them(given: str, expected: str) -> None:
    assert Account({"A": "x"}, 7, is_rootless=True).expand(given) == expected


@pytest.mark.parametrize(
    ("driver", "options", "expected"),
    [
        ("overlay", "imagestore=/a,overlay.imagestore=/b,overlay2.imagestore=/c", "/a /b /c"),
        ("overlay", ".imagestore=/a,overlay.additionalimagestore=/b", "/a /b"),
        ("overlay", "vfs.imagestore=/a,size=1,overlay.size=1", ""),
        ("vfs", "vfs.imagestore=/a,imagestore=/b,.imagestore=/c,overlay.imagestore=/d", "/a /b /c"),
        ("btrfs", "btrfs.imagestore=/a", ""),
    ],
)
def test_options_name_additional_stores(driver: str, options: str, expected: str) -> None:
    given = Options(driver_options=tuple(options.split(",")))
    assert additional_roots(given, driver) == expected.split()


# Users


def test_a_namespace_says_whose_storage_is_meant() -> None:
    inside = {"_CONTAINERS_USERNS_CONFIGURED": "done", "_CONTAINERS_ROOTLESS_UID": "1234"}
    account = Account.of_process(inside)
    assert (account.user, account.is_rootless, account.has_own_storage) == (1234, True, True)
    account = Account.of_process({**inside, "_CONTAINERS_ROOTLESS_UID": "0"})
    assert (account.user, account.is_rootless, account.has_own_storage) == (0, True, False)
    assert Account.of_process({}).user == os.getuid()


def test_the_home_is_that_of_the_user() -> None:
    assert Account({}, 0, is_rootless=False).home == "/root"
    assert Account({}, 4242424, is_rootless=True).home == ""


def test_runtime_files_are_in_a_private_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_account, "_RUNTIME_DIRECTORIES", str(tmp_path))
    account = Account({"TMPDIR": "/t"}, 1234, is_rootless=True)
    assert account.runtime_directory("x") == "/t/x-1234"
    own = tmp_path / "1234"
    own.mkdir()
    own.chmod(0o777)
    assert account.runtime_directory("x") == "/t/x-1234"
    own.chmod(0o700)
    assert account.runtime_directory("x") == str(own)


@pytest.mark.parametrize(("release", "driver"), [("5.12.9", "vfs"), ("5.13", "overlay")])
def test_a_user_has_overlay_where_it_can_be_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, driver: str
) -> None:
    configuration = Configuration("", "", user=USER)
    configuration.make(tmp_path)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert find(configuration, tmp_path, 1, PATH="/no").driver == driver
    program = tmp_path / "fuse-overlayfs"
    program.touch(mode=0o755)
    assert find(configuration, tmp_path, 1, PATH=str(tmp_path)).driver == "overlay"


# podman's database


def sqlite(graph_root: Path, driver: str) -> None:
    """Write the database of podman 5."""
    with sqlite3.connect(graph_root / "db.sql") as connection:
        connection.execute("CREATE TABLE DBConfig (GraphRoot TEXT, GraphDriver TEXT)")
        connection.execute("INSERT INTO DBConfig VALUES (?, ?)", (str(graph_root), driver))
    connection.close()


def leaf(elements: list[tuple[int, bytes, bytes]]) -> bytes:
    """Return a page of bbolt."""
    header, data = b"", b""
    for number, (flags, key, value) in enumerate(elements):
        position = 16 * (len(elements) - number) + len(data)
        header += struct.pack("<IIII", flags, position, len(key), len(value))
        data += key + value
    return struct.pack("<QHHI", 0, 2, len(elements), 0) + header + data


def bolt(graph_root: Path, driver: str, *, inline: bool, page_size: int = 4096) -> None:
    """Write the database of podman 4: a branch and two leaves.

    :param inline: whether the bucket is in the page of its parent
    """
    values = leaf(
        [
            (0, b"graph-driver-name", driver.encode()),
            (0, b"graph-root", os.fsencode(graph_root)),
        ]
    )
    bucket = struct.pack("<QQ", 0, 0) + values if inline else struct.pack("<QQ", 6, 0)
    pages = [b"", b"", b"", b"", leaf([(1, b"all-ctrs", bytes(16))])]
    pages += [leaf([(1, b"runtime-config", bucket)]), values]
    pages[3] = struct.pack("<QHHI", 3, 1, 2, 0) + struct.pack("<IIQIIQ", 0, 0, 4, 0, 0, 5)
    for number, (transaction, root) in enumerate([(7, 4), (8, 3)]):
        meta = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, page_size, 0, root, 0, 2, 7, transaction)
        checksum = 0xCBF29CE484222325
        for byte in meta:
            checksum = (checksum ^ byte) * 0x100000001B3 % 2**64
        pages[number] = struct.pack("<QHHI", number, 4, 0, 0) + meta + struct.pack("<Q", checksum)
    (graph_root / "libpod").mkdir()
    (graph_root / "libpod/bolt_state.db").write_bytes(
        b"".join(page.ljust(page_size, b"\0") for page in pages)
    )


@pytest.mark.parametrize("kind", ["sqlite", "bolt", "inline", "large"])
def test_the_driver_in_podmans_database_wins(tmp_path: Path, kind: str) -> None:
    configuration = Configuration("", "", {"etc/storage.conf": VFS}, {"STORAGE_DRIVER": "btrfs"})
    configuration.make(tmp_path)
    graph_root = tmp_path / "srv/a"
    graph_root.mkdir()
    if kind == "sqlite":
        sqlite(graph_root, "overlay")
        name = "db.sql"
    else:
        bolt(
            graph_root,
            "overlay",
            inline=kind == "inline",
            page_size=16384 if "large" in kind else 4096,
        )
        name = "libpod/bolt_state.db"
    before = (graph_root / name).read_bytes()
    found = find(configuration, tmp_path, 2)
    assert found.driver == "overlay"
    assert found.sources == (f"{tmp_path}/etc/storage.conf", f"{graph_root}/{name}")
    assert (graph_root / name).read_bytes() == before
    # podman refuses a graph root that was moved.
    graph_root.rename(tmp_path / "srv/b")
    (tmp_path / "etc/storage.conf").write_text(VFS.replace("{base}/srv/a", f"{tmp_path}/srv/b"))
    with pytest.raises(
        StoreConfigurationError, match=f"belongs to another graph root, {graph_root}"
    ):
        find(configuration, tmp_path, 2)


def test_an_empty_driver_in_podmans_database_does_not_count(tmp_path: Path) -> None:
    configuration = Configuration("", "", {"etc/storage.conf": VFS})
    configuration.make(tmp_path)
    (tmp_path / "srv/a").mkdir()
    sqlite(tmp_path / "srv/a", "")
    assert find(configuration, tmp_path, 2).driver == "vfs"


def test_a_version_of_a_database_that_was_half_written_does_not_count(tmp_path: Path) -> None:
    """The version before it, which has no driver yet, does."""
    bolt(tmp_path, "vfs", inline=False)
    path = tmp_path / "libpod/bolt_state.db"
    whole = path.read_bytes()
    assert _database.read_database(str(tmp_path)) is not None
    for place in range(4096 + 16, 4096 + 16 + 64):  # the newer meta page, with its checksum
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert _database.read_database(str(tmp_path)) is None, place


def test_a_damaged_database_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "libpod").mkdir()
    (tmp_path / "db.sql").write_bytes(b"x" * 5000)
    for damaged in (b"", b"x", b"x" * 50_000, bytes(50_000)):
        (tmp_path / "libpod/bolt_state.db").write_bytes(damaged)
        assert _database.read_database(str(tmp_path)) is None
    (tmp_path / "db.sql").unlink()
    (tmp_path / "libpod/bolt_state.db").unlink()
    (tmp_path / "libpod").rmdir()
    bolt(tmp_path, "vfs", inline=False)
    whole = (tmp_path / "libpod/bolt_state.db").read_bytes()
    for size in range(0, len(whole), 512):
        (tmp_path / "libpod/bolt_state.db").write_bytes(whole[:size])
        _database.read_database(str(tmp_path))


# The rules of the installed podman


def podman(directory: Path, *symbols: bytes, padding: int = 0) -> None:
    """Write a program with the names of functions in it."""
    file = directory / "podman"
    file.write_bytes(b"\x7fELF" + bytes(padding) + b"\0".join(symbols))
    file.chmod(0o755)


@pytest.mark.parametrize("number", range(len(RULES)))
@pytest.mark.parametrize("padding", [0, 2**20 - 20, 5 * 2**20])
def test_the_installed_podman_says_which_rules_it_follows(
    tmp_path: Path, number: int, padding: int
) -> None:
    # A program also contains the functions of older ones.
    podman(tmp_path, *(rules.symbol for rules in reversed(RULES[number:])), padding=padding)
    assert _installed.installed_rules({"PATH": str(tmp_path)}) is RULES[number]


def test_the_rules_are_not_known_without_a_podman_that_tells(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path)}
    assert _installed.installed_rules(environ) is None
    podman(tmp_path, b"#!/bin/sh\n")
    assert _installed.installed_rules(environ) is None
    podman(tmp_path, RULES[1].symbol)  # replaced by another one
    assert _installed.installed_rules(environ) is RULES[1]


def test_no_store_is_chosen_silently_when_the_rules_are_not_known(tmp_path: Path) -> None:
    configuration = Configuration("", "", {"etc/storage.conf": VFS}, user=USER)
    configuration.make(tmp_path)
    stores = [find(configuration, tmp_path, generation).image_store for generation in (0, 1, 2)]
    assert stores[0] == stores[1] != stores[2]
    assert find(configuration, tmp_path, None).image_store == stores[2]
    os.makedirs(stores[0])
    assert find(configuration, tmp_path, None).image_store == stores[2]
    os.makedirs(stores[2])
    with pytest.raises(StoreConfigurationError) as caught:
        find(configuration, tmp_path, None)
    assert caught.value.stores == (stores[2], stores[0])
    for store in caught.value.stores:
        assert store in str(caught.value)
    for generation, store in enumerate(stores):  # a podman that is known has chosen
        assert find(configuration, tmp_path, generation).image_store == store


def test_a_version_that_refuses_the_configuration_has_no_store(tmp_path: Path) -> None:
    text = '[storage]\ndriver = "vfs"\ngraphroot = "{base}/srv/a"\n'
    configuration = Configuration("", "", {"etc/storage.conf": text})
    configuration.make(tmp_path)
    os.makedirs(tmp_path / "srv/a/vfs-images")
    assert find(configuration, tmp_path, None).graph_root == f"{tmp_path}/srv/a"


# The function


async def test_the_environment_is_that_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, root in (("own", "/own"), ("other", "/other")):
        (tmp_path / file).write_text(storage(driver="vfs", graphroot=root))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", f"{tmp_path}/own")
    assert (await locate()).graph_root == "/own"
    environ = {"CONTAINERS_STORAGE_CONF": f"{tmp_path}/other"}
    found = await locate(environ=environ)
    assert found.graph_root == "/other"
    assert found.sources == (f"{tmp_path}/other",)
    with pytest.raises(StoreConfigurationError, match="No such file"):
        await locate(environ={"CONTAINERS_STORAGE_CONF": f"{tmp_path}/missing"})


async def test_a_fifo_as_configuration_does_not_hold_a_cancelled_call(tmp_path: Path) -> None:
    fifo = tmp_path / "own.conf"
    os.mkfifo(fifo)
    podman(tmp_path, RULES[-1].symbol)
    async with anyio.create_task_group() as tasks:
        variables = {"CONTAINERS_STORAGE_CONF": str(fifo), "PATH": str(tmp_path)}
        tasks.start_soon(lambda: locate(environ=variables))
        # Opened when the other side is, which then waits for what is written.
        writer = await anyio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)
        tasks.cancel_scope.cancel()
    os.close(writer)  # so that the thread ends
