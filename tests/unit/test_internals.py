"""psycopg's private parts are imported in one module, and all that is used of them is listed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import asyncpool
from asyncpool._psycopg import internals
from asyncpool._psycopg.internals import ATTRIBUTES, MODULES, OPTIONAL, why_unsupported

ROOT = Path(asyncpool.__file__).parent
SOURCES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}
LISTED = {name for names in ATTRIBUTES.values() for name in names.split()} | OPTIONAL.keys()
OURS = {
    "_after_commit",
    "_closed_by",
    "_deferred",
    "_pipeline_end_cancelled",
    "_statements",
    "_traced",
    "_transport",
    "_unread_notifies",
    "_unsent_begin",
}
"""Attributes that `asyncpool.Connection` adds to psycopg's."""
OF_OTHERS = {
    "_asyncgens",
    "_get_running_loop",
    "_getframe",
    "_is_hard_or_soft_invalidated",
    "_locked",
    "_log_destroy_pending",
    "_psycopg_adapters_map",
    "_waiters",
}
"""Private names of asyncio, sys and SQLAlchemy."""
PSYCOPGS = {"block", "conn", "cur", "cursor", "each", "errors", "leased", "pgconn", "prepared"}
"""The names of variables and attributes that hold psycopg's objects, or modules of it."""
UNDOCUMENTED = {"generators", "waiting"}
"""psycopg's private modules without an underscore."""
DOCTOR = "cli/_pooler.py"
"""It prepares a statement by a name of its own, which psycopg has no public way for."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_imports(tree: ast.AST) -> Iterator[str]:
    """Every private name of psycopg that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package.startswith("psycopg_") or (
                package == "psycopg"
                and any(is_private(part) or part in UNDOCUMENTED for part in parts)
            ):
                yield name


def test_one_module_imports_what_is_private() -> None:
    """Whatever else needs it imports it from there; `compat` imports psycopg_pool, as its users."""
    found = {file for file, tree in SOURCES.items() if list(private_imports(tree))}
    assert found == {"_psycopg/internals.py", "compat.py", DOCTOR}


def defined(tree: ast.AST) -> Iterator[str]:
    """Every name that a module gives to an attribute, variable, function, class or slot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def last_name(node: ast.expr) -> str:
    """The variable or attribute that an expression ends with, without its underscore."""
    if isinstance(node, ast.Attribute):
        return node.attr.lstrip("_")
    return node.id if isinstance(node, ast.Name) else ""


def accesses(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every private attribute that a module uses of another object, and what holds the object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr, last_name(node.value)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "getattr"
            and isinstance(node.args[1], ast.Constant)
            and is_private(str(node.args[1].value))
        ):
            yield str(node.args[1].value), last_name(node.args[0])


def derived_classes() -> Iterator[tuple[ast.ClassDef, type]]:
    """Every class with a base of psycopg's, and that base."""
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            for base in map(ast.unparse, node.bases):
                package, _, name = base.split("[")[0].rpartition(".")
                if package == "psycopg":
                    yield node, getattr(psycopg, name)


def used() -> Iterator[str]:
    """Every private attribute of psycopg's that is used, as far as the source tells."""
    known = {name for tree in SOURCES.values() for name in defined(tree)} - LISTED
    for tree in SOURCES.values():
        for name, holder in accesses(tree):
            if name not in OURS | OF_OTHERS and (holder in PSYCOPGS or name not in known):
                yield name
    for cls, base in derived_classes():
        names = {name for name, _ in accesses(cls)} | set(defined(cls))
        yield from (name for name in names if is_private(name) and hasattr(base, name))


def test_every_private_attribute_in_use_is_listed() -> None:
    """A new use fails here until the check at import knows of it."""
    assert set(used()) - LISTED == set()


def test_every_listed_name_is_in_use() -> None:
    """One that is not would refuse a psycopg that is as good as another."""
    assert {name for name in LISTED if is_private(name)} - set(used()) == set()


def test_every_listed_name_exists() -> None:
    """In the psycopg that is installed."""
    assert why_unsupported("3.3.0") is None


@pytest.mark.parametrize("version", ["3.2.9", "3.2.13", "3.3.0", "3.3.42", "3.3.1.dev1"])
def test_a_version_that_was_tried_is_supported(version: str) -> None:
    """By its number."""
    assert why_unsupported(version) is None


@pytest.mark.parametrize("version", ["3.2.8", "3.1.20", "3.4.0", "3.4.0b1", "4.0"])
def test_a_version_that_was_not_tried_is_not(version: str) -> None:
    """The reason says which it is."""
    assert why_unsupported(version) == f"psycopg {version} was not tried"


@pytest.mark.parametrize(
    ("table", "owner", "name"),
    [
        (MODULES, "psycopg._preparing", "Missing"),
        (MODULES, "psycopg._missing", "Prepare"),
        (ATTRIBUTES, "psycopg.AsyncConnection", "_missing"),
        (ATTRIBUTES, "psycopg.AsyncMissing", "_tx"),
    ],
)
def test_a_name_that_is_missing_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, table: dict[str, str], owner: str, name: str
) -> None:
    """Wherever it should be."""
    monkeypatch.setitem(table, owner, name)
    assert why_unsupported("3.3.0") == f"{owner} has no {name}"


@pytest.mark.parametrize("file", ["_psycopg/open_work.py", "_psycopg/driver.py"])
def test_what_is_done_without_them_uses_no_private_name(file: str) -> None:
    """Of psycopg's connection."""
    found = [
        node
        for branch in ast.walk(SOURCES[file])
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "SUPPORTED"
        for part in branch.orelse
        for node in ast.walk(part)
    ]
    assert found
    names = {name for node in found for name, holder in accesses(node) if holder != "self"}
    assert not names


def test_the_names_of_both_cases_are_the_same() -> None:
    """Every module can be imported without psycopg's private parts."""
    assert all(hasattr(internals, name) for name in internals.__all__)
