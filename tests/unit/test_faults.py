"""The classification of an error by its SQLSTATE or, for a connect, by the server's message."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from asyncpool import Fault, classify

REFUSED = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '
MESSAGES = [
    ('FATAL:  password authentication failed for user "a"', Fault.ACCESS),
    ('FATAL:  Peer authentication failed for user "a"', Fault.ACCESS),
    ('FATAL:  database "a" does not exist', Fault.ACCESS),
    ('FATAL:  role "a" does not exist', Fault.ACCESS),
    ('FATAL:  role "a" is not permitted to log in', Fault.ACCESS),
    ('FATAL:  permission denied for database "a"', Fault.ACCESS),
    ('FATAL:  database "a" is not currently accepting connections', Fault.ACCESS),
    ('FATAL:  no pg_hba.conf entry for host "::1", user "a", database "b"', Fault.ACCESS),
    ("FATAL:  no such database: a", Fault.ACCESS),
    ("fe_sendauth: no password supplied", Fault.ACCESS),
    ('FATAL:  unrecognized configuration parameter "aplication_name"', Fault.ACCESS),
    ('FATAL:  invalid value for parameter "work_mem": "much"', Fault.ACCESS),
    ("FATAL:  invalid command-line argument for server process: foo", Fault.ACCESS),
    ('FATAL:  permission denied to set parameter "log_statement"', Fault.ACCESS),
    ("FATAL:  unsupported startup parameter: search_path", Fault.ACCESS),
    ('invalid sslmode value: "requre"', Fault.ACCESS),
    ('invalid integer value "x" for connection option "keepalives_idle"', Fault.ACCESS),
    ('definition of service "app" not found', Fault.ACCESS),
    ("FATAL:  sorry, too many clients already", Fault.CAPACITY),
    ('FATAL:  too many connections for role "a"', Fault.CAPACITY),
    ("FATAL:  remaining connection slots are reserved for roles with", Fault.CAPACITY),
    ("FATAL:  no more connections allowed (max_client_conn)", Fault.CAPACITY),
    ("FATAL:  the database system is starting up", None),
    ("FATAL:  the database system is shutting down", None),
    ("Connection refused", None),
    ("server is not in hot standby mode", None),
]


@pytest.mark.parametrize(("message", "fault"), MESSAGES, ids=[message for message, _ in MESSAGES])
def test_a_connect_is_judged_by_what_the_server_said(message: str, fault: Fault | None) -> None:
    """libpq gives no SQLSTATE for a failed connect."""
    assert classify(psycopg.OperationalError(REFUSED + message)) is fault


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        (errors.AdminShutdown, Fault.SERVER),
        (errors.CrashShutdown, Fault.SERVER),
        (errors.ReadOnlySqlTransaction, Fault.FAILOVER),
        (errors.InvalidPassword, Fault.ACCESS),
        (errors.InvalidCatalogName, Fault.ACCESS),
        (errors.TooManyConnections, Fault.CAPACITY),
        (errors.CannotConnectNow, None),
        (errors.UniqueViolation, None),
        (errors.QueryCanceled, None),
        (errors.IdleSessionTimeout, None),
        (errors.IdleInTransactionSessionTimeout, None),
    ],
)
def test_a_statements_error_is_judged_by_its_sqlstate(
    state: type[psycopg.Error], fault: Fault | None
) -> None:
    """The text of the error does not matter."""
    assert classify(state('FATAL:  role "a" does not exist')) is fault


def test_access_is_refused_only_where_every_address_refuses_it() -> None:
    """An address that is down might accept the login later."""

    def tried(*messages: str) -> psycopg.OperationalError:
        lines = "\n".join(
            f"- host: 'a', port: '1', hostaddr: 'b': {REFUSED}{each}" for each in messages
        )
        last = f"{REFUSED}{messages[-1]}\nMultiple connection attempts failed. All failures were:\n"
        return psycopg.OperationalError(last + lines)

    role = 'FATAL:  role "a" does not exist'
    assert classify(tried(role, role)) is Fault.ACCESS
    assert classify(tried("Connection refused", role)) is None
    assert classify(tried(role, "FATAL:  the database system is starting up")) is None
    full = "FATAL:  sorry, too many clients already"
    assert classify(tried(full, "Connection refused")) is Fault.CAPACITY


def test_an_error_that_is_not_psycopgs_has_no_fault() -> None:
    """A statement's error that quotes such a message has no fault either."""
    assert classify(OSError("FATAL:  sorry, too many clients already")) is None
    assert classify(psycopg.ProgrammingError('FATAL:  role "a" does not exist')) is None
