"""Processes made by others: multiprocessing, executors, and gunicorn with --preload."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import httpx
import pytest

from tests._tools import few

from ._tools import Backends, eventually, in_time, run_script

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

MODULE = '''
import asyncio, gc, os, sys
from asyncpool import AsyncConnectionPool, PoolForked

pool = AsyncConnectionPool(os.environ["SOME_DSN"], min_size=2, max_size=2, name="module")
unopened = AsyncConnectionPool(os.environ["SOME_DSN"], min_size=1, name="unopened")

async def pids():
    conns = [await pool.acquire(10) for _ in range(2)]
    found = set()
    for conn in conns:
        cur = await conn.execute("SELECT pg_backend_pid()")
        found.add((await cur.fetchone())[0])
        await conn.rollback()
        await pool.release(conn)
    return found

async def use():
    """As a child does: `pool` was open before a fork, or was not, where it was imported anew."""
    try:
        value = await pool.fetchval("SELECT 7")
    except PoolForked:
        async with pool:
            value = await pool.fetchval("SELECT 7")
    else:
        await pool.close()
    assert await unopened.fetchval("SELECT 7") == 7
    await unopened.close()
    return value

def work(number=0):
    value = asyncio.run(use())
    gc.collect()
    return value

def end_at_once(number=0):
    gc.collect()
    os._exit(0)
'''

PARENT = """
import asyncio, os, sys, warnings
sys.path.insert(0, sys.argv[2])
os.environ["SOME_DSN"] = sys.argv[3]
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
import module

def processes(how):
    context = multiprocessing.get_context(how)
    for target in (module.work, module.end_at_once, sys.exit):
        process = context.Process(target=target)
        process.start()
        process.join(30)
        assert process.exitcode == 0, (target, process.exitcode)
    with context.Pool(2) as pool:
        assert pool.map(module.work, range(1)) == [7]
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        assert executor.submit(module.work).result(30) == 7

if __name__ == "__main__":
    with asyncio.Runner() as runner:
        runner.run(module.pool.open(wait=True))
        lent = runner.run(module.pool.getconn())
        runner.run(module.pool.release(lent))
        before = runner.run(module.pids())
        lent = runner.run(module.pool.getconn())
        processes(sys.argv[1])
        runner.run(lent.execute("SELECT 1"))
        runner.run(lent.rollback())
        runner.run(module.pool.release(lent))
        assert runner.run(module.pids()) == before
        runner.run(module.pool.close())
    print("done")
"""


@pytest.mark.parametrize("how", few(["fork", "spawn", "forkserver"]))
async def test_processes_of_every_kind_leave_the_parents_sessions_alone(
    dsn: str, how: str, tmp_path: Path
) -> None:
    """multiprocessing's and executors', that use the pool, exit, or end with no clean-up."""
    (tmp_path / "module.py").write_text(MODULE)
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    starter = (
        f"import runpy, sys; sys.argv = [{str(script)!r}, *sys.argv[1:]];"
        f" runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    assert (await run_script(starter, how, str(tmp_path), dsn)).split() == ["done"]


PRELOADED = """
import asyncio, os
from asyncpool import AsyncConnectionPool, PoolForked

unopened = AsyncConnectionPool(os.environ["SOME_DSN"], min_size=1, name="unopened")
opened = AsyncConnectionPool(os.environ["SOME_DSN"], min_size=2, name="opened")
loop = asyncio.new_event_loop()
loop.run_until_complete(opened.open(wait=True))

async def backend(pool):
    return await pool.fetchval("SELECT pg_backend_pid()")

parents = loop.run_until_complete(backend(opened))

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        try:
            await backend(opened)
        except PoolForked:
            await opened.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await opened.close()
        await unopened.close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    pids = [os.getpid(), await backend(unopened), await backend(opened), parents]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": " ".join(map(str, pids)).encode()})
"""

HOOKS = """
import preloaded

def on_exit(server):
    same = preloaded.loop.run_until_complete(preloaded.backend(preloaded.opened))
    preloaded.loop.run_until_complete(preloaded.opened.close())
    preloaded.loop.close()
    print("the master's session", "answers" if same == preloaded.parents else "is another")
"""


@pytest.mark.skipif(find_spec("gunicorn") is None, reason="gunicorn is not installed")
@pytest.mark.parametrize("worker", few(["asgi", "uvicorn_worker.UvicornWorker"]))
@pytest.mark.exhaustive
async def test_gunicorns_workers_have_pools_of_their_own(
    dsn: str, backends: Backends, tmp_path: Path, worker: str
) -> None:
    """With --preload: opened by the master or not, and for a worker that follows a killed one."""
    (tmp_path / "preloaded.py").write_text(PRELOADED)
    (tmp_path / "hooks.py").write_text(HOOKS)
    master = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error::ResourceWarning", "-m", "gunicorn", "--preload"),
        *("--bind", f"unix:{tmp_path}/http", "--no-control-socket", "--config", "hooks.py"),
        *("--worker-class", worker, "preloaded:app"),
        cwd=tmp_path,
        env={**os.environ, "SOME_DSN": dsn},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        transport = httpx.AsyncHTTPTransport(uds=f"{tmp_path}/http")
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            first = await pids_of_worker(client)
            os.kill(first[0], signal.SIGKILL)
            second = await pids_of_worker(client, other_than=first[0])
        assert first[3] == second[3]
        assert len({*first, *second}) == 7
        assert first[3] in backends.pids()
        master.terminate()
        out, _ = await in_time(master.communicate(), 30)
    finally:
        if master.returncode is None:
            master.kill()
            await master.wait()
    told = out.decode()
    assert "the master's session answers" in told, told
    assert "Traceback" not in told, told
    assert master.returncode == 0
    await eventually(lambda: not backends.pids())


async def pids_of_worker(client: httpx.AsyncClient, other_than: int = 0) -> list[int]:
    """Return a worker's process id and those of its three sessions, once it answers."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(httpx.TransportError):
                response = await client.get("/")
                pids = [int(part) for part in response.text.split()]
                if pids[0] != other_than:
                    return pids
            await asyncio.sleep(0.05)


IN_MID_CANCEL = """
import asyncio, gc, os, sys
from asyncpool import AsyncConnectionPool, Connection

async def begin(pool):
    conn = await pool.acquire()
    query = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.1)
    query.cancel()
    await asyncio.wait({query})
    assert conn._transport.draining is not None
    return conn

runner = asyncio.Runner()
pool = AsyncConnectionPool(sys.argv[1], min_size=1)
conn = runner.run(begin(pool))
before = conn.info.backend_pid
number = os.fork()
if number == 0:
    drain = conn._transport.draining
    drain._log_destroy_pending = False
    drain.get_coro().close()  # as the collector does
    gc.collect()
    os._exit(0)
assert os.waitpid(number, 0)[1] == 0

async def end():
    await conn.rollback()
    cur = await conn.execute("SELECT pg_backend_pid()")
    assert await cur.fetchone() == (before,)
    await conn.rollback()
    await pool.release(conn)
    await pool.close()

runner.run(end())
runner.close()
print("done")
"""


async def test_a_child_leaves_a_cancelled_query_to_its_parent(dsn: str) -> None:
    """The child does not continue what the parent's connection was doing at the fork."""
    assert (await run_script(IN_MID_CANCEL, dsn)).split() == ["done"]
