"""The examples for other libraries, as their readers run them: in processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from asyncpool import compat
from tests.postgres._tools import EXAMPLES, example

LIMIT = 30.0
"""Seconds until a test gives up; nothing here should take a tenth of it."""


@asynccontextmanager
async def running(
    name: str, dsn: str, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """An example's process and its output; it is ended in any case."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / f"{name}.py"), *arguments),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"DATABASE_URL": dsn, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(name: str, dsn: str, *arguments: str) -> str:
    """Run an example to its end, and return what it prints."""
    async with running(name, dsn, *arguments) as (process, _):
        output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
        assert process.returncode == 0
        return output.decode()


async def test_the_worker_runs_jobs_that_came_before_it_and_those_that_come(database: str) -> None:
    """What the jobs wrote is committed, and SIGTERM ends the worker with status 0."""
    pytest.importorskip("procrastinate")
    assert await run("procrastinate_worker", database, "add", "Ada", "Bob") == ""
    async with running("procrastinate_worker", database) as (worker, output):

        async def lines(number: int) -> set[bytes]:
            return {await asyncio.wait_for(output.readline(), LIMIT) for _ in range(number)}

        assert await lines(1) == {b"working; Ctrl-C stops\n"}
        assert await lines(2) == {b"Hello, Ada!\n", b"Hello, Bob!\n"}
        await run("procrastinate_worker", database, "add", "Eve")
        assert await lines(1) == {b"Hello, Eve!\n"}
        worker.send_signal(signal.SIGTERM)
        rest, _ = await asyncio.wait_for(worker.communicate(), LIMIT)
        assert (worker.returncode, rest) == (0, b"")
    with psycopg.connect(database) as conn:
        cursor = conn.execute("SELECT name FROM greetings ORDER BY name")
        assert cursor.fetchall() == [("Ada",), ("Bob",), ("Eve",)]
        cursor = conn.execute("SELECT DISTINCT status::text FROM procrastinate_jobs")
        assert cursor.fetchall() == [("succeeded",)]


async def test_a_conversation_goes_on_in_another_process(database: str) -> None:
    """A user is known in each of their conversations, and in nobody else's."""
    pytest.importorskip("langgraph.graph")
    said = ["ada", "monday", "tea"], ["ada", "monday", "cake"], ["ada", "friday", "hi"]
    replies = [await run("langgraph_memory", database, *words) for words in said]
    assert replies == [
        "1 in this conversation, 1 from you in all\n",
        "2 in this conversation, 2 from you in all\n",
        "1 in this conversation, 3 from you in all\n",
    ]
    reply = await run("langgraph_memory", database, "bob", "friday", "hi")
    assert reply == "1 in this conversation, 1 from you in all\n"


async def test_many_conversations_at_once_are_kept_apart(database: str) -> None:
    """More of them than the pool has connections, and none is left borrowed."""
    pytest.importorskip("langgraph.graph")
    memory: Any = example("langgraph_memory")
    async with (
        compat.AsyncConnectionPool(database, max_size=4, kwargs=memory.OPTIONS) as pool,
        memory.memory(pool) as graph,
    ):
        for turn in range(1, 4):
            users = [f"user {number}" for number in range(12)]
            says = (memory.say(graph, user, "monday", f"turn {turn}") for user in users)
            replies = await asyncio.gather(*says)
            assert replies == [f"{turn} in this conversation, {turn} from you in all"] * 12
        assert pool.stats().leased == 0
