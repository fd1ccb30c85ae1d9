"""Passwords of any characters in any notation appear in no error, log or report."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import AsyncConnectionPool, Connection, PoolError
from tests._tools import few

from ._tools import OwnConnect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncpool.testing import Server

# Two words that occur nowhere else, with any characters around and between them.
WORDS = ("Zqx7w", "kV9pj")
MARKS = st.text(st.sampled_from(" '\"\\@:/?#%&=+,;[]{}()<>|$~^`!*._-\t\n\x7f\0äß€\U0001f600\udc80"))
PASSWORDS = st.tuples(MARKS, st.just(WORDS[0]), MARKS, st.just(WORDS[1]), MARKS).map("".join)


def _conninfo(dsn: str, password: str) -> dict[str, Any]:
    return {"conninfo": f"{dsn} password={password}"}


def _quoted(dsn: str, password: str) -> dict[str, Any]:
    return {"conninfo": f"{dsn} password='{password}'"}


def _first(dsn: str, password: str) -> dict[str, Any]:
    return {"conninfo": f"password={password} {dsn}"}


def _made(dsn: str, password: str) -> dict[str, Any]:
    escaped = password.replace("\\", "\\\\").replace("'", "\\'")
    return {"conninfo": f"{dsn} password='{escaped}'"}


def _url(dsn: str, password: str) -> dict[str, Any]:
    there = conninfo_to_dict(dsn)
    return {"conninfo": f"postgresql://app:{password}@{there['host']}:{there['port']}/app"}


def _encoded_url(dsn: str, password: str) -> dict[str, Any]:
    return _url(dsn, quote(password, safe="", errors="surrogatepass"))


def _keyword(dsn: str, password: str) -> dict[str, Any]:
    return {"conninfo": dsn, "kwargs": {"password": password}}


def _in_host(dsn: str, password: str) -> dict[str, Any]:
    return {"conninfo": dsn, "kwargs": {"host": _url(dsn, password)["conninfo"]}}


def _in_host_of_conninfo(dsn: str, password: str) -> dict[str, Any]:
    return {"conninfo": f"host={_url(dsn, password)['conninfo']}"}


def _in_dbname(dsn: str, password: str) -> dict[str, Any]:
    return {"conninfo": dsn, "kwargs": {"dbname": _url(dsn, password)["conninfo"]}}


def _misspelt(dsn: str, password: str) -> dict[str, Any]:
    return {"conninfo": dsn, "kwargs": {"password": password, "aplication_name": "x"}}


def _of_sqlalchemy(dsn: str, password: str) -> dict[str, Any]:
    return {"conninfo": _url(dsn, password)["conninfo"].replace("://", "+psycopg://", 1)}


WAYS: list[Callable[[str, str], dict[str, Any]]] = [
    *(_conninfo, _quoted, _first, _made, _url, _encoded_url, _keyword),
    *(_in_host, _in_host_of_conninfo, _in_dbname, _misspelt, _of_sqlalchemy),
]


@pytest.fixture(scope="module")
def refusing_dsn(asyncpool_server: Server) -> str:
    """Return the DSN, without a password, of a role that the server refuses."""
    params = conninfo_to_dict(asyncpool_server.dsn) | {"application_name": "secrets"}
    params.pop("password", None)
    return make_conninfo("", **params | {"user": "nobody_of_this_name", "dbname": "app"})


class LogRecorder(logging.Handler):
    """A handler that keeps all messages and the fields of their records."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.getMessage()} {vars(record)!r}\n"


@pytest.fixture(scope="module")
def log() -> Iterator[LogRecorder]:
    """Capture the log of everything at level DEBUG."""
    handler, root = LogRecorder(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def chain(error: BaseException | None) -> Iterator[str]:
    """Yield an error and all errors in its chain, shown or suppressed."""
    while error is not None:
        facts = {name: fact for name, fact in vars(error).items() if name != "_pgconn"}
        yield f"{error} {error!r} {error.args!r} {facts!r}"
        yield from chain(error.__cause__)
        error = error.__context__


CLASSES = st.sampled_from([Connection, psycopg.AsyncConnection, OwnConnect])


async def reports_of(options: dict[str, Any], *, callables: bool, kind: type[Any]) -> str:
    """Return all that a pool reports about a failed connect and about itself."""
    if callables:
        options = {name: (lambda given=given: given) for name, given in options.items()}
    try:
        pool = AsyncConnectionPool(**options, connection_class=kind, min_size=1, timeout=0.1)
    except ValueError as error:
        return " ".join(chain(error))
    async with pool:
        reports = ""
        for use in (pool.getconn, lambda: pool.execute("SELECT 1")):
            try:
                await use()
            except (PoolError, ValueError) as error:
                reports += " ".join(chain(error))
        health, insight = await pool.health(), pool.explain()
        feed = json.dumps(insight.as_dict())
        reports += f" {pool!r} {pool.stats()!r} {health!r} {health.as_dict()}"
        return f"{reports} {insight} {insight!r} {feed}"


@pytest.mark.parametrize("way", few(WAYS, 2), ids=lambda way: way.__name__.strip("_"))
@given(password=PASSWORDS, callables=st.booleans(), kind=CLASSES)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # each example waits for a pool, so shrinking takes long
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_part_of_a_password_shows(
    way: Callable[[str, str], dict[str, Any]],
    *,
    refusing_dsn: str,
    log: LogRecorder,
    password: str,
    callables: bool,
    kind: type[Any],
) -> None:
    """No log, error, cause, report or statistic shows it, whether libpq can parse it or not."""
    log.text = ""
    reports = asyncio.run(reports_of(way(refusing_dsn, password), callables=callables, kind=kind))
    assert reports
    for word in WORDS:
        assert word not in reports
        assert word not in log.text
