"""The workers of docs/recipes/task_queues.md as their users run them: in processes of their own.

The page's blocks become a module, with a broker that is there. Each worker gets a job from another
process and does it; SIGTERM then closes its pool.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "recipes" / "task_queues.md"
LIMIT = 60.0
"""Seconds until a test gives up; nothing here should take a tenth of it."""
NAME = "queue-worker"
"""The application_name of the workers' sessions."""
LOG = """
import logging

pools = logging.FileHandler("pools.log")
pools.setFormatter(logging.Formatter("%(process)d %(message)s"))
logging.getLogger("asyncpool").addHandler(pools)
logging.getLogger("asyncpool").setLevel(logging.INFO)
"""


def recipe(section: str) -> str:
    """Return the definitions of a section of the page, after those that all sections share."""
    text = PAGE.read_text(encoding="utf-8")
    start, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    (body,) = (each for each in rest if each.startswith(f"{section}\n"))
    shared, own = (
        re.findall(r"^```python\n(.*?)^```", part, re.M | re.S) for part in (start, body)
    )
    # What stands at the top level after these words is the page's own test.
    return LOG + "\n".join(
        re.split(r"^(?:async with|await) ", each, flags=re.M)[0] for each in (shared[0], own[0])
    )


@pytest.fixture
def redis_url() -> Iterator[str]:
    """A Redis server of this test's own, as an ordinary user's process."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not on the PATH")
    redis: Any = pytest.importorskip("redis")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        who = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    process = subprocess.Popen(
        [program, "--bind", "127.0.0.1", "--port", str(port), "--save", ""],
        stdout=subprocess.DEVNULL,
        cwd="/",
        **who,
    )
    try:
        deadline = monotonic() + LIMIT
        with redis.Redis(port=port) as client:
            while not answers(client.ping, redis.ConnectionError):
                assert process.poll() is None, "redis-server has ended"
                assert monotonic() < deadline, "redis-server does not answer"
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(LIMIT)


def answers(ping: Callable[[], object], error: type[Exception]) -> bool:
    """Whether a server answers."""
    try:
        return bool(ping())
    except error:
        return False


class Place:
    """A folder with the module `worker`, and programs that run in it."""

    def __init__(self, folder: Path, dsn: str, source: str) -> None:
        self._folder = folder
        self._dsn = dsn
        self._env = os.environ | {
            "DATABASE_URL": make_conninfo(dsn, application_name=NAME),
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "PYTHONUNBUFFERED": "1",
        }
        (folder / "worker.py").write_text(source, encoding="utf-8")
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("CREATE TABLE mails (address text)")

    @asynccontextmanager
    async def worker(self, *arguments: str) -> AsyncIterator[Worker]:
        """A worker's process; it is ended in any case."""
        with (self._folder / "worker.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *arguments),
                cwd=self._folder,
                env=self._env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        worker = Worker(process, self._folder)
        try:
            yield worker
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def enqueue(self, code: str) -> None:
        """Enqueue a job from another process."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code), cwd=self._folder, env=self._env
        )
        assert await asyncio.wait_for(process.wait(), LIMIT) == 0

    def ask(self, query: str) -> list[Any]:
        """Return the first column of a query's rows."""
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            return [row[0] for row in conn.execute(query.encode()).fetchall()]

    def mails(self) -> list[str]:
        """Return the addresses that jobs have stored."""
        return self.ask("SELECT address FROM mails ORDER BY address")

    def sessions(self) -> list[int]:
        """Return the sessions that workers have."""
        return self.ask(f"SELECT pid FROM pg_stat_activity WHERE application_name = '{NAME}'")


class Worker:
    """A worker's process."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder

    def said(self) -> str:
        """Return what the worker has printed."""
        return (self._folder / "worker.log").read_text(encoding="utf-8")

    async def until(self, fact: Callable[[], object]) -> None:
        """Wait until `fact()` is true, while the worker runs."""
        deadline = monotonic() + LIMIT
        while not fact():
            assert self._process.returncode is None, self.said()
            assert monotonic() < deadline, self.said()
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop the worker as a supervisor does; each pool that it has opened is closed."""
        self._process.send_signal(signal.SIGTERM)
        status = await asyncio.wait_for(self._process.wait(), LIMIT)
        assert status == 0, self.said()
        assert "Traceback" not in self.said(), self.said()
        pools = (self._folder / "pools.log").read_text(encoding="utf-8")
        opened, closed = (
            set(re.findall(rf"^(\d+) pool '[\w-]+': {word}", pools, re.MULTILINE))
            for word in ("open", "closing, with 0 connections in use")
        )
        assert opened, pools
        assert opened == closed, pools


async def test_a_worker_of_arq_runs_a_job_and_closes_its_pool(
    database: str, redis_url: str, tmp_path: Path
) -> None:
    """arq calls the recipe's functions at the start and at the end of the worker."""
    pytest.importorskip("arq")
    settings = f"""
from arq import create_pool
from arq.connections import RedisSettings

WorkerSettings.redis_settings = RedisSettings.from_dsn("{redis_url}")


async def enqueue(address):
    redis = await create_pool(WorkerSettings.redis_settings)
    await redis.enqueue_job("send_mail", address)
    await redis.aclose()
"""
    place = Place(tmp_path, database, recipe("arq") + settings)
    async with place.worker("arq", "worker.WorkerSettings") as worker:
        await worker.until(place.sessions)
        await place.enqueue(
            "import asyncio, worker; asyncio.run(worker.enqueue('ada@example.com'))"
        )
        await worker.until(place.mails)
        await worker.stop()
    assert place.mails() == ["ada@example.com"]
    assert place.sessions() == []


TASKIQ = """
import pickle

import redis.asyncio
from taskiq import AsyncBroker, AsyncResultBackend


class Results(AsyncResultBackend):
    async def set_result(self, task_id, result):
        await broker.redis.set(task_id, pickle.dumps(result))

    async def is_result_ready(self, task_id):
        return await broker.redis.exists(task_id)

    async def get_result(self, task_id, with_logs=False):
        return pickle.loads(await broker.redis.get(task_id))


class Lists(AsyncBroker):
    async def startup(self):
        self.redis = redis.asyncio.from_url("REDIS_URL")
        await super().startup()

    async def shutdown(self):
        await super().shutdown()
        await self.redis.aclose()

    async def kick(self, message):
        await self.redis.lpush("tasks", message.message)

    async def listen(self):
        while True:
            yield (await self.redis.brpop("tasks"))[1]


broker = Lists().with_result_backend(Results())
"""
"""A broker and a store of results in Redis. taskiq-redis excludes the redis that arq needs."""


async def test_a_worker_of_taskiq_runs_a_task_and_closes_its_pool(
    database: str, redis_url: str, tmp_path: Path
) -> None:
    """The recipe's dependency gives the task the pool of its worker's process."""
    pytest.importorskip("taskiq")
    source, given = recipe("taskiq"), "broker = InMemoryBroker()\n"
    assert given in source
    source = source.replace(given, TASKIQ.replace("REDIS_URL", redis_url))
    source += """

async def enqueue():
    await broker.startup()
    task = await count_mails.kiq()
    result = await task.wait_result(timeout=30)
    assert result.return_value == 1, result
    await broker.shutdown()
"""
    place = Place(tmp_path, database, source)
    place.ask("INSERT INTO mails VALUES ('ada@example.com') RETURNING address")
    async with place.worker("taskiq", "worker", "worker:broker", "--workers", "2") as worker:
        await worker.until(lambda: len(place.sessions()) == 2)
        await place.enqueue("import asyncio, worker; asyncio.run(worker.enqueue())")
        await worker.stop()
    assert place.sessions() == []


async def test_a_worker_of_celery_runs_a_task_and_closes_its_pools(
    database: str, tmp_path: Path
) -> None:
    """Each process that the worker forks has a pool, from its first signal to its last."""
    pytest.importorskip("celery")
    source = recipe("Celery")
    given = 'broker="memory://", backend="cache+memory://"'
    assert given in source
    source = source.replace(given, 'broker="filesystem://", include=["worker"]')
    source += """
options = {each: "queue" for each in ("data_folder_in", "data_folder_out", "control_folder")}
celery.conf.broker_transport_options = options
"""
    (tmp_path / "queue").mkdir()
    place = Place(tmp_path, database, source)
    command = ("celery", "-A", "worker:celery", "worker", "--pool", "prefork", "--concurrency", "2")
    async with place.worker(*command) as worker:
        await worker.until(lambda: len(place.sessions()) == 2)
        await place.enqueue("import worker; worker.store_mail.delay('eve@example.com')")
        await worker.until(place.mails)
        await worker.stop()
    assert place.mails() == ["eve@example.com"]
    assert place.sessions() == []
