"""Starlette's synchronous TestClient, which runs an app in an event loop of another thread."""

from __future__ import annotations

import warnings

from fastapi import FastAPI

from asyncpool import AsyncConnectionPool
from asyncpool.integrations.fastapi import Pool
from asyncpool.integrations.starlette import lifespan

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it prefers another HTTP client
    from fastapi.testclient import TestClient


def test_a_test_client_starts_an_app_again_and_again(asyncpool_dsn: str) -> None:
    """Each start has an event loop of its own, and a pool that the lifespan makes for it."""
    pools: list[AsyncConnectionPool] = []

    def make_pool() -> AsyncConnectionPool:
        pools.append(AsyncConnectionPool(asyncpool_dsn))
        return pools[-1]

    app = FastAPI(lifespan=lifespan(make_pool))

    @app.get("/one")
    async def one(pool: Pool) -> int:
        number: int = await pool.fetchval("SELECT 1")
        return number

    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/one").json() == 1
    assert [pool.closed for pool in pools] == [True, True]
