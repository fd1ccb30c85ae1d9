"""What to do about a connection that was refused, by what was said."""

from __future__ import annotations

import re

from asyncpool.cli._findings import Finding
from asyncpool.cli._target import brief

# The server's messages are in English unless its lc_messages is of another language.
REMEDIES = (
    (
        r"Connection refused|No such file",
        "is the server running, and is that its address and port?",
    ),
    (r"timeout|timed out|no connection within", "nothing answers: a firewall, or a wrong address?"),
    (r"resolve host|label empty", "no such host: look at its name, and at this machine's DNS"),
    (
        r"unsupported startup parameter",
        "PgBouncer: add it to ignore_startup_parameters, or leave it",
    ),
    (r"password|authentication failed", "look at the user and the password in the DSN"),
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", "pg_hba.conf has to admit user and address"),
    (r"too many connections for role", "raise its limit: ALTER ROLE ... CONNECTION LIMIT ..."),
    (r"too many connections for database", "raise its limit: ALTER DATABASE ... CONNECTION LIMIT"),
    (
        r"too many|slots are reserved|no more connections",
        "see in pg_stat_activity who has them; raise max_connections, or use less",
    ),
    (r"starting up|shutting down|recovery", "wait until it is up"),
    (
        r"session is (not )?read-only|(not )?in hot standby",
        "no host is what target_session_attrs asks for: has the failover happened?",
    ),
    (r"does not support SSL", "switch TLS on at the server, or relax sslmode"),
    (
        r"certificate|sslrootcert|SSL",
        "look at sslmode and sslrootcert, and the server's certificate",
    ),
    (r"does not exist|no such (database|user)", "create it, or correct the DSN"),
)


def refused(error: BaseException) -> Finding:
    """A connect that has failed, with what may help."""
    said = brief(error)
    advice = next((advice for what, advice in REMEDIES if re.search(what, said)), "")
    return Finding("connect", "problem", said, advice)
