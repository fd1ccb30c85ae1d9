"""A pool that keeps no connection: a bound and a line, for use behind a pooler such as PgBouncer.

It is the same core with `keeps_idle` off, so that the ledger refuses what nobody waits for. Nothing
here decides who is served.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ClassVar, Self

from asyncpool._core.budget import Budget
from asyncpool._psycopg.driver import ACT, INERROR, INTRANS, Conninfo, Kwargs, ResetLevel, run
from asyncpool.faults import Fault, classify
from asyncpool.pool import WATCHED, AsyncConnectionPool


class AsyncNullConnectionPool(AsyncConnectionPool[ACT]):
    """A pool that opens a connection for each request and closes it afterwards.

    One that comes back while others wait goes to the first of them, once it is clean; `reset` is
    called for these only. What is left of a transaction is rolled back before the connection is
    closed, so that a pooler between need not close the server's.

    The arguments are those of `AsyncConnectionPool`, except:

    Args:
        min_size: 0.
        max_size: the most connections there may be, in every state; None or 0: no bound.
        close_returns: accepted, and of no effect: `conn.close()` closes.
        max_idle: accepted, and of no effect, as nothing is idle.
        ping_interval: the same.
        pipeline: whether one-shot statements that are asked for at the same time share
            connections; if false, each borrows one.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message has its name and value.
    """

    _keeps_idle: ClassVar[bool] = False

    def __init__(
        self,
        conninfo: Conninfo = "",
        *,
        connection_class: type[ACT] = WATCHED,  # type: ignore[assignment]
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
        """Open one connection, to see that the database can be reached, and keep none.

        Where all `max_size` are lent, they are proof enough. Any number of tasks may wait, at any
        time; they share one connect.

        Args:
            timeout: seconds to wait.

        Raises:
            PoolTimeout: not within `timeout` seconds, or access is refused; the pool is closed
                then, as in psycopg_pool, and the last connect error is the cause.
        """
        await super().wait(timeout)

    async def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change `max_size`; `min_size` stays 0. What is too many is closed on its return."""
        await super().resize(min_size, max_size)

    async def check(self) -> None:
        """Do nothing: there is no idle connection that might be broken."""

    def _return(
        self,
        conn: ACT,
        first: Callable[[], Awaitable[object]] | None = None,
        *,
        dismiss: bool = False,
    ) -> None:
        in_transaction = conn.pgconn.transaction_status in (INTRANS, INERROR)
        if first is None and in_transaction and not conn.lock.locked():
            # No conn.rollback(), which psycopg refuses inside of a transaction() block.
            first = partial(run, conn, b"ROLLBACK")
        super()._return(conn, first, dismiss=dismiss)
