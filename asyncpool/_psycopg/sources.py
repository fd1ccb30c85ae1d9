"""Where connections come from: the pool's `conninfo` and `kwargs`, checked before each connect."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import psycopg

from asyncpool._psycopg.callbacks import call
from asyncpool._psycopg.conninfo import (
    check_conninfo,
    check_options,
    secrets_of,
    unknown_option_error,
)
from asyncpool._psycopg.dsn import limits_for
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
    """The last values that passed the checks: equal ones are not checked again."""

    def __init__(self) -> None:
        self._conninfo: tuple[Any, ...] = ()
        self._params: dict[str, Any] = {}
        self._options: tuple[Any, ...] = ()

    def params_of(self, conninfo: str) -> dict[str, Any]:
        """Return the parameters of a connection string; raises as `check_conninfo`."""
        given = (conninfo, os.environ.get("PGHOST"), os.environ.get("PGHOSTADDR"))
        if given != self._conninfo:
            self._conninfo, self._params = given, check_conninfo(conninfo)
        return self._params

    def check(
        self, params: dict[str, Any], options: dict[str, Any], connection_class: type[Any]
    ) -> None:
        """Check the options for these parameters; raises as `check_options`."""
        typed = [(name, type(value), value) for name, value in options.items()]
        given = (params, typed, connection_class)
        if given != self._options:
            check_options(params, options, connection_class)
            self._options = given


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
    params = checked.params_of(conninfo)
    secrets |= secrets_of(conninfo, params)
    options: Any = await call("kwargs", kwargs) if callable(kwargs) else kwargs
    try:
        options = dict(options or {})
    except (TypeError, ValueError):
        msg = f"the callable kwargs must give a mapping, not {type(options).__name__}"
        raise ConninfoError(msg) from None
    secrets |= secrets_of("", options)
    checked.check(params, options, connection_class)
    options |= limits_for(params, options)
    options |= {} if marks is None else marks.options(params, options)
    work = partial(connection_class.connect, conninfo, **options)
    try:
        conn: C = await call("connect", work, math.inf)
    except psycopg.ProgrammingError as error:
        if (unknown := unknown_option_error(error, options)) is None:
            raise
    else:
        return conn
    raise unknown  # outside of `except`, so that libpq's error is not its context
