"""A PostgreSQL server for tests and demos, and a pool that rolls back a test's work."""

from ._backend import ServerError, ServerUnavailable, ServerUnsupported
from ._rollback import rollback_pool
from ._server import Server, postgres

__all__ = [
    "Server",
    "ServerError",
    "ServerUnavailable",
    "ServerUnsupported",
    "postgres",
    "rollback_pool",
]
