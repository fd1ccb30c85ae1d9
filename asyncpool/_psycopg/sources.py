"""Where connections come from: the pool's `conninfo` and `kwargs`, checked before each connect."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import psycopg

from asyncpool._psycopg.callbacks import call
from asyncpool._psycopg.connecting import PLAIN, Parsed, parsed
from asyncpool._psycopg.conninfo import (
    PSYCOPG_KEYWORDS,
    check_conninfo,
    check_options,
    secrets_of,
    unknown_option_error,
)
from asyncpool._psycopg.dsn import limits_for, uses_service
from asyncpool._psycopg.marks import SupportsMarks
from asyncpool.faults import ConninfoError

C = TypeVar("C", bound=psycopg.AsyncConnection[Any])

Conninfo = str | Callable[[], str] | Callable[[], Awaitable[str]]
Kwargs = (
    Mapping[str, Any] | Callable[[], Mapping[str, Any]] | Callable[[], Awaitable[Mapping[str, Any]]]
)


def check_sources(conninfo: Conninfo, kwargs: Kwargs | None, connection_class: type[Any]) -> None:
    """Raise an error if these can never make a connection."""
    params = {} if callable(conninfo) else check_conninfo(conninfo)
    if not (kwargs is None or callable(kwargs) or isinstance(kwargs, Mapping)):
        msg = f"kwargs must be a mapping or a callable, not {type(kwargs).__name__}"
        raise TypeError(msg)
    if not callable(kwargs):
        check_options(params, kwargs or {}, connection_class)


class Checked:
    """The last values that passed the checks, and what follows from them.

    For equal ones nothing is worked out again: a pool may connect for each request.
    """

    def __init__(self) -> None:
        self._conninfo: tuple[Any, ...] = ()
        self._params: dict[str, Any] = {}
        self._options: tuple[Any, ...] = ()
        self._limits: dict[str, Any] = {}
        self._secrets: tuple[set[str], set[str]] = set(), set()
        """Those of the connection string and those of the options."""
        self.parsed: Parsed = {}
        """The results of psycopg's parser for the pool's connection strings and options."""

    def params_of(self, conninfo: str, secrets: set[str]) -> dict[str, Any]:
        """Return the parameters of a connection string, and add its passwords to the secrets.

        Raises:
            TypeError, ConninfoError: as `check_conninfo`.
        """
        given = (conninfo, os.environ.get("PGHOST"), os.environ.get("PGHOSTADDR"))
        if given != self._conninfo:
            params = check_conninfo(conninfo)
            self._conninfo, self._params = given, params
            self._secrets = secrets_of(conninfo, params), self._secrets[1]
        secrets |= self._secrets[0]
        return self._params

    def limits_of(
        self,
        params: dict[str, Any],
        options: dict[str, Any],
        connection_class: type[Any],
        secrets: set[str],
    ) -> dict[str, Any]:
        """Check the options for these parameters, and add their passwords to the secrets.

        Returns:
            The time limits to add to the options.

        Raises:
            ConninfoError: as `check_options`.
        """
        typed = [(name, type(value), value) for name, value in options.items()]
        environment = os.environ.get("PGCONNECT_TIMEOUT"), os.environ.get("PGSERVICE")
        given = (params, typed, connection_class, environment)
        if given != self._options:
            hidden = secrets_of("", options)
            secrets |= hidden
            check_options(params, options, connection_class)
            self._limits, self._secrets = limits_for(params, options), (self._secrets[0], hidden)
            self._options = given
        elif uses_service(params, options) or not _are_plain(options):
            # The file may have changed, or the text of a value.
            self._limits = limits_for(params, options)
            self._secrets = self._secrets[0], secrets_of("", options)
        secrets |= self._secrets[1]
        return self._limits


def _are_plain(options: Mapping[str, Any]) -> bool:
    """Whether the texts that libpq gets of these values never change."""
    return all(
        type(value) in PLAIN for name, value in options.items() if name not in PSYCOPG_KEYWORDS
    )


async def connect(
    conninfo: Conninfo,
    kwargs: Kwargs | None,
    connection_class: type[C],
    checked: Checked,
    secrets: set[str],
    *,
    marks: SupportsMarks | None = None,
) -> C:
    """Get the values from their sources, check them, and connect.

    Args:
        conninfo, kwargs, connection_class: as for the pool.
        checked: the pool's values that were checked before.
        secrets: a set to which the passwords are added as soon as they are known.
        marks: gives further options.
    """
    if callable(conninfo):
        conninfo = await call("conninfo", conninfo)
        if not isinstance(conninfo, str):
            msg = f"the callable conninfo must give a str, not {type(conninfo).__name__}"
            raise ConninfoError(msg)
    params = checked.params_of(conninfo, secrets)
    options: Any = await call("kwargs", kwargs) if callable(kwargs) else kwargs
    try:
        options = dict(options or {})
    except (TypeError, ValueError):
        msg = f"the callable kwargs must give a mapping, not {type(options).__name__}"
        raise ConninfoError(msg) from None
    options |= checked.limits_of(params, options, connection_class, secrets)
    options |= {} if marks is None else marks.options(params, options)
    work = partial(connection_class.connect, conninfo, **options)
    kept = parsed.set(checked.parsed)
    try:
        conn: C = await call("connect", work, math.inf)
    except psycopg.ProgrammingError as error:
        if (unknown := unknown_option_error(error, options)) is None:
            raise
    else:
        return conn
    finally:
        with suppress(ValueError):  # this coroutine is closed in another context
            parsed.reset(kept)
    raise unknown  # outside of `except`, so that libpq's error is not its context
