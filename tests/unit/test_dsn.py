"""The time limits of a connection are added where the user has set none, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncpool._psycopg.dsn import KEEPALIVES, limits_for

ALL = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the settings of this machine."""
    for name in ("PGSERVICE", "PGCONNECT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))


def has_service(folder: Path, *lines: str) -> None:
    """Write a service file with one service, named `app`."""
    (folder / "services").write_text("\n".join(["[app]", "host=192.0.2.7", *lines, ""]))


def test_all_limits_are_added_where_none_is_set() -> None:
    """libpq's defaults are minutes and hours."""
    assert limits_for({}) == ALL
    assert limits_for({"host": "db", "dbname": "app"}, {"autocommit": True}) == ALL


@pytest.mark.parametrize("place", ["conninfo", "kwargs"])
@pytest.mark.parametrize("value", [0, "0", 1, "77"])
@pytest.mark.parametrize("name", ALL)
def test_a_users_limit_is_not_changed(name: str, value: Any, place: str) -> None:
    """A user's value stays in force, and 0 is a value too."""
    said = {name: value}
    added = limits_for(said, {}) if place == "conninfo" else limits_for({}, said)
    assert name not in added
    assert added.keys() | {"tcp_user_timeout"} == ALL.keys() - {name} | {"tcp_user_timeout"}


def test_none_sets_no_limit() -> None:
    """psycopg drops a keyword that is None, so what the connection string has stays in force."""
    assert limits_for(dict.fromkeys(ALL)) == ALL
    assert "connect_timeout" not in limits_for({"connect_timeout": "3"}, {"connect_timeout": None})


def test_pgconnect_timeout_takes_the_place_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """libpq and psycopg both read the variable."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    assert limits_for({})["connect_timeout"] == "4"
    assert "connect_timeout" not in limits_for({"connect_timeout": 2})


def test_keepalives_that_are_off_stay_off() -> None:
    """The numbers have no effect then, and `keepalives` itself is never added."""
    assert "keepalives" not in limits_for({"keepalives": "0"})
    assert "keepalives" not in limits_for({})


@pytest.mark.parametrize(
    ("said", "milliseconds"),
    [
        ({"keepalives_idle": 60, "keepalives_interval": 20, "keepalives_count": 6}, 180_000),
        ({"keepalives_idle": "1", "keepalives_interval": "1"}, 4_000),
        ({"keepalives_count": 9}, 55_000),
    ],
)
def test_the_users_keepalives_keep_their_length(said: dict[str, Any], milliseconds: int) -> None:
    """On Linux tcp_user_timeout ends unanswered keepalives, so it must be as long as they last."""
    assert limits_for(said)["tcp_user_timeout"] == milliseconds


@pytest.mark.parametrize("name", KEEPALIVES)
@pytest.mark.parametrize("value", ["0", -1, "soon"])
def test_keepalives_left_to_the_system_leave_tcp_user_timeout_too(name: str, value: Any) -> None:
    """0 means the system's number, which is unknown here; libpq refuses other values."""
    assert "tcp_user_timeout" not in limits_for({name: value})


def test_the_last_mapping_has_precedence() -> None:
    """A keyword has precedence over the connection string."""
    added = limits_for({"keepalives_idle": "500"}, {"keepalives_idle": 5})
    assert added["tcp_user_timeout"] == 20_000


@pytest.mark.parametrize("by_variable", [False, True], ids=["service=", "PGSERVICE"])
def test_the_limits_of_a_service_file_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    """They count as the user's, with less precedence than the connection string's."""
    has_service(tmp_path, *(f"{name}=77" for name in ALL))
    given = {} if by_variable else {"service": "app"}
    if by_variable:
        monkeypatch.setenv("PGSERVICE", "app")
    # psycopg reads no service file, so the limit that it enforces itself is passed on.
    assert limits_for(given) == {"connect_timeout": "77"}
    assert limits_for(given, {"connect_timeout": 5}) == {}


def test_a_service_file_without_limits_gets_them(tmp_path: Path) -> None:
    """Its connections need the limits like any others."""
    has_service(tmp_path, "dbname=app")
    assert limits_for({"service": "app"}) == ALL


def test_a_service_file_has_precedence_over_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq has the same precedence."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    has_service(tmp_path)
    assert limits_for({"service": "app"})["connect_timeout"] == "4"
    has_service(tmp_path, "connect_timeout=7")
    assert limits_for({"service": "app"})["connect_timeout"] == "7"


def test_keepalives_of_a_service_file_keep_their_length(tmp_path: Path) -> None:
    """They determine tcp_user_timeout like those of a connection string."""
    has_service(tmp_path, "keepalives_idle=60")
    added = limits_for({"service": "app"})
    assert "keepalives_idle" not in added
    assert added["tcp_user_timeout"] == 75_000


def test_libpq_reports_a_service_that_does_not_exist(tmp_path: Path) -> None:
    """The connect fails with libpq's error; nothing is raised before."""
    assert limits_for({"service": "app"}) == ALL
    has_service(tmp_path)
    assert limits_for({"service": "other"}) == ALL
