"""Typed dependencies for FastAPI 0.121 or later; the rest is in `asyncpool.integrations.starlette`.

Blocks end in the function's scope, so the commit comes before the response. With FastAPI's default
scope a client could get a success for a failed commit, and a slow client would hold a connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Annotated, Any

from fastapi import Depends
from psycopg import AsyncConnection
from starlette.requests import HTTPConnection

from asyncpool import AsyncConnectionPool, Cluster

from .asgi import cluster_of, pool_of, transaction_of

__all__ = [
    "ClusterDep",
    "ConnectionDep",
    "Pool",
    "ReadConnection",
    "RequestTransaction",
    "Transaction",
    "WriteConnection",
    "WriteTransaction",
    "cluster",
    "connection",
    "pool",
    "read_connection",
    "request_transaction",
    "transaction",
    "write_connection",
    "write_transaction",
]


def pool(name: str = "pool") -> Any:
    """A dependency for `Annotated`: the app's pool of this name."""
    return Depends(_pool(name))


def connection(name: str = "pool") -> Any:
    """A dependency: a connection, committed after the handler, or rolled back if it raises.

    With `Annotated[AsyncConnection, connection("reports")]`, all dependencies of a request share
    one connection of the pool "reports".
    """
    return Depends(_connection(name), scope="function")


def transaction(name: str = "pool") -> Any:
    """A dependency: a connection in an explicit transaction block, also in autocommit mode."""
    return Depends(_transaction(name), scope="function")


def cluster(name: str = "cluster") -> Any:
    """A dependency for `Annotated`: the app's cluster of this name."""
    return Depends(_cluster(name))


def write_connection(name: str = "cluster") -> Any:
    """A dependency as `connection`, on the primary of a cluster."""
    return connection(name)


def write_transaction(name: str = "cluster") -> Any:
    """A dependency as `transaction`, on the primary of a cluster."""
    return transaction(name)


def read_connection(name: str = "cluster") -> Any:
    """A dependency as `connection`, on a host of a cluster that takes reads.

    Where `ReadOwnWrites` is among the app's middleware, the host has what the user has written
    before this request; a request that writes and then reads borrows from the cluster itself.
    """
    return Depends(_read_connection(name), scope="function")


def request_transaction(name: str = "pool") -> Any:
    """A dependency: the connection of the transaction that `TransactionPerRequest` ends."""
    return Depends(_request_transaction(name))


# FastAPI caches a dependency by its function, so each function is made once.


@cache
def _pool(name: str) -> Callable[[HTTPConnection], AsyncConnectionPool[Any]]:
    async def find(request: HTTPConnection) -> AsyncConnectionPool[Any]:
        return pool_of(request.scope, name)

    return find  # type: ignore[return-value]


@cache
def _connection(name: str) -> Callable[[HTTPConnection], AsyncIterator[AsyncConnection[Any]]]:
    async def lease(request: HTTPConnection) -> AsyncIterator[AsyncConnection[Any]]:
        async with pool_of(request.scope, name).connection() as conn:
            yield conn

    return lease


@cache
def _transaction(name: str) -> Callable[[HTTPConnection], AsyncIterator[AsyncConnection[Any]]]:
    async def lease(request: HTTPConnection) -> AsyncIterator[AsyncConnection[Any]]:
        async with pool_of(request.scope, name).transaction() as conn:
            yield conn

    return lease


@cache
def _cluster(name: str) -> Callable[[HTTPConnection], Cluster[Any]]:
    async def find(request: HTTPConnection) -> Cluster[Any]:
        return cluster_of(request.scope, name)

    return find  # type: ignore[return-value]


@cache
def _read_connection(name: str) -> Callable[[HTTPConnection], AsyncIterator[AsyncConnection[Any]]]:
    async def lease(request: HTTPConnection) -> AsyncIterator[AsyncConnection[Any]]:
        async with cluster_of(request.scope, name).read.connection() as conn:
            yield conn

    return lease


@cache
def _request_transaction(name: str) -> Callable[[HTTPConnection], Any]:
    async def find(request: HTTPConnection) -> AsyncConnection[Any]:
        return await transaction_of(request.scope, name)

    return find


Pool = Annotated[AsyncConnectionPool, pool()]
ConnectionDep = Annotated[AsyncConnection, connection()]
Transaction = Annotated[AsyncConnection, transaction()]
RequestTransaction = Annotated[AsyncConnection, request_transaction()]
ClusterDep = Annotated[Cluster, cluster()]
WriteConnection = Annotated[AsyncConnection, write_connection()]
WriteTransaction = Annotated[AsyncConnection, write_transaction()]
ReadConnection = Annotated[AsyncConnection, read_connection()]
