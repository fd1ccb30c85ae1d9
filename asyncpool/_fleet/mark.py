"""The marks of a fleet on its sessions: made for `application_name`, and read from it.

A mark is `fleet=NAME/MEMBER/WEIGHT`, and after a member's first look also `/WANT/CLAIM/STAMP`. It
stands behind the name that the user has given. PostgreSQL keeps 63 bytes of it all.
"""

from __future__ import annotations

import re
import secrets
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from asyncpool._psycopg.dsn import application_name

NAME = re.compile(r"[A-Za-z0-9_-]{1,20}")
MARK = re.compile(
    r"fleet=([A-Za-z0-9_-]{1,20})/([0-9a-z]{6})/(\d+(?:\.\d+)?)"
    r"(?:/(-?\d{1,4})/(\d{1,4})/([0-9a-f]{1,6}))?"
)
MARK_AT_END = re.compile(MARK.pattern + r"\Z")
MAX_LENGTH = 63
"""Bytes of an application_name that PostgreSQL keeps."""
MOST = 9999
"""The largest number in a mark."""
ROOM_FOR_LOOK = len("/-999/9999/ffffff")
STAMPS = 16**6
"""Stamps are tenths of a second of the server's clock, modulo this number: 19 days."""
WEIGHTS = (0.01, 99.99)
"""The least and the largest weight."""
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Mark:
    """The mark of one session."""

    member: str
    weight: float
    want: int | None = None
    """None: the member had not looked yet when the session was opened."""
    claim: int = 0
    stamp: int = 0
    """When the member last looked."""

    def age(self, now: int) -> float:
        """Return the seconds since the look, `now` being a stamp as well."""
        return (now - self.stamp) % STAMPS / 10


def require_valid(name: object, weight: object) -> None:
    """Raise a TypeError or ValueError unless a mark can have this fleet's name and weight."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        msg = f"name must be 1 to 20 letters, digits, hyphens and underscores: got {name!r}"
        raise ValueError(msg) if isinstance(name, str) else TypeError(msg)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        msg = f"weight must be a number, not {weight!r}"
        raise TypeError(msg)
    if not WEIGHTS[0] <= weight <= WEIGHTS[1]:
        msg = f"weight must be from {WEIGHTS[0]} to {WEIGHTS[1]}: got {weight!r}"
        raise ValueError(msg)


def parse(name: str, fleet: str) -> Mark | None:
    """Return the mark in an application_name; None: it has no valid mark of this fleet."""
    found = MARK.fullmatch(name[max(name.rfind("fleet="), 0) :])
    if found is None or found[1] != fleet:
        return None
    _, member, weight, want, claim, stamp = found.groups()
    if not WEIGHTS[0] <= float(weight) <= WEIGHTS[1]:
        return None
    if want is None:
        return Mark(member, float(weight))
    return Mark(member, float(weight), int(want), int(claim), int(stamp, 16))


def own_name(name: str) -> str:
    """Return the part of an application_name that the user has given."""
    mark = MARK_AT_END.search(name)
    return name if mark is None else name[: mark.start()].rstrip()


class SessionMarks:
    """Gives the sessions of one member their mark, at their start and after a reset.

    Args:
        fleet: the fleet's name.
        weight: the member's weight.
    """

    def __init__(self, fleet: str, weight: float) -> None:
        self.fleet = fleet
        self._weight = f"{weight:.2f}".rstrip("0").rstrip(".")
        self._prefix = self.prefix.encode()
        self.renew()

    def renew(self) -> None:
        """Become another member, as after a fork."""
        self.member = "".join(secrets.choice(ALPHABET) for _ in range(6))
        self._look = ""
        self._looked_on: weakref.ref[Any] | None = None
        self.silent = False
        """Whether new sessions get no mark, because the member sees nobody."""

    @property
    def is_published(self) -> bool:
        """Whether the session with the mark of the last look is open."""
        conn = None if self._looked_on is None else self._looked_on()
        return conn is not None and not conn.closed

    @property
    def prefix(self) -> str:
        """The beginning of every mark of the fleet."""
        return f"fleet={self.fleet}/"

    def unstamped(self, name: str, want: int, claim: int) -> str:
        """Return an application_name with the mark for a look, to which the stamp is appended."""
        want, claim = max(min(want, MOST), -999), min(claim, MOST)
        return f"{self._with_mark(own_name(name))}/{want}/{claim}/"

    def looked(self, conn: psycopg.AsyncConnection[Any], name: str) -> None:
        """Note the mark of the last look, and on which session it is."""
        found = MARK_AT_END.search(name)
        self._look = name[found.end(3) :] if found is not None else ""
        self._looked_on = weakref.ref(conn)

    def options(self, *given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the application_name for a connect with these parameters."""
        if self.silent:
            return {}
        return {
            "application_name": self._with_mark(own_name(application_name(*given))) + self._look
        }

    def is_lost(self, conn: psycopg.AsyncConnection[Any]) -> bool:
        """Whether a session has no mark, as after `SET application_name`."""
        name = conn.pgconn.parameter_status(b"application_name")
        return name is not None and self._prefix not in name and not self.silent

    def renewal(self, conn: psycopg.AsyncConnection[Any], *, reset: bool = False) -> str:
        """Return a statement that gives a session its mark again; "" if it has it.

        Args:
            conn: the connection.
            reset: whether it runs after a RESET ALL, which restores the mark of the start.
        """
        name = conn.info.parameter_status("application_name") or ""
        if self._look and self._looked_on is not None and self._looked_on() is conn:
            if reset:
                name = application_name(conn.info.get_parameters())
            elif name.endswith(self._look):
                return ""
        elif reset or not self.is_lost(conn):
            return ""
        return set_name(self._with_mark(own_name(name)) + self._look).as_string(conn)

    def _with_mark(self, own: str) -> str:
        mark = f"fleet={self.fleet}/{self.member}/{self._weight}"
        room = MAX_LENGTH - len(mark) - ROOM_FOR_LOOK - 1
        # PostgreSQL itself replaces what is not printable ASCII, in some versions by longer text.
        text = "".join(each if " " <= each <= "~" else "?" for each in own)[: max(room, 0)].rstrip()
        return f"{text} {mark}" if text else mark


def set_name(name: str) -> sql.Composed:
    """Return the statement that sets a session's application_name."""
    return sql.SQL("SELECT pg_catalog.set_config('application_name', {}, false)").format(name)
