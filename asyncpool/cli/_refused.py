"""Advice on a refused connection, chosen by the error's message."""

from __future__ import annotations

import re

from asyncpool.cli._findings import Finding
from asyncpool.cli._target import brief

# The server's messages are in English unless lc_messages sets another language.
REMEDIES = (
    (
        r"Connection refused|No such file",
        "is the server running, and are the address and port right?",
    ),
    (r"timeout|timed out|no connection within", "no answer: a firewall, or a wrong address?"),
    (r"resolve host|label empty", "no such host: check its name and this machine's DNS"),
    (
        r"unsupported startup parameter",
        "add it to PgBouncer's ignore_startup_parameters, or remove it",
    ),
    (r"password|authentication failed", "check the user and the password in the DSN"),
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", "allow this user and address in pg_hba.conf"),
    (r"too many connections for role", "raise its limit: ALTER ROLE ... CONNECTION LIMIT ..."),
    (r"too many connections for database", "raise its limit: ALTER DATABASE ... CONNECTION LIMIT"),
    (
        r"too many|slots are reserved|no more connections",
        "see pg_stat_activity for their users; raise max_connections, or use fewer",
    ),
    (r"starting up|shutting down|recovery", "wait until the server has started"),
    (
        r"session is (not )?read-only|(not )?in hot standby",
        "no host matches target_session_attrs: has the failover happened?",
    ),
    (r"does not support SSL", "enable TLS on the server, or relax sslmode"),
    (
        r"certificate|sslrootcert|SSL",
        "check sslmode, sslrootcert and the server's certificate",
    ),
    (r"does not exist|no such (database|user)", "create it, or correct the DSN"),
)


def refused(error: BaseException) -> Finding:
    """Return the finding for a failed connect, with advice if the message is known."""
    message = brief(error)
    advice = next((advice for what, advice in REMEDIES if re.search(what, message)), "")
    return Finding("connect", "problem", message, advice)
