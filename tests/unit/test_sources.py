"""What was worked out before a connect is kept for the next one, unless it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncpool import Connection
from asyncpool._psycopg import sources
from asyncpool._psycopg.sources import Checked
from asyncpool.faults import ConninfoError


def test_the_same_values_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To check them takes as long as psycopg's share of a connect without a password."""
    checked = Checked()
    params = checked.params_of("host=db user=app", set())
    checked.limits_of(params, {"port": 5433}, Connection, set())
    for check in ("check_conninfo", "check_options", "secrets_of", "limits_for"):
        monkeypatch.setattr(sources, check, lambda *_: pytest.fail("checked again"))
    assert checked.params_of("host=db user=app", set()) == {"host": "db", "user": "app"}
    checked.limits_of(params, {"port": 5433}, Connection, set())


def test_another_connection_string_is_checked() -> None:
    """A callable `conninfo` may give another one each time."""
    checked = Checked()
    assert checked.params_of("host=db", set()) == {"host": "db"}
    with pytest.raises(ConninfoError):
        checked.params_of("port=x", set())
    assert checked.params_of("host=other", set()) == {"host": "other"}


def test_a_host_in_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be set while the pool is open."""
    checked = Checked()
    checked.params_of("user=app", set())
    monkeypatch.setenv("PGHOST", "secret@db")
    with pytest.raises(ConninfoError):
        checked.params_of("user=app", set())


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
    params = checked.params_of(conninfo, set())
    checked.limits_of(params, {"connect_timeout": 1}, Connection, set())
    for _ in range(2):
        with pytest.raises(ConninfoError):
            checked.limits_of(params, options, Connection, set())


def test_options_are_checked_with_other_parameters() -> None:
    """Each `hostaddr` belongs to a host."""
    checked = Checked()
    options = {"hostaddr": "127.0.0.1"}
    checked.limits_of(checked.params_of("host=db", set()), options, Connection, set())
    with pytest.raises(ConninfoError):
        checked.limits_of(checked.params_of("host=db,other", set()), options, Connection, set())


def test_the_secrets_of_the_same_values_are_known_each_time() -> None:
    """Those of a connection string, of options, and of options that are refused."""
    checked = Checked()
    for _ in range(2):
        secrets: set[str] = set()
        params = checked.params_of("host=db password=hunter2", secrets)
        assert "hunter2" in secrets
        checked.limits_of(params, {"sslpassword": "swordfish"}, Connection, secrets)
        assert {"hunter2", "swordfish"} <= secrets
        with pytest.raises(ConninfoError):
            checked.limits_of(params, {"sslpassword": "sesame", "x": 1}, Connection, secrets)
        assert "sesame" in secrets


def test_the_limits_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change while the pool is open, as may a service file."""
    checked = Checked()
    params = checked.params_of("host=db", set())
    for limit in ("4", "4", "5"):
        monkeypatch.setenv("PGCONNECT_TIMEOUT", limit)
        assert checked.limits_of(params, {}, Connection, set())["connect_timeout"] == limit


def test_a_service_file_is_read_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its limits are not replaced by the pool's."""
    file, checked = tmp_path / "services", Checked()
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    params = checked.params_of("service=app", set())
    for limit in ("4", "5"):
        file.write_text(f"[app]\nconnect_timeout={limit}\n")
        assert checked.limits_of(params, {}, Connection, set())["connect_timeout"] == limit


def test_the_text_of_a_value_may_change() -> None:
    """The secrets are those of its present text."""

    class Password:
        text = "hunter2"

        def __str__(self) -> str:
            return self.text

    checked, password = Checked(), Password()
    params = checked.params_of("host=db", set())
    for text in ("hunter2", "swordfish"):
        password.text, secrets = text, set[str]()
        checked.limits_of(params, {"password": password}, Connection, secrets)
        assert secrets == {text}
