"""What an error means for a pool: for one connection, for all of them, or for those yet to come.

Most errors mean nothing to it: they are the statement's own. A pool asks about each error of a
statement and of a connect, and a user may answer in place of `classify`.
"""

from __future__ import annotations

import re
from enum import Enum

import psycopg

__all__ = ["Fault", "classify"]


class Fault(Enum):
    """What is wrong."""

    CONNECTION = "connection"
    """This connection: it is closed when it comes back, and replaced."""
    SERVER = "server"
    """The server may be leaving: its other connections are asked, and if one does not answer, all
    that are older than this are replaced."""
    FAILOVER = "failover"
    """The server is not what it was: every connection older than this is replaced."""
    ACCESS = "access"
    """No connect will succeed until somebody changes something: there is no use in waiting."""
    CAPACITY = "capacity"
    """The server has no room for one more connection: those there are have to do."""


class ConninfoError(psycopg.ProgrammingError, ValueError):
    """A connection string, or an option of `connect`, with which no connect can succeed."""


# Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
STATES = {
    **dict.fromkeys(["57P01", "57P02"], Fault.SERVER),
    "25006": Fault.FAILOVER,
    **dict.fromkeys(["28000", "28P01", "3D000", "42501"], Fault.ACCESS),
    "53300": Fault.CAPACITY,
}

# libpq has no SQLSTATE for a connect that was refused, only what the server said, in English unless
# its lc_messages is of another language. PgBouncer says "no such database" and "no more
# connections".
NO_ACCESS = re.compile(
    r"FATAL:  .*(authentication failed|(database|role) .* does not exist|no pg_hba\.conf entry"
    r"|pg_hba\.conf rejects|not permitted to log in|permission denied for database"
    r"|not currently accepting connections|no such (database|user)"
    r"|unrecognized configuration parameter|invalid (value for parameter|command-line argument)"
    r"|unsupported startup parameter|permission denied to set parameter)"
    r"|no password supplied"
)
NO_ROOM = re.compile(
    r"FATAL:  .*(too many (clients|connections)|connection slots are reserved|no more connections)"
)
# What libpq refuses before it connects anywhere, and a service file that lacks the service.
NO_OPTION = re.compile(
    r"invalid (\S+ value|port number): |invalid integer value .* for connection option"
    r"|could not match \d+ (port numbers|host names) to|weak sslmode "
    r"|invalid SSL protocol version range|support is not compiled in|definition of service"
)
ATTEMPT = re.compile(r"^- host: ", re.MULTILINE)
"""How psycopg begins each line of a list, where several addresses were tried."""


def classify(error: BaseException) -> Fault | None:
    """What an error says of more than its statement; None: nothing.

    57P01 and 57P02, of a server that shuts down or of a backend that was terminated, are `SERVER`;
    25006, where the server has become a standby, is `FAILOVER`. A refused password (class 28), a
    database that is not there (3D000), one that may not be entered (42501), and a connection string
    or an option that libpq refuses are `ACCESS`, 53300 is `CAPACITY`; these two matter of connects
    only. Where several addresses were tried, all of
    them must have refused access.

    Give a pool a function of your own as `classify=` to add to it:

        def mine(error):
            if isinstance(error, psycopg.errors.DiskFull):
                return Fault.FAILOVER  # the address will be another server's
            return classify(error)
    """
    if isinstance(error, ConninfoError):
        return Fault.ACCESS
    if not isinstance(error, psycopg.Error):
        return None
    if (state := error.sqlstate) is not None:
        return STATES.get(state)
    if not isinstance(error, psycopg.OperationalError):
        return None
    said = str(error)
    attempts = ATTEMPT.split(said)[1:] or [said]
    if all(NO_ACCESS.search(each) or NO_OPTION.search(each) for each in attempts):
        return Fault.ACCESS
    return Fault.CAPACITY if NO_ROOM.search(said) else None
