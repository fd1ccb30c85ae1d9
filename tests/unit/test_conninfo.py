"""Mistakes in a connection string or `kwargs`: the constructor raises, and hides the value."""

from __future__ import annotations

import math
from typing import Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool, PoolManager

SECRET = "zqx7-kvw9"  # noqa: S105 - it opens nothing
WORD = "Zq2xK"
"""A piece of a password that has something of the name of an option behind it."""


class Own(psycopg.AsyncConnection[Any]):
    """A class whose `connect` takes an option that libpq does not know."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        kwargs.pop("tenant", None)
        return await super().connect(conninfo, **kwargs)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings of this machine."""
    for name in ("PGHOST", "PGHOSTADDR", "PGSSLMODE", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=/run/pg@15",
        "host=/run/pg@15,/run/pg@16 port=5432,5433",
        "host=@asyncpool",
        "postgresql://%2Frun%2Fpg%4015/db",
        "postgresql:///db?host=/run/pg@15",
        "postgresql://user:p%40ss@%2Frun%2Fpg%4015/db",
        "postgresql://user@localhost/db%40tenant",
        "host=localhost dbname=db@tenant user=me@here",
        "postgresql://[::1]:5432,127.0.0.1/db?target_session_attrs=read-write",
        "host=a,b port='' connect_timeout=2.5 keepalives=1 sslmode=verify-full",
        "host=a,b port=5432, gssencmode=require",
        "sslmode=require sslnegotiation=direct",
        "host=/run password=http://a@b@c options='-c a.b=http://d@e@f'",
        "",
    ],
)
def test_connection_strings_that_libpq_accepts_are_accepted(conninfo: str) -> None:
    """An @ in the folder of a Unix socket is no sign of a password."""
    for kind in (AsyncConnectionPool, AsyncNullConnectionPool):
        kind(conninfo, max_size=4)
    AsyncConnectionPool(kwargs=psycopg.conninfo.conninfo_to_dict(conninfo))


@pytest.mark.parametrize(
    ("conninfo", "kwargs"),
    [
        ("host=localhost aplication_name=x", {}),
        ("host=localhost password=x aplication_name=x", {}),
        ("postgresql://localhost/db?aplication_name=x", {}),
        ("postgresql://user:secret@localhost/db?aplication_name=x", {}),
        ("", {"aplication_name": "x"}),
    ],
)
def test_a_misspelt_option_is_refused_at_once_by_name(
    conninfo: str, kwargs: dict[str, Any]
) -> None:
    """The error suggests the correct name."""
    message = "the option aplication_name, which .*: did you mean application_name"
    with pytest.raises(ValueError, match=message) as caught:
        AsyncConnectionPool(conninfo, kwargs=kwargs)
    assert isinstance(caught.value, psycopg.ProgrammingError)


def test_an_option_of_another_library_is_named() -> None:
    """Other drivers take such options in a URL."""
    with pytest.raises(ValueError, match="the option schema,"):
        AsyncConnectionPool("postgresql://user:secret@localhost/db?schema=public")
    with pytest.raises(ValueError, match="the option pool_size,"):
        AsyncConnectionPool("host=localhost pool_size=5")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sslmode", "requre"),
        ("gssencmode", "of"),
        ("channel_binding", "never"),
        ("target_session_attrs", "read_write"),
        ("port", "abc"),
        ("port", "5432,abc"),
        ("port", "123456"),
        ("keepalives_idle", "soon"),
        ("tcp_user_timeout", "1s"),
        ("connect_timeout", "1s"),
    ],
)
def test_a_value_that_libpq_refuses_is_an_error_immediately(name: str, value: str) -> None:
    """The error names the option, wherever it is given."""
    for conninfo in (f"{name}={value}", f"postgresql://h/db?{name}={value}"):
        with pytest.raises(ValueError, match=f"option {name} "):
            AsyncConnectionPool(conninfo)
    with pytest.raises(ValueError, match=f"option {name} "):
        AsyncConnectionPool(kwargs={name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("connect_timeout", value) for value in ("inf", "nan", "1e400", math.inf, True)),
        *(("port", value) for value in ("5_432", "٥٤٣٢", "5432,5_433", True)),
        *(("keepalives", value) for value in (True, False, 1.0, "1_0", "99999999999")),
        *(("hostaddr", value) for value in ("localhost", "127.0.0.1,localhost")),
    ],
)
def test_a_value_that_no_connect_can_succeed_with_is_refused_at_once(name: str, value: Any) -> None:
    """Otherwise the pool would try again until the waiters' time limit."""
    with pytest.raises(ValueError, match=f"option {name} "):
        AsyncConnectionPool(kwargs={name: value})
    if isinstance(value, str):
        with pytest.raises(ValueError, match=f"option {name} "):
            AsyncConnectionPool(f"{name}={value}")


def test_hosts_that_do_not_match_their_addresses_are_refused_at_once() -> None:
    """An address for each host, or none."""
    with pytest.raises(ValueError, match="option hostaddr "):
        AsyncConnectionPool("host=a,b hostaddr=127.0.0.1")
    AsyncConnectionPool("host=a,b hostaddr=127.0.0.1", kwargs={"hostaddr": "127.0.0.1,::1"})
    AsyncConnectionPool("host=a,b hostaddr=127.0.0.1,")
    AsyncConnectionPool("hostaddr=127.0.0.1,::1")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"conninfo": "host=a"}, "option conninfo,"),
        ({"kwargs": {}}, "option kwargs,"),
        ({"context": 3}, "context in kwargs must have adapters, not be of int"),
        ({3: 3}, "names in kwargs must be str, not int"),
    ],
)
def test_keywords_that_connect_cannot_take_are_refused_at_once(
    kwargs: dict[Any, Any], message: str
) -> None:
    """With what is wrong with them."""
    with pytest.raises(ValueError, match=message):
        AsyncConnectionPool(kwargs=kwargs)
    AsyncConnectionPool(kwargs={"context": psycopg.adapters, "row_factory": None})


def test_a_keyword_replaces_the_value_of_the_string() -> None:
    """A value that a keyword replaces is not checked; None keeps the string's value."""
    AsyncConnectionPool("sslmode=requre", kwargs={"sslmode": "require"})
    with pytest.raises(ValueError, match="option sslmode "):
        AsyncConnectionPool("sslmode=requre", kwargs={"sslmode": None})
    AsyncConnectionPool(kwargs={"no_such_option": None, "autocommit": True})


def test_a_class_with_its_own_connect_may_take_more() -> None:
    """Options of such a class are not checked."""
    AsyncConnectionPool(connection_class=Own, kwargs={"tenant": "a", "host": "cloud://a:b:c"})
    with pytest.raises(ValueError, match="the option tenant,"):
        AsyncConnectionPool(kwargs={"tenant": "a"})


def test_options_that_are_set_later_are_checked_too() -> None:
    """After the error the pool keeps its previous options."""
    pool = AsyncConnectionPool("host=localhost", kwargs={"autocommit": True})
    with pytest.raises(ValueError, match="aplication_name"):
        pool.conninfo = "host=localhost aplication_name=x"
    with pytest.raises(ValueError, match="aplication_name"):
        pool.kwargs = {"aplication_name": "x"}
    assert pool.conninfo == "host=localhost"
    assert pool.kwargs == {"autocommit": True}


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg", "psycopg2"])
def test_the_error_for_an_sqlalchemy_url_names_the_replacement(driver: str) -> None:
    """Such a URL names a driver, which libpq does not know."""
    url = f"postgresql+{driver}://user:{SECRET}@localhost/db"
    manager: PoolManager[str] = PoolManager(max_connections=4)
    for use in (AsyncConnectionPool, manager.pool):
        with pytest.raises(ValueError, match=rf"\+{driver}://.*: write postgresql://") as told:
            use(url)
        assert SECRET not in str(told.value)


URL = f"postgresql://user:{SECRET}@localhost/db"


@pytest.mark.parametrize(
    ("conninfo", "kwargs"),
    [
        (f"host={URL}", {}),
        ("", {"host": URL}),
        ("", {"host": f"localhost,{URL}"}),
        ("", {"host": f"user:{SECRET}@localhost"}),
        ("", {"dbname": URL}),
        ("", {"user": URL}),
        ("", {"port": SECRET}),
        (f"postgresql://user:{SECRET}/x@localhost/db", {}),
        (f"postgresql://user:{SECRET}@x@localhost/db", {}),
        (f"host=localhost password=my {SECRET}", {}),
        (f"host=localhost password=my {SECRET.replace('-', '_')}=x", {}),
        (f"host=localhost password=x {WORD}password=x", {}),
        (f"host=localhost password=x {WORD}K password=x", {}),
        (f"host=localhost password=x sslpassword{WORD}=x", {}),
        (f"host=localhost password=x application_name_{WORD}=x", {}),
        (f"host=localhost sslpassword=x {WORD}_passfile=x", {}),
        (f"postgresql://localhost/db?password=x&{WORD}password=x", {}),
        (f"postgresql://localhost/db?user=u&{WORD}password=x@y", {}),
        (f"host=localhost password='{SECRET}", {}),
        (f"host=localhost password={SECRET}\udc80", {}),
        (f"host=localhost password={SECRET}\0x", {}),
    ],
)
def test_a_password_in_the_wrong_place_is_refused_and_not_shown(
    conninfo: str, kwargs: dict[str, Any]
) -> None:
    """Neither the error nor the errors in its chain show the password."""
    with pytest.raises(ValueError, match="conninfo") as caught:
        AsyncConnectionPool(conninfo, kwargs=kwargs)
    error: BaseException | None = caught.value
    while error is not None:
        for part in (SECRET, SECRET.replace("-", "_"), WORD):
            assert part not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("name", ["user", "dbname"])
def test_a_name_that_looks_like_a_url_is_refused(name: str) -> None:
    """A URL in the wrong place may have a password in it, which the server's error would quote."""
    with pytest.raises(ValueError, match=f"cannot be a {name}"):
        AsyncConnectionPool(f"host=localhost {name}=a://b")


def test_a_url_in_the_environment_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """psycopg would resolve it as a host and quote it in its error."""
    monkeypatch.setenv("PGHOST", URL)
    with pytest.raises(ValueError, match="the environment") as caught:
        AsyncConnectionPool()
    assert SECRET not in str(caught.value)
