"""A PostgreSQL server for tests and demos, from whatever this machine has."""

from ._backend import ServerError, ServerUnavailable, ServerUnsupported
from ._server import Server, postgres

__all__ = ["Server", "ServerError", "ServerUnavailable", "ServerUnsupported", "postgres"]
