"""The floors of the house: a module imports only from floors below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncpool

ROOT = Path(asyncpool.__file__).parent
FLOORS = [
    ["errors", "faults", "_settings", "_connector", "_stacks", "_histogram", "_redact", "_events"],
    ["_lexer", "_keywords", "_functions"],
    ["_plain_reads", "_advice"],
    ["_sql"],
    ["_backoff", "stats", "insight"],
    ["_entry", "_waiters"],
    ["_budget"],
    ["_ledger"],
    ["_crew"],
    ["_stock"],
    ["_refusals", "_news"],
    ["_check", "_vigil"],
    ["_core"],
    ["_keeper"],
    [
        "_leaks",
        "_insight",
        "_explain",
        "_dsn",
        "_cancel",
        "_watch",
        "_wire",
        "_cursor",
        "connection",
        "_bond",
        "_callbacks",
        "_conninfo",
        "_psycopg",
        "_process",
        "_keys",
        "_hints",
        "_generators",
        "_ending",
        "_session",
        "_contexts",
        "_profiles",
        "_request",
        "_statement_cache",
        "_channel",
        "_answer",
        "_dispatcher",
        "_oneshot",
        "_overrides",
        "health",
        "_terms",
        "sizing",
        "pool",
        "null_pool",
    ],
    ["manager"],
    ["__init__"],
]
FLOOR = {module: number for number, floor in enumerate(FLOORS) for module in floor}
ANNEXES = {
    "cli": {"asyncpool", "asyncpool.testing"},
    "inspector": {"asyncpool"},
    "integrations": {"asyncpool"},
    "metrics": {"asyncpool"},
    "testing": {"asyncpool", "asyncpool._lexer"},
}
"""What each may import besides its own modules: public names only, never one another's insides; but
what tells statements apart for the tests' server is the lexer that the pool has."""
GENERIC = [
    "_connector",
    "_entry",
    "_waiters",
    "_budget",
    "_ledger",
    "_crew",
    "_stock",
    "_stacks",
    "_redact",
    "_events",
    "_news",
    "_refusals",
    "_check",
    "_vigil",
    "_core",
    "_keeper",
]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every module that a file imports from, wherever in it, with the name that it takes."""
    package = ["asyncpool", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((source, alias.name) for alias in node.names)


def rooms(path: Path) -> set[str]:
    """The modules of ours that a file imports."""
    found = set()
    for source, name in imports(path):
        parts = source.split(".")
        if parts[0] != "asyncpool":
            continue
        inner = parts[1] if len(parts) > 1 else name
        found.add(inner if inner in FLOOR or inner in ANNEXES else "__init__")
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_every_module_has_its_floor() -> None:
    """A new one is given its place here."""
    assert {path.stem for path in ROOT.glob("*.py")} == FLOOR.keys()
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == ANNEXES.keys()


@pytest.mark.parametrize("module", FLOOR)
def test_a_module_imports_from_its_own_floor_and_below(module: str) -> None:
    """Under TYPE_CHECKING and inside functions too; never an annex."""
    above = {
        room
        for room in rooms(ROOT / f"{module}.py")
        if room in ANNEXES or FLOOR[room] > FLOOR[module]
    }
    assert not above


@pytest.mark.parametrize("module", FLOORS[0])
def test_the_ground_floor_imports_nothing_of_ours(module: str) -> None:
    """It is words only."""
    assert rooms(ROOT / f"{module}.py") == set()


@pytest.mark.parametrize("floor", FLOORS, ids=lambda floor: floor[0])
def test_there_is_no_cycle_on_a_floor(floor: list[str]) -> None:
    """Taking away whoever needs no other leaves nobody."""
    needs = {module: rooms(ROOT / f"{module}.py") & set(floor) for module in floor}
    while free := [module for module, others in needs.items() if not others]:
        for module in free:
            del needs[module]
        for others in needs.values():
            others.difference_update(free)
    assert not needs


@pytest.mark.parametrize("module", GENERIC)
def test_the_generic_core_knows_no_psycopg(module: str) -> None:
    """Which is what lets the simulator run it."""
    drivers = {source.split(".")[0] for source, _ in imports(ROOT / f"{module}.py")}
    assert "psycopg" not in drivers


@pytest.mark.parametrize(
    "path",
    [path for annex in ANNEXES for path in files(annex)],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_an_annex_imports_public_names_only(path: Path) -> None:
    """From the package itself, from its own folder, or what its neighbour shows to everybody."""
    annex = path.relative_to(ROOT).parts[0]
    for source, name in imports(path):
        if source.split(".")[0] != "asyncpool" or source.startswith(f"asyncpool.{annex}"):
            continue
        public = name == "" or not name.startswith("_")
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
