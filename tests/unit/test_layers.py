"""The floors of the house: a module imports only from floors below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import asyncpool
from asyncpool._psycopg.internals import ATTRIBUTES, OPTIONAL

ROOT = Path(asyncpool.__file__).parent
FLOORS = [
    ["errors", "faults"],
    ["_sql"],
    ["_core"],
    ["stats"],
    ["insight"],
    ["_psycopg"],
    ["_diagnostics"],
    ["_pipeline"],
    ["_blocks"],
    ["health", "sizing"],
    ["pool"],
    ["null_pool"],
    ["manager", "compat"],
    ["_cluster"],
    ["cluster"],
    ["__init__"],
]
"""Packages and public modules, from the ground up."""
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
PACKAGES = [room for room in FLOOR if (ROOT / room).is_dir()]
ANNEXES = {
    "__main__": {"asyncpool.cli"},
    "cli": {"asyncpool", "asyncpool.testing"},
    "inspector": {"asyncpool"},
    "integrations": {"asyncpool"},
    "metrics": {"asyncpool"},
    "testing": {"asyncpool", "asyncpool._sql.lexer"},
}
"""What each may import besides its own modules: public names only, never one another's insides; but
what tells statements apart for the tests' server is the lexer that the pool has."""

MAX_LINES = 350
"""A longer module has more than one idea."""

OWNERS = {"self", "cls"}
HOMES = {
    **dict.fromkeys(
        ["core", "ledger", "store", "runtime", "outages", "readiness", "entry", "queue", "budget"],
        "_core",
    ),
    **dict.fromkeys(["driver", "handle", "transport"], "_psycopg"),
    **dict.fromkeys(["dispatcher", "channel", "request"], "_pipeline"),
    "session": "_blocks",
}
"""The packages of the objects that have these names wherever they are used."""
LIBRARIES = {
    *(name for names in ATTRIBUTES.values() for name in names.split()),
    *OPTIONAL,
    "_exit",
    "_get_running_loop",
    "_getframe",
    "_log_destroy_pending",
}
"""The underscore attributes of psycopg, asyncio, os and sys that are used."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every module that a file imports from, wherever in it, with the name that it takes."""
    package = ["asyncpool", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((source, alias.name) for alias in node.names)


def modules(path: Path) -> Iterator[list[str]]:
    """Every module of ours that a file imports, as the parts of its path below `asyncpool`."""
    for source, name in imports(path):
        first, *parts = source.split(".")
        if first == "asyncpool":
            found = [*parts, name]
            is_module = (ROOT / "/".join(found)).with_suffix(".py").is_file()
            yield found if is_module else parts or ["__init__"]


def rooms(path: Path) -> set[str]:
    """The packages and public modules that a file imports from."""
    return {parts[0] for parts in modules(path)}


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def files_of(room: str) -> list[Path]:
    return files(room) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]


def test_every_module_has_its_floor() -> None:
    """A new one is given its place here."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {path.stem for path in ROOT.glob("*.py")} | packages == FLOOR.keys() | ANNEXES.keys()


@pytest.mark.parametrize("room", FLOOR)
def test_a_room_imports_from_floors_below_it(room: str) -> None:
    """Under TYPE_CHECKING and inside functions too; never an annex."""
    for path in files_of(room):
        others = rooms(path) - {room}
        above = {each for each in others if each in ANNEXES or FLOOR[each] >= FLOOR[room]}
        assert not above, f"{path.relative_to(ROOT)} imports from {above}"


@pytest.mark.parametrize("package", [*PACKAGES, *ANNEXES])
def test_there_is_no_circle_inside_a_package(package: str) -> None:
    """Taking away whichever module needs no other leaves none."""
    needs = {
        path.stem: {parts[1] for parts in modules(path) if parts[0] == package and parts[1:]}
        for path in files(package)
    }
    while free := [module for module, others in needs.items() if not others]:
        for module in free:
            del needs[module]
        for others in needs.values():
            others.difference_update(free)
    assert not needs


def home(path: Path) -> str:
    """The package of a file; the public modules count as one."""
    return path.relative_to(ROOT).parts[0] if path.parent != ROOT else "asyncpool"


def private_names(tree: ast.AST) -> Iterator[str]:
    """The underscore names that a module defines, in its classes too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in OWNERS:
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            yield from ast.literal_eval(node.value)


def private_uses(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """The underscore attributes of other objects that a module uses: owner, name and line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            owner = ast.unparse(node.value)
            if owner not in OWNERS and not owner.startswith("super("):
                yield re.split(r"\W", owner)[-1].lstrip("_"), node.attr, node.lineno


@pytest.mark.parametrize("package", sorted({home(path) for path in ROOT.rglob("*.py")}))
def test_no_package_uses_the_private_attributes_of_another(package: str) -> None:
    """An object's underscore attributes are for the modules beside its class alone."""
    own = {path: parsed(path) for path in ROOT.rglob("*.py") if home(path) == package}
    known = {name for tree in own.values() for name in private_names(tree)} | LIBRARIES
    found = [
        f"{path.relative_to(ROOT)}:{line} uses {name}"
        for path, tree in own.items()
        for owner, name, line in private_uses(tree)
        if name not in known or HOMES.get(owner, package) != package
    ]
    assert not found


def test_the_core_knows_no_driver() -> None:
    """The simulator runs it with a fake one."""
    known = {source.split(".")[0] for path in files("_core") for source, _ in imports(path)}
    assert "psycopg" not in known


@pytest.mark.parametrize(
    "path",
    [path for annex in ANNEXES for path in files_of(annex)],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_an_annex_imports_public_names_only(path: Path) -> None:
    """From the package itself, from its own folder, or what its neighbour shows to everybody."""
    annex = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for source, name in imports(path):
        if source.split(".")[0] != "asyncpool" or source.startswith(f"asyncpool.{annex}"):
            continue
        public = name == "__version__" or not name.startswith("_")
        assert public, f"{name} of {source} is private"
        assert source in ANNEXES[annex], f"{source} is not for {annex}"
        assert not (source == "asyncpool" and name in FLOOR), f"{name} is a module, not a name"


def test_what_neighbours_import_of_testing_is_public() -> None:
    """`cli` takes from `asyncpool.testing` what any user may."""
    import asyncpool.testing

    taken = {
        name
        for path in files("cli")
        for source, name in imports(path)
        if source == "asyncpool.testing"
    }
    assert taken <= set(asyncpool.testing.__all__)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_is_too_long(path: Path) -> None:
    """One idea a module."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
