"""The options of one transaction: its characteristics, settings and role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from psycopg import IsolationLevel, pq

from asyncpool._psycopg.begin import Characteristics, block_on

Isolation = (
    IsolationLevel
    | Literal["read uncommitted", "read committed", "repeatable read", "serializable"]
)
"""An isolation level, by psycopg's enum or by its SQL name."""
Setting = str | int | float
"""The value of a server setting; True is "on" and False is "off"."""


class TransactionOptions:
    """The options of a transaction, checked. See `AsyncConnectionPool.transaction`."""

    def __init__(
        self,
        isolation: Isolation | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        settings: Mapping[str, Setting] | None = None,
        role: str | None = None,
    ) -> None:
        for name, value in (("read_only", read_only), ("deferrable", deferrable)):
            if value is not None and not isinstance(value, bool):
                msg = f"{name} must be True, False or None, not {value!r}"
                raise TypeError(msg)
        self._characteristics = Characteristics(_level(isolation), read_only, deferrable)
        self._settings = [_setting(name, value) for name, value in dict(settings or {}).items()]
        if role == "":
            msg = "role must not be empty"
            raise ValueError(msg)
        if role is not None:
            self._settings.append(_setting("role", role))

    def block_on(self, conn: Any, *, past_overrides: bool) -> tuple[Any, Sequence[bytes]]:
        """See `prepare`."""
        statements = []
        if self._settings:
            quoted = [_quoted(conn, *setting) for setting in self._settings]
            statements = [b"SELECT " + b", ".join(quoted)]
        return block_on(conn, self._characteristics, statements, past_overrides=past_overrides)


def options_of(
    isolation: Isolation | None,
    read_only: bool | None,
    deferrable: bool | None,
    settings: Mapping[str, Setting] | None,
    role: str | None,
) -> TransactionOptions | None:
    """Return the options of a transaction; None: there are none."""
    if all(each is None for each in (isolation, read_only, deferrable, settings, role)):
        return None
    return TransactionOptions(isolation, read_only, deferrable, settings, role)


def prepare(
    conn: Any, options: TransactionOptions | None, *, past_overrides: bool = False
) -> tuple[Any, Sequence[bytes]]:
    """Return a transaction block on a connection, and the statements to begin it with.

    `past_overrides` leaves out a `transaction` method that the connection's class overrides.
    """
    if options is None:
        return block_on(conn, past_overrides=past_overrides)
    return options.block_on(conn, past_overrides=past_overrides)


def _level(isolation: Isolation | None) -> IsolationLevel | None:
    if isinstance(isolation, str) and not isinstance(isolation, IsolationLevel):
        name = isolation.upper().replace(" ", "_")
        if name in IsolationLevel.__members__:
            return IsolationLevel[name]
    elif isolation is None or isinstance(isolation, IsolationLevel):
        return isolation
    levels = ", ".join(repr(each.name.lower().replace("_", " ")) for each in IsolationLevel)
    msg = f"isolation must be a psycopg.IsolationLevel or one of {levels}, not {isolation!r}"
    raise (ValueError if isinstance(isolation, str) else TypeError)(msg)


def _setting(name: str, value: Setting) -> tuple[str, str]:
    for what in (name, value):
        if not isinstance(what, str | int | float) or (what is name and not isinstance(what, str)):
            msg = f"a setting is a str and a str or a number, not {name!r}: {value!r}"
            raise TypeError(msg)
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    if not name or "\0" in name + text:
        msg = f"a setting needs a name, and neither it nor its value may have a NUL: {name!r}"
        raise ValueError(msg)
    return name, text


def _quoted(conn: Any, *setting: str) -> bytes:
    """Return the call that sets a setting until the end of the transaction."""
    escape, encoding = pq.Escaping(conn.pgconn).escape_literal, conn.info.encoding
    name, value = (bytes(escape(text.encode(encoding))) for text in setting)
    return b"pg_catalog.set_config(%b, %b, true)" % (name, value)
