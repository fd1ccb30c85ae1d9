"""A program that never closes its pool: it ends by itself, at once, in silence, as it means to."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests._tools import few

from ._tools import Backends, Proxy, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import Iterable

HEAD = """
import asyncio, sys
from asyncpool import AsyncConnectionPool, PoolError

kept = []
pool = AsyncConnectionPool(sys.argv[1], min_size=2, max_size=2, timeout=3600)

async def left(work):
    task = asyncio.create_task(work)
    kept.append(task)
    await asyncio.sleep(0.05)

async def in_block(block):
    async with block as conn:
        await asyncio.sleep(3600)
"""

MAINS = {
    "idle": """
async def main():
    await pool.wait()
""",
    "used": """
async def main():
    assert await pool.fetchval("SELECT 1") == 1
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")
""",
    "not waited for": """
async def main():
    await pool.open()
""",
    "never used": """
async def main():
    pass
""",
    "lent": """
async def main():
    conn = await pool.acquire()
    await conn.execute("SELECT 1")
""",
    "lent and kept": """
async def main():
    kept.append(await pool.acquire())
    await kept[0].execute("SELECT 1")
    kept.append(await pool.getconn(key="k"))
""",
    "listening": """
async def heard():
    async with pool.listen("a") as notifications:
        async for each in notifications:
            yield each

async def main():
    kept.append(await pool.listen("b").__aenter__())
    first = asyncio.create_task(anext(heard()))
    while pool.stats().leased < 2:
        await asyncio.sleep(0.01)
    async with AsyncConnectionPool(sys.argv[1], min_size=1) as other:
        await other.execute("SELECT pg_notify('a', 'x')")
    assert (await first).payload == "x"
    await left(anext(kept[0]))
""",
    "in blocks": """
async def main():
    block = pool.connection()
    conn = await block.__aenter__()
    await conn.execute("SELECT 1")
    session = pool.session()
    await session.__aenter__()
    inner = pool.transaction()
    await inner.__aenter__()
    kept.append((block, session, inner))
""",
    "in tasks": """
async def main():
    await left(in_block(pool.connection()))
    await left(in_block(pool.session()))
""",
    "with waiters": """
async def main():
    kept.extend([await pool.acquire(), await pool.acquire()])
    await left(pool.acquire())
    await left(pool.getconn(key="k"))
    await left(pool.getconn(key="k"))
    await left(in_block(pool.connection()))
    await left(pool.fetchval("SELECT 1"))
""",
    "with queries": """
async def main():
    await left(pool.fetchval("SELECT pg_sleep(0.3)"))
    await left(pool.executemany("SELECT pg_sleep(%s)", [[0.3]]))
""",
    "in a generator": """
async def rows():
    async with pool.session() as conn:
        yield await pool.fetchval("SELECT 1")

async def main():
    async for row in rows():
        break
    kept.append(rows())
    await anext(kept[0])
""",
    "global of a function": """
async def main():
    local = AsyncConnectionPool(sys.argv[1], min_size=1)
    await local.wait()
    kept.append(await local.acquire())
""",
    "many pools": """
async def main():
    pools = [AsyncConnectionPool(sys.argv[1], min_size=1) for _ in range(3)]
    for each in pools:
        await each.fetchval("SELECT 1")
    kept.append(pools)
""",
}

RUNS = {
    "asyncio.run": "asyncio.run(main())",
    "asyncio.run twice": "asyncio.run(main()); kept.clear(); asyncio.run(main())",
    "a loop left open": """
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
for task in kept:
    if isinstance(task, asyncio.Task):
        task._log_destroy_pending = False  # of them asyncio has something to say
""",
    "anyio": "import anyio; anyio.run(main)",
    "uvloop": "import uvloop; uvloop.run(main())",
}


async def run(
    script: str, *arguments: str, options: Iterable[str] = ()
) -> tuple[int | None, str, str]:
    """Run Python code in a process of its own: its status, what it prints, and its complaints."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(*options, "-c", script, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean | {"PYTHONFAULTHANDLER": "1"},
    )
    try:
        out, err = await in_time(process.communicate(), 60.0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("names", few([list(MAINS)[:5], list(MAINS)[5:]]), ids=["first", "rest"])
@pytest.mark.parametrize("how", few(RUNS))
@pytest.mark.exhaustive
async def test_a_program_that_forgets_to_close_ends_as_it_means_to(
    dsn: str, backends: Backends, how: str, names: list[str]
) -> None:
    """No traceback, output, hang or backend is left, whatever the pool was doing."""
    if how == "uvloop" and find_spec("uvloop") is None:
        pytest.skip("there is no uvloop")
    scripts = {
        name: f"{HEAD}{MAINS[name]}\n{RUNS[how]}\nprint('done')\nsys.exit(7)" for name in names
    }
    outcomes = {name: await run(script, dsn) for name, script in scripts.items()}
    # What a second loop says of the first is the log's.
    twice = "was not closed before its event loop ended"
    complaints = {
        name: outcome
        for name, outcome in outcomes.items()
        if outcome[:2] != (7, "done\n")
        or any(twice not in line or "twice" not in how for line in outcome[2].splitlines())
    }
    assert not complaints
    await eventually(lambda: not backends.pids())


@pytest.mark.parametrize("main", few(["lent and kept", "in tasks", "with waiters"]))
async def test_a_program_that_fails_prints_its_traceback_only(
    dsn: str, backends: Backends, main: str
) -> None:
    """The program's traceback is the only one."""
    fails = "async def fail():\n    await main()\n    raise ZeroDivisionError('mine')\n"
    status, _, err = await run(f"{HEAD}{MAINS[main]}\n{fails}\nasyncio.run(fail())", dsn)
    assert status == 1
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("ZeroDivisionError: mine")
    await eventually(lambda: not backends.pids())


async def test_a_program_that_is_interrupted_ends(dsn: str, backends: Backends) -> None:
    """By Ctrl-C, while it waits for a connection."""
    interrupt = """
async def interrupted():
    import os, signal
    kept.extend([await pool.acquire(), await pool.acquire()])
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
    await pool.acquire()

try:
    asyncio.run(interrupted())
except KeyboardInterrupt:
    sys.exit(5)
"""
    assert await run(HEAD + interrupt, dsn) == (5, "", "")
    await eventually(lambda: not backends.pids())


@pytest.mark.parametrize("how", few(["asyncio.run", "a loop left open"]))
@pytest.mark.exhaustive
async def test_a_server_that_does_not_answer_holds_up_no_exit(dsn: str, how: str) -> None:
    """Neither a connect that is under way nor a connection that has gone silent is waited for."""
    mains = {
        "connecting": """
async def main():
    await left(pool.acquire())
""",
        "silent": """
async def main():
    kept.append(await pool.acquire())
    await left(pool.fetchval("SELECT 1"))
    print("mute", flush=True)
    sys.stdin.readline()
    await left(kept[0].execute("SELECT 1"))
    await left(pool.fetchval("SELECT 2"))
""",
    }
    async with Proxy(dsn) as proxy:
        proxy.hung = 2
        script = f"{HEAD}{mains['connecting']}\n{RUNS[how]}\nsys.exit(7)"
        assert await run(script, f"{proxy.dsn} connect_timeout=3600") == (7, "", "")
        proxy.hung = 0
        script = f"{HEAD}{mains['silent']}\n{RUNS[how]}\nsys.exit(7)"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, proxy.dsn),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await in_time(process.stdout.readline(), 60.0) == b"mute\n"
        proxy.open_way.clear()
        out, err = await in_time(process.communicate(b"\n"), 60.0)
        proxy.open_way.set()
        assert (process.returncode, out, err) == (7, b"", b"")


async def test_with_warnings_shown_there_is_one_for_a_pool(dsn: str) -> None:
    """`-W default` tells of each pool that was dropped open, by its name."""
    script = f"""
{HEAD}
async def main():
    local = AsyncConnectionPool(sys.argv[1], min_size=1, name="forgotten")
    await local.wait()

asyncio.run(main())
"""
    status, _, err = await run(script, dsn, options=["-W", "default::ResourceWarning"])
    assert status == 0
    assert err.count("dropped without close()") == 1, err
    assert "ResourceWarning: <AsyncConnectionPool 'forgotten'" in err
    assert "Traceback" not in err
