"""The `kwargs` of a cluster's pools, which must not choose a host."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from asyncpool._psycopg.callbacks import call
from asyncpool._psycopg.sources import Kwargs
from asyncpool.faults import ConninfoError

FIXED = ("host", "hostaddr", "port", "target_session_attrs", "load_balance_hosts")
"""Options that only the conninfo may have."""


def without_host(kwargs: Kwargs | None) -> Kwargs | None:
    """Return kwargs that have none of the options that choose a host.

    Args:
        kwargs: a mapping, or a callable, whose result is checked before each connect.

    Raises:
        ValueError: a mapping has such an option.
    """
    if not callable(kwargs):
        if fixed := _fixed_in(kwargs or ()):
            raise ValueError(_refusal(fixed))
        return kwargs

    async def checked() -> Any:
        given = await call("kwargs", kwargs)
        names: Iterable[Any] = ()
        with suppress(TypeError, ValueError):  # the pool refuses what is no mapping
            names = dict(given or {})
        if fixed := _fixed_in(names):
            raise ConninfoError(_refusal(fixed))
        return given

    return checked


def _fixed_in(names: Iterable[Any]) -> str | None:
    given = list(names)
    return next((fixed for fixed in FIXED if fixed in given), None)


def _refusal(name: str) -> str:
    return f"kwargs must not have {name}: the cluster sets it for each host"
