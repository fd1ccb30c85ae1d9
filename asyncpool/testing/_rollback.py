"""A pool whose work is rolled back at the end of a test, even what the tested code commits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from inspect import isawaitable
from typing import Any, TypeVar, overload

from psycopg import AsyncConnection, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import AsyncConnectionPool

from ._transaction_proxy import TransactionProxy

ROUTE = {"host", "hostaddr", "port", "service", "password", "passfile", "channel_binding"}
ROUTE |= {"require_auth", "target_session_attrs", "load_balance_hosts", "connect_timeout"}
SECURE = {"require", "verify-ca", "verify-full"}


ACT = TypeVar("ACT", bound=AsyncConnection[Any])


@overload
def rollback_pool(
    source: str, *, patience: float = ..., nested: bool = ..., **options: Any
) -> AbstractAsyncContextManager[AsyncConnectionPool]: ...


@overload
def rollback_pool(
    source: AsyncConnectionPool[ACT], *, patience: float = ..., nested: bool = ..., **options: Any
) -> AbstractAsyncContextManager[AsyncConnectionPool[ACT]]: ...


def rollback_pool(
    source: str | AsyncConnectionPool[Any],
    *,
    patience: float = 10.0,
    nested: bool = False,
    **options: Any,
) -> AbstractAsyncContextManager[AsyncConnectionPool[Any]]:
    """A pool for an `async with` block, whose work is rolled back at the end of the block.

    Its connections share one session of the server, which is in a transaction. For the tested code
    each connection has a transaction state of its own: BEGIN, COMMIT, ROLLBACK and statements in
    autocommit work as usual, by means of savepoints. The pool's connections see each other's
    commits; no other session does. Only one connection at a time is in a transaction; others wait
    until it ends.

    Args:
        source: the server's connection string, or a pool, open or not, whose connection string,
            keywords, class, timeout and `max_size` are used; the pool itself is not.
        patience: seconds for which a connection waits while another one idles in a transaction;
            then it gets an error.
        nested: whether it then runs inside the other's transaction, with no error: it sees
            uncommitted changes, and is rolled back with that transaction.
        options: further options of the pool, such as `configure`.

    Raises:
        TypeError: the source is neither a connection string nor a pool.
        ValueError: the source requires encryption, or a number makes no sense.
        psycopg.OperationalError: on entry: connecting to the server failed.
    """
    if not isinstance(source, str | AsyncConnectionPool):
        msg = f"a rollback pool is made from a connection string or a pool, not {source!r}"
        raise TypeError(msg)
    if not patience > 0:
        msg = f"patience must be more than 0 seconds, not {patience!r}"
        raise ValueError(msg)
    return _rollback_pool(source, patience, nested, options)


@asynccontextmanager
async def _rollback_pool(
    source: str | AsyncConnectionPool[Any],
    patience: float,
    nested: bool,
    options: dict[str, Any],
) -> AsyncIterator[AsyncConnectionPool[Any]]:
    given: dict[str, Any] = {"min_size": 1, "max_size": 4}
    conninfo: Any = source
    if isinstance(source, AsyncConnectionPool):
        conninfo = source.conninfo
        for name in ("kwargs", "connection_class", "max_size", "timeout"):
            given[name] = getattr(source, name)
    given |= options
    keywords: Mapping[str, Any] = await _resolve(given.pop("kwargs", None)) or {}
    conninfo = await _resolve(conninfo)
    params, own = _split(conninfo, keywords)
    async with TransactionProxy(params, patience, nested=nested) as proxy:
        local = {key: value for key, value in params.items() if key not in ROUTE}
        dsn = make_conninfo(**local, host=proxy.host, port=5432)
        async with AsyncConnectionPool(dsn, kwargs=own, **given) as pool:
            try:
                yield pool
            except BaseException:
                await pool.closeall()  # do not wait for leased connections
                raise


async def _resolve(given: Any) -> Any:
    value = given() if callable(given) else given
    return await value if isawaitable(value) else value


def _split(conninfo: str, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate libpq's parameters from the keywords of psycopg's connect()."""
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    options = {k: v for k, v in keywords.items() if k in known}
    AsyncConnectionPool(conninfo, kwargs=options, open=False)  # psycopg's errors quote mistakes
    params = conninfo_to_dict(conninfo, **options)
    if params.get("sslmode") in SECURE or params.get("gssencmode") == "require":
        msg = (
            "the connection string requires encryption, and a rollback pool speaks to the server"
            " without it: use sslmode=disable"
        )
        raise ValueError(msg)
    params |= {"sslmode": "disable", "gssencmode": "disable"}
    return params, {k: v for k, v in keywords.items() if k not in known}
