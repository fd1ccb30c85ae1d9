"""The README and the pages of docs/: what they show runs, and what they point at is there."""

from __future__ import annotations

import ast
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool.testing import ServerUnsupported
from tests._tools import few

from ._docs import DOCUMENTS, LANGUAGES, README, ROOT, Reader, broken_links, languages, shell_lines

CI = ROOT / ".ci" / "run"
LIBPQ = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "sslmode": "PGSSLMODE",
}
"""The variables from which libpq takes what a connection string leaves out."""

LIBRARIES = {
    "alembic.md": ["alembic"],
    "pgvector.md": ["pgvector"],
    "task_queues.md": ["celery", "taskiq"],
}
"""What pages need that the extra `test` has not; `.ci/run` runs them where it is installed."""

EXTENSIONS = {"pgvector.md": "vector"}
"""What pages need of the server; `.ci/run` runs them on one that has it."""

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


@pytest.fixture
def database(asyncpool_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A database `app`, which is the one that readers of the documents are taken to have."""
    params = {key: str(value) for key, value in conninfo_to_dict(asyncpool_dsn).items()}
    for key, variable in LIBPQ.items():
        if key in params:
            monkeypatch.setenv(variable, params[key])
        else:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PGDATABASE", "app")
    monkeypatch.setenv("DATABASE_URL", make_conninfo(asyncpool_dsn, dbname="app"))
    with psycopg.connect(asyncpool_dsn, autocommit=True) as conn:
        try:
            conn.execute("CREATE DATABASE app")
        except psycopg.errors.DuplicateDatabase:
            pytest.skip("the server has a database `app` of its own")
        roles = set(conn.execute("SELECT quote_ident(rolname) FROM pg_roles").fetchall())
        yield
        deadline = time.monotonic() + 10  # only ours see the backend gone before close() returns
        query = "SELECT pid FROM pg_stat_activity WHERE datname = 'app'"
        while (left := conn.execute(query).fetchall()) and time.monotonic() < deadline:
            time.sleep(0.01)
        conn.execute("DROP DATABASE app (FORCE)")
        for (role,) in conn.execute("SELECT quote_ident(rolname) FROM pg_roles").fetchall():
            if (role,) not in roles:
                conn.execute(f"DROP ROLE {role}".encode())
        assert left == [], "connections are left"


def needs_extension(dsn: str, name: str | None) -> None:
    """Skip the test unless the server has this extension's files."""
    query = "SELECT true FROM pg_available_extensions WHERE name = %s"
    if name is not None:
        with psycopg.connect(dsn) as conn:
            if not conn.execute(query, [name]).fetchall():
                pytest.skip(f"the server does not have the extension {name}")


@pytest.mark.parametrize(
    "path",
    few(sorted(DOCUMENTS, key=lambda path: path.name != "README.md")),
    ids=lambda path: path.name,
)
def test_every_python_block_runs(
    path: Path, asyncpool_dsn: str, database: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In order, as its reader would run it, with warnings as errors; and nothing is left of it."""
    assert path.exists(), f"{path.name} is missing"
    for library in LIBRARIES.get(path.name, ()):
        pytest.importorskip(library)
    needs_extension(asyncpool_dsn, EXTENSIONS.get(path.name))
    caplog.set_level(logging.INFO)
    try:
        Reader(tmp_path).read(path)
    except ServerUnsupported as error:
        pytest.skip(str(error))
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == []


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("assert fine is False", AssertionError),
        ("await anything()", NameError),
        ("import asyncio; asyncio.run(anything())", NameError),
        ("import warnings; warnings.warn('old')", UserWarning),
    ],
)
def test_a_block_that_is_wrong_fails_with_its_line(
    block: str, error: type[Exception], tmp_path: Path
) -> None:
    """The runner's own test: what a block raises, a warning too, comes out."""
    document = tmp_path / "wrong.md"
    document.write_text(f"# Wrong\n\n```python\nfine = True\n{block}\n```\n", encoding="utf-8")
    with pytest.raises(error) as caught:
        Reader(tmp_path).read(document)
    lines = [entry.lineno + 1 for entry in caught.traceback if str(entry.path) == str(document)]
    assert lines == [5]


def test_what_a_block_leaves_is_an_error(tmp_path: Path) -> None:
    """A task that nobody waits for would be somebody's bug."""
    document = tmp_path / "untidy.md"
    block = "import asyncio\nawait asyncio.sleep(0)\nasyncio.create_task(asyncio.sleep(60))"
    document.write_text(f"```python\n{block}\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="tasks are left"):
        Reader(tmp_path).read(document)


@each_document
def test_every_block_says_its_language(path: Path) -> None:
    """One that is Python by another name, such as `py`, would not be run."""
    assert languages(path.read_text(encoding="utf-8")) <= LANGUAGES


@each_document
def test_every_link_within_the_project_leads_somewhere(path: Path) -> None:
    """To a file, a heading or a test that exists: `test_x.py#test_name` is the test of that name.

    Guarantees are linked to the tests that show them, so a test that is renamed is renamed there.
    """
    assert list(broken_links(path)) == []


def test_the_architecture_page_names_what_exists() -> None:
    """The tree has every module but the annexes'; the walks name what these files define."""
    package = ROOT / "asyncpool"
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = text.partition("```")[2].partition("```")[0]
    folders = (package, *(each for each in package.iterdir() if each.name.startswith("_")))
    modules = {path.name for folder in folders for path in folder.glob("*.py")}
    assert set(re.findall(r"\w+\.py", tree)) == modules
    steps = re.findall(r"`([\w/]+\.py)`\s+`([\w.]+)`", text)
    assert len(steps) > 30
    assert [f"{file} {name}" for file, name in steps if name not in names(package / file)] == []


def names(file: Path) -> set[str]:
    """Return what a module defines: functions, classes, methods, constants with a type."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            methods = (ast.FunctionDef, ast.AsyncFunctionDef)
            inside = ast.walk(node)  # under a condition too
            found |= {f"{node.name}.{each.name}" for each in inside if isinstance(each, methods)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
    return found


def test_the_readmes_two_commands_are_those_that_ci_runs() -> None:
    """CI runs the README's commands in a fresh environment, letter by letter."""
    assert README.exists(), "README.md is missing"
    commands = [
        line
        for line in shell_lines(README.read_text(encoding="utf-8"))
        if line.startswith("python3 -m venv")
    ]
    assert len(commands) == 2, f"two commands for setting up, not {commands}"
    assert CI.exists(), ".ci/run is missing"
    script = CI.read_text(encoding="utf-8")
    assert [command for command in commands if command not in script] == []
