"""The structure of the source: its imports, and what is public and typed."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import msgspec
import pytest

import aimagestore

ROOT = Path(aimagestore.__file__).parents[1]


def sources(*packages: str) -> dict[str, Path]:
    """Return the modules of packages, and their files."""
    found = {}
    for package in packages:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def import_statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Iterate over all imports, those in functions included, but not those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for statement in node.orelse:
                yield from import_statements(ast.Module([statement], []))
        else:
            yield from import_statements(node)


def imports_of(module: str, text: str, *, is_package: bool, known: set[str]) -> set[str]:
    """Return the modules that a module imports by name."""
    found = set()
    for statement in import_statements(ast.parse(text)):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
            continue
        base = statement.module or ""
        if statement.level:
            parts = module.split(".")
            above = parts[: len(parts) - statement.level + is_package]
            base = ".".join([*above, base] if base else above)
        for alias in statement.names:
            inner = f"{base}.{alias.name}"
            found.add(inner if inner in known else base)
    return (found & known) - {module}


def import_graph(*packages: str) -> dict[str, set[str]]:
    """Return which modules each module of these packages imports."""
    files = sources(*packages)
    return {
        module: imports_of(
            module, file.read_text(), is_package=file.name == "__init__.py", known=set(files)
        )
        for module, file in files.items()
    }


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of an import cycle, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def test_no_imports_are_circular() -> None:
    graph = import_graph("aimagestore", "benchmarks", "tests")
    assert len(graph) > 100
    assert "aimagestore._async.core" in graph["aimagestore._async.store"]
    assert find_cycle(graph) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from . import b", {"p.b"}),
        ("from .b import x", {"p.b"}),
        ("from p import b, c", {"p.b", "p"}),
        ("import p.b", {"p.b"}),
        ("def f():\n from . import b", {"p.b"}),
        ("class C:\n def f(self):\n  if x:\n   from .b import y", {"p.b"}),
        ("try:\n import p.b\nexcept ImportError: pass", {"p.b"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from . import b", set()),
        ("import typing\nif typing.TYPE_CHECKING:\n pass\nelse:\n from . import b", {"p.b"}),
    ],
)
def test_the_import_graph_has_every_import_that_runs(text: str, found: set[str]) -> None:
    known = {"p", "p.a", "p.b"}
    assert imports_of("p.a", text, is_package=False, known=known) == found
    cycle = find_cycle({"p.a": found, "p.b": {"p.a"}})
    assert bool(cycle) == ("p.b" in found)


def test_the_core_does_no_io_and_knows_no_event_loop() -> None:
    files = sources("aimagestore/_core", "aimagestore/_format")
    for module, file in files.items():
        imported = set()
        for statement in import_statements(ast.parse(file.read_text())):
            if isinstance(statement, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in statement.names}
            elif not statement.level and statement.module:
                imported.add(statement.module.partition(".")[0])
        forbidden = {"anyio", "asyncio", "io", "os", "psycopg", "obstore", "socket", "trio"}
        assert not imported & forbidden, module


# Public names

PACKAGES = ["aimagestore", "aimagestore.oci", "aimagestore.podman", "aimagestore.cluster"]


def public_of(package: str) -> dict[str, object]:
    """Return what a package exports."""
    if package == "aimagestore.cluster":
        pytest.importorskip("psycopg")
        pytest.importorskip("obstore")
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


def functions_of(name: str, exported: object) -> Iterator[tuple[str, types.FunctionType]]:
    """Iterate over the public functions of an export: itself, or its methods."""
    if inspect.isfunction(exported):
        yield name, exported
    if inspect.isclass(exported):
        for attribute, member in inspect.getmembers(exported):
            function = member.fget if isinstance(member, property) else member
            is_public = not attribute.startswith("_") or attribute == "__init__"
            if not is_public or not inspect.isfunction(function):
                continue
            if function.__module__.startswith("aimagestore"):
                yield f"{name}.{attribute}", function


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_function_is_typed(package: str) -> None:
    assert (Path(aimagestore.__file__).parent / "py.typed").exists()
    for name, exported in public_of(package).items():
        for path, function in functions_of(name, exported):
            signature = inspect.signature(function)
            for parameter in signature.parameters.values():
                if parameter.name != "self":
                    assert parameter.annotation is not inspect.Parameter.empty, path
            assert signature.return_annotation is not inspect.Signature.empty, path


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_of_a_package_is_exported(package: str) -> None:
    exported = public_of(package)
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public - {"annotations"} == set(exported) - {"__version__"}


@pytest.mark.parametrize("package", PACKAGES)
def test_help_for_records_shows_no_generated_methods(package: str) -> None:
    for name, exported in public_of(package).items():
        is_record = dataclasses.is_dataclass(exported) or (
            inspect.isclass(exported) and issubclass(exported, Enum | msgspec.Struct)
        )
        if is_record:
            shown = pydoc.plain(pydoc.render_doc(exported))
            hidden = set(re.findall(r"^ \|  (_\w+)", shown, re.MULTILINE)) - {"__members__"}
            assert not hidden, name
            assert "of str" not in shown, name


def test_the_types_of_arguments_are_exported() -> None:
    assert {"BigDataSource", "JSONValue"} <= set(aimagestore.__all__)
    assert bytes in typing.get_args(aimagestore.BigDataSource)
    assert {str, bool, int, float} <= set(typing.get_args(aimagestore.JSONValue))


# What is imported at the start

LARGE = {
    "anyio",
    "asyncio",
    "click",
    "inotify_simple",
    "rich",
    "sqlite3",
    "ssl",
    "trio",
}
UNREAD = {
    "aimagestore._core.documents",
    "aimagestore._core.filters",
    "aimagestore._core.pruning",
    "aimagestore._core.report",
    "aimagestore._stacked",
    "aimagestore.podman",
}
"""Modules that reading a store does not need."""
ASYNC = "aimagestore._async"
ENGINES = {ASYNC, "aimagestore.cluster", "aimagestore.oci", "aimagestore.podman"}


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["-c", "import aimagestore"], LARGE | ENGINES | {"msgspec"}),
        (["-c", "import aimagestore.errors"], LARGE | ENGINES | {"msgspec"}),
        # Older versions of anyio import ssl.
        (
            ["-c", "from aimagestore import ImageStore"],
            LARGE - {"anyio", "ssl"} | UNREAD | ENGINES - {ASYNC},
        ),
        (["-m", "aimagestore", "--version"], LARGE - {"click"} | ENGINES | {"msgspec"}),
        (
            ["-m", "aimagestore", "--root", "{}", "images"],
            {"inotify_simple", "rich", "sqlite3", "tomllib", "aimagestore._cli.layouts"}
            | {"aimagestore._async.copying", "aimagestore.cluster", "aimagestore.oci"}
            | UNREAD,
        ),
    ],
)
def test_what_a_start_does_not_import(
    arguments: list[str], unneeded: set[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-X", "importtime", *arguments]
    process = subprocess.run(
        [part.format(tmp_path) for part in command], check=True, capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert {"aimagestore", "aimagestore.errors"} <= imported
    assert not imported & unneeded
