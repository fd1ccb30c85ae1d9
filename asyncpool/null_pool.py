"""`AsyncNullConnectionPool`, a pool without idle connections, for use behind PgBouncer.

It uses the core with `keeps_idle` off: the ledger refuses a returned connection for which no
request waits. This module decides nothing about who is served.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ClassVar, Literal, Self

from asyncpool._core.budget import Budget
from asyncpool._psycopg.driver import ACT, INERROR, INTRANS
from asyncpool._psycopg.own_statements import ResetLevel, run
from asyncpool._psycopg.sources import Conninfo, Kwargs
from asyncpool.faults import Fault, classify
from asyncpool.pool import DEFAULT_CLASS, AsyncConnectionPool


class AsyncNullConnectionPool(AsyncConnectionPool[ACT]):
    """A pool that opens a connection for each request and closes it afterwards.

    A connection that is returned while requests wait is cleaned and handed to the first of them;
    only then is `reset` applied. An open transaction is rolled back before the connection is
    closed, so that a pooler in front of the server can keep its own connection.

    The arguments are those of `AsyncConnectionPool`, with these differences:

    Args:
        min_size: must be 0.
        max_size: the most connections, in every state; None or 0: no limit.
        close_returns: accepted without effect; `conn.close()` closes the connection.
        max_idle: accepted without effect, because no connection is idle.
        ping_interval: seconds of silence after which a listening connection is pinged.
        pipeline: whether concurrent one-shot statements share connections; if false, each
            statement borrows a connection.

    Raises:
        TypeError, ValueError: an argument is invalid; the message has its name and value.
    """

    _keeps_idle: ClassVar[bool] = False

    def __init__(
        self,
        conninfo: Conninfo = "",
        *,
        connection_class: type[ACT] = DEFAULT_CLASS,  # type: ignore[assignment]
        kwargs: Kwargs | None = None,
        min_size: int = 0,
        max_size: int | None = None,
        open: bool | None = True,  # noqa: A002
        configure: Callable[[ACT], Awaitable[None]] | None = None,
        check: Callable[[ACT], Awaitable[None]] | None = None,
        reset: ResetLevel | Callable[[ACT], Awaitable[None]] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        overload: Literal["wait", "refuse"] | None = "wait",
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: Callable[[Self], Any] | None = None,
        leak_timeout: float | None = None,
        fail_fast_after: float = 60.0,
        classify: Callable[[BaseException], Fault | None] = classify,
        budget: Budget | None = None,
        num_workers: int = 3,
        ping_interval: float = 30.0,
        ping_timeout: float = 5.0,
        pipeline: bool = False,
        shared_size: int | None = None,
    ) -> None:
        super().__init__(
            conninfo,
            connection_class=connection_class,
            kwargs=kwargs,
            min_size=min_size,
            max_size=max_size,
            open=open,
            configure=configure,
            check=check,
            reset=reset,
            name=name,
            timeout=timeout,
            max_waiting=max_waiting,
            overload=overload,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
            reconnect_failed=reconnect_failed,
            leak_timeout=leak_timeout,
            fail_fast_after=fail_fast_after,
            classify=classify,
            budget=budget,
            num_workers=num_workers,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            pipeline=pipeline,
            shared_size=shared_size,
        )

    async def wait(self, timeout: float = 30.0) -> None:
        """Open one connection to test that the database is reachable, and keep none.

        If all `max_size` connections are in use, it returns without a connect. Any number of tasks
        may wait at any time; they share one connect.

        Args:
            timeout: seconds to wait.

        Raises:
            PoolTimeout: `timeout` seconds have passed, or the server refuses access. The pool is
                closed, as in psycopg_pool, and the last connect error is the cause.
            PoolClosed: the pool is closed, or not open and `open` is false.
        """
        await super().wait(timeout)

    async def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change `max_size`; surplus connections are closed when they are returned.

        Args:
            min_size: must be 0.
            max_size: the most connections, in every state; None or 0: no limit.

        Raises:
            TypeError, ValueError: a size is invalid; nothing changes.
        """
        await super().resize(min_size, max_size)

    async def check(self) -> None:
        """Do nothing, because the pool has no idle connection."""

    def _return(
        self,
        conn: ACT,
        cleanup: Callable[[], Awaitable[object]] | None = None,
        *,
        discard: bool = False,
    ) -> None:
        in_transaction = conn.pgconn.transaction_status in (INTRANS, INERROR)
        if cleanup is None and in_transaction and not conn.lock.locked():
            # Not conn.rollback(): psycopg refuses it inside a transaction() block.
            cleanup = partial(run, conn, b"ROLLBACK")
        super()._return(conn, cleanup, discard=discard)
