"""The classification of errors: which connections of a pool an error concerns.

Most errors concern only their statement. The pool classifies each error of a statement and of a
connect, by `classify` or by the user's function in its place.
"""

from __future__ import annotations

import re
from enum import Enum

import psycopg

__all__ = ["Fault", "classify"]


class Fault(Enum):
    """The part of the system that an error concerns, beyond its own statement."""

    CONNECTION = "connection"
    """The connection is broken: it is closed on its return, and replaced."""
    SERVER = "server"
    """The server may be shutting down: the idle connections are pinged, and if one does not answer,
    every connection older than the error is replaced."""
    FAILOVER = "failover"
    """The server was replaced or demoted: every connection older than the error is replaced."""
    ACCESS = "access"
    """The server refuses access: no connect can succeed, so requests fail instead of waiting."""
    CAPACITY = "capacity"
    """The server has no free connection slot: requests wait for the connections that are open."""


class ConninfoError(psycopg.ProgrammingError, ValueError):
    """A connection string or connect option is invalid, so that no connect can succeed."""


# Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
FAULT_BY_SQLSTATE = {
    **dict.fromkeys(["57P01", "57P02"], Fault.SERVER),
    "25006": Fault.FAILOVER,
    **dict.fromkeys(["28000", "28P01", "3D000", "42501"], Fault.ACCESS),
    "53300": Fault.CAPACITY,
}

# The patterns are compiled at the first error, to keep the import short.
# libpq gives no SQLSTATE for a refused connect, only the server's message, in English unless its
# lc_messages is set otherwise. "no such database" and "no more connections" are PgBouncer's.
ACCESS_MESSAGE = (
    r"FATAL:  .*(authentication failed|(database|role) .* does not exist|no pg_hba\.conf entry"
    r"|pg_hba\.conf rejects|not permitted to log in|permission denied for database"
    r"|not currently accepting connections|no such (database|user)"
    r"|unrecognized configuration parameter|invalid (value for parameter|command-line argument)"
    r"|unsupported startup parameter|permission denied to set parameter)"
    r"|no password supplied"
)
CAPACITY_MESSAGE = (
    r"FATAL:  .*(too many (clients|connections)|connection slots are reserved|no more connections)"
)
# Options that libpq refuses before it connects, and a service that the service file lacks.
OPTION_MESSAGE = (
    r"invalid (\S+ value|port number): |invalid integer value .* for connection option"
    r"|could not match \d+ (port numbers|host names) (?:to|with)|weak sslmode "
    r"|invalid SSL protocol version range|support is not compiled in|definition of service"
)
ATTEMPT = r"(?m)^- host: "
"""The beginning of each line in psycopg's error for several addresses."""


def classify(error: BaseException) -> Fault | None:
    """Classify an error by its SQLSTATE or, for a failed connect, by the server's message.

    57P01 and 57P02 (the server shuts down, or a backend was terminated) are `SERVER`. 25006 (the
    server has become a standby) is `FAILOVER`. 28000 and 28P01 (login refused), 3D000 (no such
    database), 42501 (no permission to connect), and a connection string or option that libpq
    refuses are `ACCESS`. 53300 is `CAPACITY`. The pool regards `ACCESS` and `CAPACITY` for connects
    only. If several addresses were tried, the error is `ACCESS` only if all of them refused.

    To extend it, give the pool a function of your own as `classify=`:

        def mine(error):
            if isinstance(error, psycopg.errors.DiskFull):
                return Fault.FAILOVER  # the address will move to another server
            return classify(error)

    Args:
        error: the error of a statement or of a connect.

    Returns:
        What the error concerns; None: only its statement.
    """
    if isinstance(error, ConninfoError):
        return Fault.ACCESS
    if not isinstance(error, psycopg.Error):
        return None
    if (state := error.sqlstate) is not None:
        return FAULT_BY_SQLSTATE.get(state)
    if not isinstance(error, psycopg.OperationalError):
        return None
    message = str(error)
    attempts = re.split(ATTEMPT, message)[1:] or [message]
    if all(re.search(ACCESS_MESSAGE, each) or re.search(OPTION_MESSAGE, each) for each in attempts):
        return Fault.ACCESS
    return Fault.CAPACITY if re.search(CAPACITY_MESSAGE, message) else None
