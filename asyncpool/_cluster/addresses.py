"""The addresses of a cluster's hosts, from a connection string by the rules of libpq.

Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.conninfo import make_conninfo

from asyncpool._psycopg.callbacks import call
from asyncpool._psycopg.conninfo import check_conninfo
from asyncpool.faults import ConninfoError

Hosts = str | Callable[[], Sequence[str]] | Callable[[], Awaitable[Sequence[str]]]

DECIDED = ("target_session_attrs", "load_balance_hosts")
"""Options of libpq that choose among hosts; the cluster chooses instead."""
LOCAL = "local"
"""The host where none is named: libpq's default, which is a Unix socket."""
LIST_TIMEOUT = 5.0
"""Seconds that a callable may take to list the hosts."""


@dataclass(frozen=True, slots=True)
class Address:
    """One host."""

    host: str
    """The name, numeric address or socket folder, as given."""
    hostaddr: str
    """The numeric address that is used for `host`; empty: none was given."""
    port: int
    conninfo: str
    """A connection string for this host only."""

    @property
    def socket(self) -> str | None:
        """The path of the Unix socket; None: the host is reached over TCP."""
        if self.host.startswith("/") and not self.hostaddr:
            return f"{self.host}/.s.PGSQL.{self.port}"
        return None

    @property
    def name(self) -> str:
        """The host's name in messages, "db1:5432", or "10.0.0.1:5432" if it has a `hostaddr`."""
        return f"{self.hostaddr or self.host}:{self.port}"


def addresses_of(conninfo: str) -> list[Address]:
    """Return the hosts of a connection string, in its order, each one once.

    Raises:
        TypeError: the connection string is not a str.
        ConninfoError: libpq cannot parse it, or the numbers of hosts, addresses and ports differ.
    """
    params = check_conninfo(conninfo)
    if params.get("service") and not (params.get("host") or params.get("hostaddr")):
        msg = "conninfo names a service, and a cluster cannot see its hosts: add host="
        raise ConninfoError(msg)
    hosts, numeric, ports = (
        _listed(params, name, env)
        for name, env in (("host", "PGHOST"), ("hostaddr", "PGHOSTADDR"), ("port", "PGPORT"))
    )
    number = len(numeric or hosts or [""])
    if numeric and hosts and len(hosts) != number:
        msg = f"conninfo has {len(hosts)} values of host and {number} of hostaddr"
        raise ConninfoError(msg)
    if len(ports) not in (0, 1, number):
        msg = f"conninfo has {len(ports)} values of port and {number} hosts: give 1 or {number}"
        raise ConninfoError(msg)
    ports = ports * number if len(ports) == 1 else ports or [""] * number
    found: dict[str, Address] = {}
    for place in range(number):
        address = _address(params, hosts, numeric, ports[place].strip(), place)
        found.setdefault(address.name, address)
    return list(found.values())


async def listed_by(source: Callable[[], Any]) -> list[Address]:
    """Return the hosts that a callable lists.

    Raises:
        ConninfoError: it gives no list of connection strings with one host each, or an empty list.
        TimeoutError: it did not return in time.
        Exception: whatever it raises.
    """
    given = await call("conninfo", source, LIST_TIMEOUT)
    if isinstance(given, str) or not isinstance(given, Sequence):
        msg = f"the callable conninfo must give a list of str, not {type(given).__name__}"
        raise ConninfoError(msg)
    found: dict[str, Address] = {}
    for each in given:
        if not isinstance(each, str):
            msg = f"the callable conninfo must give a list of str, not of {type(each).__name__}"
            raise ConninfoError(msg)
        for address in addresses_of(each):
            found.setdefault(address.name, address)
    if not found:
        msg = "the callable conninfo gave an empty list"
        raise ConninfoError(msg)
    return list(found.values())


def _listed(params: Mapping[str, Any], name: str, variable: str) -> list[str]:
    text = params.get(name)
    if text is None:
        text = os.environ.get(variable, "")
    return str(text).split(",") if str(text) else []


def _address(
    params: Mapping[str, Any], hosts: list[str], numeric: list[str], port: str, place: int
) -> Address:
    others = (*DECIDED, "host", "hostaddr")
    own = {name: value for name, value in params.items() if name not in others}
    # Set, so that the environment variable does not choose either.
    own["target_session_attrs"] = "any"
    name = hosts[place] if hosts else ""
    if name:
        own["host"] = name
    hostaddr = numeric[place] if numeric else ""
    if hostaddr:
        own["hostaddr"] = hostaddr
    own["port"] = number = int(port or 5432)
    return Address(name or hostaddr or LOCAL, hostaddr, number, make_conninfo("", **own))
