"""What was checked before a connect is not checked again, unless it has changed."""

from __future__ import annotations

from typing import Any

import pytest

from asyncpool import Connection
from asyncpool._psycopg import sources
from asyncpool._psycopg.sources import Checked
from asyncpool.faults import ConninfoError


def test_the_same_values_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To check them takes as long as psycopg's share of a connect without a password."""
    checked = Checked()
    params = checked.params_of("host=db user=app")
    checked.check(params, {"port": 5433}, Connection)
    for check in ("check_conninfo", "check_options"):
        monkeypatch.setattr(sources, check, lambda *_: pytest.fail("checked again"))
    assert checked.params_of("host=db user=app") == {"host": "db", "user": "app"}
    checked.check(params, {"port": 5433}, Connection)


def test_another_connection_string_is_checked() -> None:
    """A callable `conninfo` may give another one each time."""
    checked = Checked()
    assert checked.params_of("host=db") == {"host": "db"}
    with pytest.raises(ConninfoError):
        checked.params_of("port=x")
    assert checked.params_of("host=other") == {"host": "other"}


def test_a_host_in_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be set while the pool is open."""
    checked = Checked()
    checked.params_of("user=app")
    monkeypatch.setenv("PGHOST", "secret@db")
    with pytest.raises(ConninfoError):
        checked.params_of("user=app")


@pytest.mark.parametrize(
    ("conninfo", "options"),
    [
        ("host=db", {"connect_timeout": True}),
        ("host=db", {"connect_timeout": 1, "unheard_of": 1}),
        ("host=db,db", {"connect_timeout": 1, "hostaddr": "127.0.0.1"}),
    ],
    ids=["another type", "another name", "another value"],
)
def test_other_options_are_checked(conninfo: str, options: dict[str, Any]) -> None:
    """1 and True are equal, but libpq takes only one of them as a duration."""
    checked = Checked()
    params = checked.params_of(conninfo)
    checked.check(params, {"connect_timeout": 1}, Connection)
    for _ in range(2):
        with pytest.raises(ConninfoError):
            checked.check(params, options, Connection)


def test_options_are_checked_with_other_parameters() -> None:
    """Each `hostaddr` belongs to a host."""
    checked = Checked()
    options = {"hostaddr": "127.0.0.1"}
    checked.check(checked.params_of("host=db"), options, Connection)
    with pytest.raises(ConninfoError):
        checked.check(checked.params_of("host=db,other"), options, Connection)
