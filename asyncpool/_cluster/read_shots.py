"""The one-shot methods of `cluster.read`.

Each picks a host and runs there, with no task of its own. Only what has to wait for a host, is
moved or may be run again goes through `Router.run`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, overload

from psycopg.abc import Params, Query
from psycopg.rows import AsyncRowFactory, Row

from asyncpool._cluster.choosing import Router
from asyncpool._cluster.pools import HostLeft, HostPool, now
from asyncpool._pipeline.results import ALL_ROWS, FIRST_ROW, FIRST_VALUE, TAG, Answer
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import PoolUnavailable


class ReadShots(Generic[ACT]):
    """The one-shot methods of `cluster.read`."""

    _router: Router

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        timeout: float | None = None,
        prepare: bool | None = None,
        after: str | None = None,
        retry_elsewhere: bool = False,
    ) -> str:
        """Run one statement by itself on a host that takes reads; return its command tag.

        Other arguments and errors are those of `AsyncConnectionPool.execute`.

        Args:
            timeout: seconds for all of it, the waits for a host and a connection included; None:
                the pool's `timeout` for these waits alone.
            after: a token; the host has replayed what the token stands for.
            retry_elsewhere: whether a plain read that fails because of its host is run again on
                another one; other statements are never run again.

        Raises:
            PoolTimeout: no host took reads in time, and the message says for each host why; or as
                for the pool's method.
        """
        tag: str = await self._run_one(
            TAG, query, params, timeout, prepare, after=after, retry=retry_elsewhere
        )
        return tag

    @overload
    async def fetchall(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Row],
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
        after: str | None = None,
        retry_elsewhere: bool = False,
    ) -> list[Row]: ...

    @overload
    async def fetchall(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
        after: str | None = None,
        retry_elsewhere: bool = False,
    ) -> list[Any]: ...

    async def fetchall(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
        after: str | None = None,
        retry_elsewhere: bool = False,
    ) -> list[Any]:
        """Return all rows of one statement.

        `after` and `retry_elsewhere` are those of `execute`, the others those of
        `AsyncConnectionPool.fetchall`.
        """
        rows: list[Any] = await self._run_one(
            ALL_ROWS,
            query,
            params,
            timeout,
            prepare,
            binary=binary,
            row_factory=row_factory,
            after=after,
            retry=retry_elsewhere,
        )
        return rows

    @overload
    async def fetchone(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Row],
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
        after: str | None = None,
        retry_elsewhere: bool = False,
    ) -> Row | None: ...

    @overload
    async def fetchone(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
        after: str | None = None,
        retry_elsewhere: bool = False,
    ) -> Any | None: ...

    async def fetchone(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
        after: str | None = None,
        retry_elsewhere: bool = False,
    ) -> Any | None:
        """Return the first row of one statement, or None; otherwise like `fetchall`."""
        return await self._run_one(
            FIRST_ROW,
            query,
            params,
            timeout,
            prepare,
            binary=binary,
            row_factory=row_factory,
            after=after,
            retry=retry_elsewhere,
        )

    async def fetchval(
        self,
        query: Query,
        params: Params | None = None,
        *,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
        after: str | None = None,
        retry_elsewhere: bool = False,
    ) -> Any:
        """Return the first column of the first row of one statement, or None if there is no row."""
        return await self._run_one(
            FIRST_VALUE,
            query,
            params,
            timeout,
            prepare,
            binary=binary,
            after=after,
            retry=retry_elsewhere,
        )

    async def executemany(
        self,
        query: Query,
        params_seq: Iterable[Params],
        *,
        timeout: float | None = None,
        after: str | None = None,
    ) -> int:
        """Run one statement with each of several sets of values on one host.

        Returns:
            The total number of affected rows.
        """
        given = list(params_seq)

        async def work(pool: HostPool[Any], left: float | None) -> int:
            return await pool.executemany(query, given, timeout=left)

        return await self._router.run(work, timeout, self._router.after(after), None, now())

    async def batch(
        self,
        statements: Iterable[Query | tuple[Query, Params | None]],
        *,
        timeout: float | None = None,
        after: str | None = None,
    ) -> list[list[Any] | str]:
        """Run several statements on one host in one transaction, in one round trip.

        Arguments, result and errors are those of `AsyncConnectionPool.batch`; `after` is that of
        `execute`.
        """
        given = list(statements)

        async def work(pool: HostPool[Any], left: float | None) -> list[list[Any] | str]:
            return await pool.batch(given, timeout=left)

        return await self._router.run(work, timeout, self._router.after(after), None, now())

    async def _run_one(
        self,
        answer: Answer,
        query: Query,
        params: Params | None,
        timeout: float | None,
        prepare: bool | None,
        *,
        binary: bool = False,
        row_factory: AsyncRowFactory[Any] | None = None,
        after: str | None = None,
        retry: bool = False,
    ) -> Any:
        began, router = now(), self._router
        required = router.after(after)
        if required is None and not retry and (host := router.pick()) is not None:
            host.reads.under_way += 1
            try:
                return await host.pool.run_one(
                    answer, query, params, timeout, prepare, binary, row_factory
                )
            except (HostLeft, PoolUnavailable):
                router.members.suspect(host.name)
            finally:
                host.reads.under_way -= 1

        def work(pool: HostPool[Any], left: float | None) -> Any:
            return pool.run_one(answer, query, params, left, prepare, binary, row_factory)

        return await router.run(work, timeout, required, query if retry else None, began)
