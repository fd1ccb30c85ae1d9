"""Checks of connection strings and options before libpq and psycopg see them.

libpq and psycopg quote text that they cannot parse or resolve, and that may be a part of the
password. The errors raised here name an option at most, and never show a value.
"""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Mapping
from functools import cache
from inspect import signature
from typing import Any
from urllib.parse import unquote

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool.faults import ConninfoError

NOT_SHOWN = (
    " (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING);"
    " the value is not shown here, since it may contain a password"
)
UNREADABLE = (
    "conninfo is neither a postgresql:// URL nor key=value pairs that libpq knows:"
    " percent-encode special characters in a URL" + NOT_SHOWN
)
MISPLACED = (
    "the {0} in conninfo, kwargs or the environment cannot be a {0}: percent-encode special"
    " characters in a URL's password, and pass a URL as the conninfo itself" + NOT_SHOWN
)
URLS = ("postgresql://", "postgres://")
"""The beginnings by which libpq tells a URL from key=value pairs."""
DRIVER_URL = re.compile(r"\s*postgres(?:ql)?\+[\w.]+://")
UNKNOWN_OPTION = r"invalid (?:connection option|URI query parameter):? \"(\w+)\""
REFUSED_VALUE = r"invalid \"?(\w+)\"? value: |invalid (port) number: |match \d+ (port) numbers"
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
INTEGERS = (
    "port",
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    "tcp_user_timeout",
)
INTEGER = re.compile(r"\s*[+-]?[0-9]+\s*", re.ASCII)
PSYCOPG_KEYWORDS = frozenset(signature(psycopg.AsyncConnection.connect).parameters) - {
    "conninfo",
    "kwargs",
}
"""The keywords of `connect` that psycopg takes itself."""
NO_SOCKET_FOLDER = "/dev/null/asyncpool"
"""A socket folder that cannot exist: a connect to it fails immediately, without a network."""


def check_conninfo(conninfo: str) -> dict[str, Any]:
    """Return the parameters of a libpq connection string.

    Raises:
        TypeError: the connection string is not a str.
        ConninfoError: libpq cannot parse it, or a part of it cannot be a value of its parameter.
    """
    if not isinstance(conninfo, str):
        msg = (
            f"conninfo must be a str or a callable that returns one, not {type(conninfo).__name__}"
        )
        raise TypeError(msg)
    if found := DRIVER_URL.match(conninfo):
        msg = f"conninfo begins with {found[0].strip()}, an SQLAlchemy URL: write postgresql://"
        raise ConninfoError(msg)
    params, complaint = None, ""
    try:
        if "\0" not in conninfo:
            params = dict(conninfo_to_dict(conninfo))
    except psycopg.ProgrammingError as error:
        complaint = str(error)
    except UnicodeError:
        pass
    if params is None:
        # Raised outside of `except`, so that libpq's error is not its context.
        unknown = re.search(UNKNOWN_OPTION, complaint)
        if unknown is not None and _may_be_shown(unknown[1], conninfo):
            raise _unknown_option(unknown[1])
        raise ConninfoError(UNREADABLE)
    if conninfo.startswith(URLS) and _authority(conninfo).count("@") > 1:
        # The end of a password whose @ is not percent-encoded would be taken for a host.
        raise ConninfoError(MISPLACED.format("host"))
    check_params(params)
    return params


def check_params(params: Mapping[str, Any]) -> None:
    """Refuse values that belong to another parameter, are not text, or are not numbers.

    Raises:
        ConninfoError: a parameter has such a value.
    """
    for name in ("host", "hostaddr"):
        hosts = str(params.get(name) or os.environ.get(f"PG{name.upper()}") or "")
        # The path of a Unix socket may contain anything; @ begins an abstract socket's name.
        others = [host for host in hosts.split(",") if not host.startswith(("/", "@"))]
        if any("@" in host or "://" in host for host in others):
            raise ConninfoError(MISPLACED.format(name))
    for name in ("user", "dbname", "port"):
        if "://" in str(params.get(name) or ""):
            raise ConninfoError(MISPLACED.format(name))
    for name, value in params.items():
        if not _is_text(str(value)):
            raise _bad_value(name)
    for name in INTEGERS:
        value = _value_or_zero(params, name)
        numbers = str(value).split(",") if name == "port" else [value]
        if not all(map(_is_integer, numbers)):
            raise _bad_value(name)
    if not _is_duration(_value_or_zero(params, "connect_timeout")):
        raise _bad_value("connect_timeout")


def check_options(
    params: Mapping[str, Any], kwargs: Mapping[str, Any], connection_class: type[Any]
) -> None:
    """Refuse keywords and values that `connect` would refuse for every server.

    A class with its own `connect` may accept others, so nothing is refused for it.

    Raises:
        ConninfoError: an option is unknown, or libpq does not accept its value.
    """
    if not _connects_as_psycopg(connection_class):
        return
    for name in kwargs:
        if not isinstance(name, str):
            msg = f"the names in kwargs must be str, not {type(name).__name__}"
            raise ConninfoError(msg)
    given = {name: value for name, value in kwargs.items() if value is not None}
    libpq_kwargs = {name: value for name, value in given.items() if name not in PSYCOPG_KEYWORDS}
    merged = {**params, **libpq_kwargs}
    check_params(merged)
    for name in libpq_kwargs:
        if name not in _known_options():
            raise _unknown_option(name)
    if "context" in given and not hasattr(given["context"], "adapters"):
        msg = f"context in kwargs must have adapters, not be of {type(given['context']).__name__}"
        raise ConninfoError(msg)
    if not _are_addresses(merged):
        raise _bad_value("hostaddr")
    refused = re.search(REFUSED_VALUE, _libpq_error(merged))
    if refused is not None and (name := next(filter(None, refused.groups()))) in merged:
        raise _bad_value(name)


def unknown_option_error(
    error: psycopg.ProgrammingError, kwargs: Mapping[str, Any]
) -> ConninfoError | None:
    """Return the error for a keyword that libpq does not know; None if `error` is another one."""
    unknown = re.search(UNKNOWN_OPTION, str(error))
    return _unknown_option(unknown[1]) if unknown is not None and unknown[1] in kwargs else None


def secrets_of(conninfo: str, params: Mapping[str, Any]) -> set[str]:
    """Return the texts that no error of a connect with these parameters may show."""
    found = {str(params[name]) for name in SECRETS if params.get(name)}
    found.add(conninfo if "://" in conninfo or "pass" in conninfo else "")
    for name, value in params.items():
        # The text before an @ may be the end of a password that was not percent-encoded.
        if name not in SECRETS and "@" in str(value) and not str(value).startswith(("/", "@")):
            secret = str(value).rpartition("@")[0]
            found |= {secret, *secret.split(",")}  # hosts are tried one by one
    public = {str(params.get(name)) for name in ("user", "dbname", "host")}
    return {secret for secret in found if secret and secret not in public}


def _authority(url: str) -> str:
    return re.split(r"[/?]", url.partition("://")[2], maxsplit=1)[0]


def _value_or_zero(params: Mapping[str, Any], name: str) -> Any:
    value = params.get(name)
    return 0 if value is None or not str(value).strip() else value


def _is_integer(value: Any) -> bool:
    """Return whether libpq reads a value as an integer; an empty one means its default."""
    text = str(value)
    if not text:
        return True
    return INTEGER.fullmatch(text) is not None and -(2**31) <= int(text) < 2**31


def _is_duration(value: Any) -> bool:
    """Return whether a value is a number of seconds that psycopg accepts."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _are_addresses(params: Mapping[str, Any]) -> bool:
    """Return whether `hostaddr` has a numeric address for each host."""
    hosts, addresses = (str(params.get(name) or "").split(",") for name in ("host", "hostaddr"))
    if hosts != [""] and addresses != [""] and len(hosts) != len(addresses):
        return False
    try:
        for address in filter(None, addresses):
            socket.getaddrinfo(address, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return True


def _is_text(value: str) -> bool:
    """Whether the value can be passed to libpq."""
    try:
        return b"\0" not in value.encode()
    except UnicodeError:
        return False


def _libpq_error(params: Mapping[str, Any]) -> str:
    """Return libpq's error for values that it checks before it connects; "" without one."""
    count = len(str(params.get("host") or params.get("hostaddr") or "").split(","))
    left_out = {"host", "hostaddr", "service", "passfile", "gssencmode", *SECRETS}
    probe = {name: value for name, value in params.items() if name not in left_out}
    if params.get("gssencmode") not in (None, "require"):  # a Unix socket cannot have "require"
        probe["gssencmode"] = params["gssencmode"]
    # With a user and a password given, libpq looks for none in files.
    probe |= {"host": ",".join([NO_SOCKET_FOLDER] * count), "user": "-", "password": "-"}
    try:
        pgconn = pq.PGconn.connect_start(make_conninfo("", **probe).encode())
    except (psycopg.Error, UnicodeError, ValueError):
        return ""
    try:
        return pgconn.error_message.decode(errors="replace")
    finally:
        pgconn.finish()


def _connects_as_psycopg(connection_class: type[Any]) -> bool:
    definer = next(each for each in connection_class.__mro__ if "connect" in vars(each))
    return definer.__module__.partition(".")[0] in ("psycopg", "asyncpool")


@cache
def _known_options() -> set[str]:
    return {option.keyword.decode() for option in pq.Conninfo.get_defaults()}


def _may_be_shown(name: str, conninfo: str) -> bool:
    """Whether a name that libpq does not know is an option's, and not a part of a password."""
    is_url = conninfo.startswith(URLS)
    pairs = conninfo.partition("?")[2] if is_url else conninfo
    follows_secret = re.search("pass|secret|key", pairs.partition(name)[0])
    if not follows_secret and not (is_url and "@" in unquote(pairs)):
        return True
    # Otherwise it is shown only if it is an option's name with a letter or two missing.
    near = _nearest(name, 0.9)
    return near is not None and set(name) <= set(near) and len(name) < len(near)


def _nearest(name: str, similarity: float) -> str | None:
    """Return the option whose name is most like this one, if it is at least so similar."""
    from difflib import get_close_matches  # noqa: PLC0415 - for an error only

    return next(iter(get_close_matches(name, _known_options(), 1, similarity)), None)


def _unknown_option(name: str) -> ConninfoError:
    near = _nearest(name, 0.6)
    instead = f": did you mean {near}?" if near else ""
    msg = f"conninfo or kwargs has the option {name}, which libpq and psycopg do not know{instead}"
    return ConninfoError(msg)


def _bad_value(name: str) -> ConninfoError:
    return ConninfoError(
        f"conninfo or kwargs has a value of the option {name} that libpq does not accept; the value"
        " is not shown here, since it may be part of a URL's password that is not percent-encoded"
    )
