"""The demo as its users run it: a process, its lines, its exit status; and its books."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool
from asyncpool.cli._bank import Bank, Fate
from asyncpool.cli._books import audit, create, drop, office
from asyncpool.testing import postgres

from ._cli import HIDDEN, hidden_in

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
"""Seconds until a test gives up; nothing here should take a fifth of it."""
SMALL = ("--tasks", "20", "--size", "4")
BALANCED = "balance: the four sums agree, and all"

Connection = psycopg.AsyncConnection[Any]


class Demo:
    """A demo that runs in a process of its own, and what it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process, arguments: tuple[str, ...]) -> None:
        self._process = process
        self._hidden = hidden_in(arguments)
        self.output = ""

    async def reaches(self, *words: str) -> None:
        """Read until these words were printed, one after the other."""
        assert self._process.stdout is not None
        start = 0
        async with asyncio.timeout(LIMIT):
            for word in words:
                while (found := self.output.find(word, start)) < 0:
                    more = await self._process.stdout.readline()
                    assert more, f"{word!r} was never printed:\n{self.output}"
                    self.output += more.decode()
                start = found + len(word)

    def signal(self, number: signal.Signals) -> None:
        """Send it one."""
        self._process.send_signal(number)

    async def end(self) -> int:
        """Its exit status; it has shown neither a traceback nor the password."""
        rest, _ = await asyncio.wait_for(self._process.communicate(), LIMIT)
        self.output += rest.decode()
        assert "Traceback" not in self.output, self.output
        assert not [each for each in self._hidden if each in self.output]
        assert self._process.returncode is not None
        return self._process.returncode


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[Demo]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncpool.cli", "demo", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment(),
    )
    try:
        yield Demo(process, arguments)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "100"}


@pytest.fixture
async def dsn(asyncpool_dsn: str) -> AsyncIterator[str]:
    """Of an empty database of this test's own, which is empty again in the end."""
    name = f"demo_{uuid4().hex[:8]}"
    connect = psycopg.AsyncConnection.connect
    own = make_conninfo(asyncpool_dsn, dbname=name)
    async with await connect(asyncpool_dsn, autocommit=True) as conn:
        await conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield own
            async with await connect(own) as inside:
                cursor = await inside.execute("SELECT to_regnamespace('asyncpool_demo')")
                assert await cursor.fetchone() == (None,), "the demo has left its schema"
        finally:
            await conn.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    """A connection that is not the demo's."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        yield conn


async def test_demo_starts_its_own_server_and_balances() -> None:
    """With no DSN it says which server it took; all backends are killed once; exit status 0."""
    async with started("--seconds", "3", *SMALL) as demo:
        status = await demo.end()
    assert status == 0, demo.output
    assert "server     PostgreSQL" in demo.output
    assert "terminated all backends of the pool (4)" in demo.output
    assert "served again after" in demo.output
    assert BALANCED in demo.output
    assert "given up 0" in demo.output


async def test_demo_uses_the_server_that_it_is_given(dsn: str) -> None:
    """In a schema of its own, which is gone afterwards (see the fixture); no password is shown."""
    async with started(dsn, "--seconds", "2", *SMALL) as demo:
        assert await demo.end() == 0, demo.output
    assert "thrown away" not in demo.output
    assert BALANCED in demo.output


async def test_demo_prints_a_line_a_second_where_there_is_no_terminal(dsn: str) -> None:
    """Lines come as things happen, and hold no control characters."""
    async with started(dsn, "--seconds", "3", *SMALL) as demo:
        await demo.reaches("transfers/s", "1 s", "2 s", "books")
        assert await demo.end() == 0
    assert "\x1b" not in demo.output


async def test_demo_shows_a_live_table_on_a_terminal(dsn: str) -> None:
    """The table is painted over, and the cursor, hidden meanwhile, comes back after Ctrl-C."""
    main, terminal = pty.openpty()
    shown = bytearray()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncpool.cli", "demo", dsn, "--seconds", "60", *SMALL),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment() | {"TERM": "xterm-256color"},
    )
    os.close(terminal)
    painted = asyncio.Event()

    def read() -> None:
        try:
            shown.extend(os.read(main, 65536))
        except OSError:  # as Linux reports a terminal that was closed
            loop.remove_reader(main)
        if b"   2 s" in shown:
            painted.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(main, read)
    try:
        await asyncio.wait_for(painted.wait(), LIMIT)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), LIMIT) == 130
        await asyncio.sleep(0)
    finally:
        loop.remove_reader(main)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(main)
    assert b"transfers/s" in shown
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1
    assert b"Traceback" not in shown


async def test_interrupted_demo_still_checks_its_books(dsn: str) -> None:
    """Ctrl-C ends the run early, with the summary and status 130."""
    async with started(dsn, "--seconds", "60", *SMALL) as demo:
        await demo.reaches("transfers/s", "1 s")
        demo.signal(signal.SIGINT)
        assert await demo.end() == 130, demo.output
    assert BALANCED in demo.output


async def test_demo_interrupted_again_and_again_still_checks_its_books(
    dsn: str, conn: Connection
) -> None:
    """A second Ctrl-C breaks off what is under way; more of them change nothing.

    A lock holds every transfer up, so that none can end by itself.
    """
    async with started(dsn, "--seconds", "60", *SMALL) as demo:
        await demo.reaches("transfers/s", "1 s")
        async with conn.transaction():
            await conn.execute("LOCK TABLE asyncpool_demo.history IN EXCLUSIVE MODE")
            demo.signal(signal.SIGINT)
            await demo.reaches("interrupted")
            demo.signal(signal.SIGINT)
            demo.signal(signal.SIGINT)
            await demo.reaches("books")
        demo.signal(signal.SIGINT)
        assert await demo.end() == 130, demo.output
    assert BALANCED in demo.output


async def test_demo_interrupted_while_it_connects_leaves_at_once() -> None:
    """Ctrl-C before the run has begun: status 130, and nothing to undo."""
    asked = asyncio.Event()

    async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read(1)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(never_answers, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with started(f"host=127.0.0.1 port={port} password={HIDDEN}") as demo:
            await asyncio.wait_for(asked.wait(), LIMIT)
            demo.signal(signal.SIGINT)
            assert await demo.end() == 130, demo.output
    assert "Interrupted before the first transfer." in demo.output


async def test_demo_exits_with_1_when_a_booked_transfer_vanishes(
    dsn: str, conn: Connection
) -> None:
    """It says what differs."""
    async with started(dsn, "--seconds", "3", *SMALL) as demo:
        await demo.reaches("transfers/s", "1 s")
        await conn.execute(
            "DELETE FROM asyncpool_demo.history WHERE id ="
            " (SELECT min(id) FROM asyncpool_demo.history WHERE delta <> 0)"
        )
        assert await demo.end() == 1, demo.output
    assert "DO NOT BALANCE: the sums differ: accounts" in demo.output
    assert "DO NOT BALANCE: 1 acknowledged transfers are missing" in demo.output
    assert BALANCED not in demo.output


async def test_demo_whose_server_dies_says_so() -> None:
    """It ends with status 1, with no traceback, when the books cannot be read any more."""
    async with (
        postgres() as server,
        started(server.dsn, "--seconds", "2", *SMALL) as demo,
    ):
        await demo.reaches("transfers/s", "1 s")
        await server.kill()
        assert await demo.end() == 1, demo.output
    assert "acknowledged" in demo.output
    assert "the books could not be checked" in demo.output
    assert "DROP SCHEMA asyncpool_demo CASCADE" in demo.output


async def test_demo_leaves_a_schema_alone_that_is_there_already(dsn: str, conn: Connection) -> None:
    """It may be another demo's, or anybody's: the user is to decide."""
    await conn.execute("CREATE SCHEMA asyncpool_demo")
    await conn.execute("CREATE TABLE asyncpool_demo.accounts ()")
    async with started(dsn, "--seconds", "2", *SMALL) as demo:
        assert await demo.end() == 1
    assert "the schema asyncpool_demo is there already" in demo.output
    await conn.execute("SELECT FROM asyncpool_demo.accounts")
    await conn.execute("DROP SCHEMA asyncpool_demo CASCADE")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([f"postgresql://u:{HIDDEN}@127.0.0.1:1/x"], 1, "port 1 failed: Connection refused"),
        ([f"postgresql://u:{HIDDEN}@[/x"], 1, "the DSN is neither"),
        ([f"password={HIDDEN} nonsense"], 1, "the DSN is neither"),
        ([f"host=postgresql://u:{HIDDEN}@127.0.0.1/x"], 1, "the host in the DSN"),
        (["host=127.0.0.1 aplication_name=x"], 1, "did you mean application_name"),
        (["--tasks", "0"], 2, "--tasks"),
        (["--size", "many"], 2, "--size"),
        (["--seconds", "-1"], 2, "--seconds"),
    ],
)
async def test_demo_explains_what_it_cannot_do(
    arguments: list[str], status: int, message: str
) -> None:
    """Bad DSNs and options: a message, an exit status, no traceback, no password."""
    async with started(*arguments) as demo:
        assert await demo.end() == status, demo.output
    assert message in demo.output


@pytest.mark.parametrize("missing", ["typer", "rich"])
async def test_command_line_without_its_libraries_says_how_to_get_them(missing: str) -> None:
    """One line and status 1, no traceback."""
    program = f"import sys; sys.modules[{missing!r}] = None; import asyncpool.cli as c; c.main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().splitlines() == [
        f"asyncpool: the command line needs {missing}: pip install 'asyncpool[demo]'"
    ]


@pytest.fixture
async def bank(dsn: str) -> AsyncIterator[Bank]:
    """A bank whose twelve clerks have made about a hundred transfers and gone home."""
    async with office(dsn, "test") as conn:
        await create(conn, "test", branches=2)
    async with AsyncConnectionPool(dsn, min_size=4, kwargs={"application_name": "test"}) as pool:
        bank = Bank(pool, branches=2)
        async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
            group.create_task(bank.work(12))
            while bank.tally.acknowledged < 100:  # noqa: ASYNC110 - a clerk sets no event for it
                await asyncio.sleep(0.01)
            bank.stopping = True
    yield bank
    async with office(dsn, "test") as conn:
        await drop(conn, "test")


async def test_books_of_an_honest_bank_balance(dsn: str, bank: Bank) -> None:
    """The four sums agree, and history holds what was acknowledged and nothing else."""
    async with office(dsn, "test") as conn:
        found = await audit(conn, bank.tally.fates)
    assert found.faults == []
    assert found.accounts == found.tellers == found.branches == found.history
    assert found.rows == found.acknowledged == bank.tally.acknowledged >= 100
    assert len(bank.tally.waits) >= found.rows


@pytest.mark.parametrize(
    ("tampering", "fault"),
    [
        (
            """DELETE FROM asyncpool_demo.history WHERE id IN
                   (SELECT id FROM asyncpool_demo.history LIMIT 3)""",
            "3 acknowledged transfers are missing",
        ),
        ("INSERT INTO asyncpool_demo.history VALUES (-1, 0, 0, 0, 0, now())", "1 transfers in"),
        ("UPDATE asyncpool_demo.accounts SET balance = balance + 1 WHERE id = 7", "the sums"),
        ("UPDATE asyncpool_demo.tellers SET balance = balance + 1 WHERE id = 7", "the sums"),
        ("UPDATE asyncpool_demo.branches SET balance = balance + 1 WHERE id = 1", "the sums"),
        (
            """UPDATE asyncpool_demo.history SET delta = delta + 1 WHERE id IN
                   (SELECT id FROM asyncpool_demo.history LIMIT 1)""",
            "the sums",
        ),
    ],
)
async def test_books_that_were_tampered_with_do_not_balance(
    dsn: str, bank: Bank, tampering: str, fault: str
) -> None:
    """Each of the tables is checked, in both directions."""
    async with office(dsn, "test") as conn:
        await conn.execute(tampering)
        found = await audit(conn, bank.tally.fates)
    assert any(fault in line for line in found.faults), found.faults


async def test_transfers_in_doubt_may_be_in_the_history_or_not(dsn: str, bank: Bank) -> None:
    """They are counted, and are no fault; a failed one in the history is."""
    fates = bank.tally.fates
    booked = fates.index(Fate.ACKNOWLEDGED)
    fates[booked] = Fate.IN_DOUBT
    fates.append(Fate.IN_DOUBT)
    async with office(dsn, "test") as conn:
        found = await audit(conn, fates)
        assert (found.faults, found.in_doubt, found.resolved) == ([], 2, 1)
        fates[booked] = Fate.FAILED
        assert (await audit(conn, fates)).unasked == 1
