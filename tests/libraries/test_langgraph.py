"""langgraph-checkpoint-postgres: checkpoints and a store on the pool, from many tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from psycopg.rows import dict_row

from asyncpool import compat

aio: Any = pytest.importorskip("langgraph.checkpoint.postgres.aio")
stores: Any = pytest.importorskip("langgraph.store.postgres.aio")
base: Any = pytest.importorskip("langgraph.checkpoint.base")

OPTIONS = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}


@pytest.mark.parametrize("kind", [compat.AsyncConnectionPool, compat.AsyncNullConnectionPool])
async def test_a_saver_keeps_the_checkpoints_of_many_threads(database: str, kind: Any) -> None:
    """Each thread of a graph finds its own latest checkpoint."""
    async with kind(database, max_size=5, min_size=0, kwargs=OPTIONS) as pool:
        saver = aio.AsyncPostgresSaver(pool)
        await saver.setup()

        async def run(thread: int) -> None:
            config = {"configurable": {"thread_id": str(thread), "checkpoint_ns": ""}}
            for step in range(3):
                checkpoint = {**base.empty_checkpoint(), "channel_values": {"step": step}}
                metadata = {"source": "loop", "step": step, "writes": {}, "parents": {}}
                after = await saver.aput(config, checkpoint, metadata, {})
                await saver.aput_writes(after, [("answer", thread * step)], f"task-{step}")
            found = await saver.aget_tuple(config)
            assert found.metadata["step"] == 2
            assert [write[1:] for write in found.pending_writes] == [("answer", thread * 2)]
            assert len([each async for each in saver.alist(config)]) == 3

        await asyncio.gather(*(run(thread) for thread in range(10)))


@pytest.mark.usefixtures("installed")
async def test_a_store_makes_its_own_pool(database: str) -> None:
    """From `pool_config`, with what is written by batches of its own task."""
    config = {"min_size": 1, "max_size": 3}
    async with stores.AsyncPostgresStore.from_conn_string(database, pool_config=config) as store:
        assert isinstance(store.conn, compat.AsyncConnectionPool)
        await store.setup()
        puts = (store.aput(("users",), str(n), {"number": n}) for n in range(20))
        await asyncio.gather(*puts)
        found = await store.aget(("users",), "7")
        assert found.value == {"number": 7}
        assert len(await store.asearch(("users",), limit=100)) == 20
