"""The hosts of a connection string, by libpq's rules."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from asyncpool import Cluster
from asyncpool.faults import ConninfoError


def hosts_of(conninfo: str, **options: Any) -> list[tuple[str, int]]:
    options = {"min_size": 1} | options
    return [(each.host, each.port) for each in Cluster(conninfo, **options).hosts()]


@pytest.mark.parametrize(
    ("conninfo", "hosts"),
    [
        ("host=db1,db2 dbname=shop", [("db1", 5432), ("db2", 5432)]),
        ("host=db1,db2 port=6000", [("db1", 6000), ("db2", 6000)]),
        ("host=db1,db2 port=6000,6001", [("db1", 6000), ("db2", 6001)]),
        ("host=db1,db2 port=6000,", [("db1", 6000), ("db2", 5432)]),
        ("postgresql://u:p@db1:6000,db2/shop", [("db1", 6000), ("db2", 5432)]),
        ("hostaddr=10.0.0.1,10.0.0.2", [("10.0.0.1", 5432), ("10.0.0.2", 5432)]),
        ("host=db1,db2 hostaddr=10.0.0.1,10.0.0.2", [("db1", 5432), ("db2", 5432)]),
        ("host=/run/pg port=7000", [("/run/pg", 7000)]),
        ("host=db1,db1", [("db1", 5432)]),
        ("dbname=shop", [("local", 5432)]),
    ],
)
def test_hosts_are_those_that_libpq_would_try(
    conninfo: str, hosts: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the connection string, each one once."""
    for name in ("PGHOST", "PGHOSTADDR", "PGPORT"):
        monkeypatch.delenv(name, raising=False)
    assert hosts_of(conninfo) == hosts


def test_the_environment_names_the_hosts_as_for_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGHOST and PGPORT count where the connection string has none."""
    monkeypatch.setenv("PGHOST", "db1,db2")
    monkeypatch.setenv("PGPORT", "6000,6001")
    assert hosts_of("dbname=shop") == [("db1", 6000), ("db2", 6001)]


def test_the_conninfo_of_a_host_has_all_other_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none that would choose among hosts, from the environment either."""
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    given = "host=db1,db2 hostaddr=10.0.0.1,10.0.0.2 dbname=shop user=app sslmode=require"
    cluster = Cluster(given + " target_session_attrs=read-write load_balance_hosts=random")
    params = conninfo_to_dict(str(cluster.pools[2].conninfo))
    assert params == {
        "host": "db2",
        "hostaddr": "10.0.0.2",
        "port": "5432",
        "dbname": "shop",
        "user": "app",
        "sslmode": "require",
        "target_session_attrs": "any",
    }


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"conninfo": "host=db1,db2 port=1,2,3"}, ConninfoError, "3 values of port and 2 hosts"),
        ({"conninfo": "host=a,b hostaddr=10.0.0.1"}, ConninfoError, "2 values of host and 1"),
        ({"conninfo": "service=shop"}, ConninfoError, "service"),
        ({"conninfo": "nonsense"}, ConninfoError, "neither a postgresql:// URL"),
        ({"conninfo": 7}, TypeError, "conninfo must be a str or a callable"),
        ({"max_lag": -1}, ValueError, "max_lag must be zero or more seconds"),
        ({"max_lag": "5"}, TypeError, "max_lag must be a number of seconds"),
        ({"min_size": -1}, ValueError, "min_size must not be negative"),
        ({"min_size": 3, "max_size": 2}, ValueError, "max_size must be at least min_size"),
        ({"budget": 5}, TypeError, "budget must be an asyncpool.Budget or a callable"),
        ({"name": 5}, TypeError, "name must be a str"),
        ({"kwargs": {"host": "db1"}}, ValueError, "kwargs must not have host"),
        ({"kwargs": {"nonsense": 1}}, ConninfoError, "nonsense"),
        ({"timeout": -1}, ValueError, "timeout must be zero or more seconds"),
        ({"nonsense": 1}, TypeError, "nonsense"),
        ({"reset": "nonsense"}, ValueError, "reset must be"),
    ],
)
def test_an_argument_that_is_wrong_is_an_error_at_once(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """The message names it."""
    with pytest.raises(kind, match=message):
        Cluster(**{"conninfo": "host=db1,db2"} | options)


def test_a_host_is_found_by_its_name() -> None:
    """With the port, or without it where one host only has the name."""

    async def drain(name: Any) -> list[bool]:
        cluster = Cluster("host=db1,db2,db2 port=1,2,3")
        await cluster.drain(name)
        return [each.drained for each in cluster.hosts()]

    assert asyncio.run(drain("db1")) == [True, False, False]
    assert asyncio.run(drain("db2:3")) == [False, False, True]
    with pytest.raises(ValueError, match="2 hosts have the name 'db2': the hosts are db1:1, db2:2"):
        asyncio.run(drain("db2"))
    with pytest.raises(ValueError, match="no host has the name 'db3'"):
        asyncio.run(drain("db3"))
    with pytest.raises(TypeError, match="host must be a str"):
        asyncio.run(drain(3))


def test_an_address_tells_hosts_of_one_name_apart() -> None:
    """As where DNS has several for it."""
    cluster = Cluster("host=db,db hostaddr=10.0.0.1,10.0.0.2", min_size=1)
    assert [(each.host, each.name) for each in cluster.hosts()] == [
        ("db", "10.0.0.1:5432"),
        ("db", "10.0.0.2:5432"),
    ]
    asyncio.run(cluster.drain("10.0.0.2"))
    assert [each.drained for each in cluster.hosts()] == [False, True]


def test_the_repr_tells_what_is_known() -> None:
    """The primary and how many hosts take reads."""
    cluster = Cluster("host=db1,db2", name="shop")
    assert repr(cluster) == "<Cluster 'shop' primary=unknown readable=0/2>"
    assert repr(cluster.read).startswith("<ReadPool 'shop' hosts=0/2 size=0 idle=0")
    assert "'shop: write'" in repr(cluster.write)
    assert [each.reason for each in cluster.hosts()] == ["it was not looked at yet"] * 2
    assert cluster.closed
    assert cluster.read.closed
