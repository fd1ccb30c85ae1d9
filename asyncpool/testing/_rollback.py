"""A pool whose work is undone at the end of a test, whatever the code under test commits."""

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
    """A pool for a block at whose end all that was done through it is rolled back.

    Its connections lead to one session of the server, which is in a transaction. For the code under
    test each has a transaction state of its own: BEGIN, COMMIT and ROLLBACK, and statements in
    autocommit, work as they do elsewhere, with savepoints. What one has committed the others see,
    and nobody else ever does. Only one at a time is in a transaction, and others wait for its end.

    Args:
        source: the server's connection string, or a pool, open or not, whose connection string,
            keywords, class, timeout and `max_size` are taken; it is not used itself.
        patience: seconds after which a connection that waits while another does nothing in its
            transaction is told so by an error.
        nested: whether it works inside of that transaction then, with no error: it sees what is not
            committed yet, and is rolled back with it.
        options: more of the pool's own, such as `configure`.

    Raises:
        TypeError: the source is neither.
        ValueError: the source asks for an encrypted connection, or a number makes no sense.
        psycopg.OperationalError: on entry: the server is not there.
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
    keywords: Mapping[str, Any] = await _settle(given.pop("kwargs", None)) or {}
    conninfo = await _settle(conninfo)
    AsyncConnectionPool(conninfo, open=False)  # psycopg would quote a malformed one
    params, own = _part(conninfo, keywords)
    async with TransactionProxy(params, patience, nested=nested) as proxy:
        local = {key: value for key, value in params.items() if key not in ROUTE}
        dsn = make_conninfo(**local, host=proxy.host, port=5432)
        async with AsyncConnectionPool(dsn, kwargs=own, **given) as pool:
            try:
                yield pool
            except BaseException:
                await pool.closeall()  # what is lent out is not waited for
                raise


async def _settle(given: Any) -> Any:
    value = given() if callable(given) else given
    return await value if isawaitable(value) else value


def _part(conninfo: str, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is for the server, and what for psycopg alone."""
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    params = conninfo_to_dict(conninfo, **{k: v for k, v in keywords.items() if k in known})
    if params.get("sslmode") in SECURE or params.get("gssencmode") == "require":
        msg = (
            "a rollback pool speaks to the server itself, and without encryption: give it a"
            " connection string with sslmode=disable"
        )
        raise ValueError(msg)
    params |= {"sslmode": "disable", "gssencmode": "disable"}
    return params, {k: v for k, v in keywords.items() if k not in known}
