"""Typed dependencies for FastAPI, from 0.121 on; all else is in `asyncpool.integrations.starlette`.

Blocks end in the function's scope, so the commit comes before the response. With FastAPI's default
a client might be told of a success that the commit then denies, and a slow one keep a connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Annotated, Any

from fastapi import Depends
from psycopg import AsyncConnection
from starlette.requests import HTTPConnection

from asyncpool import AsyncConnectionPool

from .asgi import pool_of, transaction_of

__all__ = [
    "Connection",
    "Pool",
    "RequestTransaction",
    "Transaction",
    "connection",
    "pool",
    "request_transaction",
    "transaction",
]


def pool(name: str = "pool") -> Any:
    """The app's pool of this name, to be used in `Annotated`."""
    return Depends(_pool(name))


def connection(name: str = "pool") -> Any:
    """A connection of this pool for the handler: committed at its end, rolled back if it raises.

    `Annotated[AsyncConnection, connection("reports")]`: all who ask for it in a request share it.
    """
    return Depends(_connection(name), scope="function")


def transaction(name: str = "pool") -> Any:
    """The same as one explicit transaction block, in autocommit mode too."""
    return Depends(_transaction(name), scope="function")


def request_transaction(name: str = "pool") -> Any:
    """The connection of the transaction that `TransactionPerRequest` ends, by the status."""
    return Depends(_request_transaction(name))


# FastAPI knows what it has already by the function, so each is made once.


@cache
def _pool(name: str) -> Callable[[HTTPConnection], AsyncConnectionPool[Any]]:
    async def find(request: HTTPConnection) -> AsyncConnectionPool[Any]:
        return pool_of(request.scope, name)

    return find  # type: ignore[return-value]


@cache
def _connection(name: str) -> Callable[[HTTPConnection], AsyncIterator[AsyncConnection[Any]]]:
    async def lend(request: HTTPConnection) -> AsyncIterator[AsyncConnection[Any]]:
        async with pool_of(request.scope, name).connection() as conn:
            yield conn

    return lend


@cache
def _transaction(name: str) -> Callable[[HTTPConnection], AsyncIterator[AsyncConnection[Any]]]:
    async def lend(request: HTTPConnection) -> AsyncIterator[AsyncConnection[Any]]:
        async with pool_of(request.scope, name).transaction() as conn:
            yield conn

    return lend


@cache
def _request_transaction(name: str) -> Callable[[HTTPConnection], Any]:
    async def find(request: HTTPConnection) -> AsyncConnection[Any]:
        return await transaction_of(request.scope, name)

    return find


Pool = Annotated[AsyncConnectionPool, pool()]
Connection = Annotated[AsyncConnection, connection()]
Transaction = Annotated[AsyncConnection, transaction()]
RequestTransaction = Annotated[AsyncConnection, request_transaction()]
