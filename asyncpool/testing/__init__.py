"""A PostgreSQL server for tests and demos, and a pool that rolls back a test's work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._backend import ServerError, ServerUnavailable, ServerUnsupported
from ._server import Server, postgres

if TYPE_CHECKING:
    from ._rollback import rollback_pool

__all__ = [
    "Server",
    "ServerError",
    "ServerUnavailable",
    "ServerUnsupported",
    "postgres",
    "rollback_pool",
]


def __getattr__(name: str) -> Any:
    if name == "rollback_pool":
        from ._rollback import rollback_pool  # noqa: PLC0415 - pytest loads us at every start

        return rollback_pool
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
