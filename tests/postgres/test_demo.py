"""The demo as its users run it: its output, its exit status, and its audit."""

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

from asyncpool import AsyncConnectionPool, __version__
from asyncpool.cli._tables import audit, control_connection, create, drop
from asyncpool.cli._workload import Outcome, Workload
from asyncpool.testing import postgres
from tests._tools import few

from ._cli import HIDDEN, hidden_in

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
"""Seconds until a test fails; each step should take less than a fifth of it."""
SMALL = ("--tasks", "20", "--size", "4")
BALANCED = "the four sums agree, and all"

Connection = psycopg.AsyncConnection[Any]


class Demo:
    """A demo in a process of its own, with its output so far."""

    def __init__(self, process: asyncio.subprocess.Process, arguments: tuple[str, ...]) -> None:
        self._process = process
        self._hidden = hidden_in(arguments)
        self.output = ""

    async def reaches(self, *words: str) -> None:
        """Read until these words have been printed, in this order."""
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
        """Send a signal to the process."""
        self._process.send_signal(number)

    @property
    def verdict(self) -> str:
        """The last line of the output."""
        return self.output.splitlines()[-1]

    async def end(self) -> int:
        """Return the exit status; check that no traceback and no password was shown."""
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
    """The DSN of an empty database for this test; the demo must leave it empty."""
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
    """A connection of the test."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        yield conn


async def test_demo_starts_its_own_server_and_balances() -> None:
    """Without a DSN it prints the server; all backends are killed once; exit status 0."""
    async with started("--seconds", "3", *SMALL) as demo:
        status = await demo.end()
    assert status == 0, demo.output
    assert "server     PostgreSQL" in demo.output
    assert "terminated all backends of the pool (4)" in demo.output
    assert "served again after" in demo.output
    assert demo.verdict.startswith(f"PASS       {BALANCED}")
    assert "errors are expected: the demo ends the connections in use" in demo.output
    assert "given up 0" in demo.output


@pytest.mark.exhaustive
async def test_demo_uses_the_server_that_it_is_given(dsn: str) -> None:
    """The demo's own schema is dropped (see the fixture); no password is shown."""
    async with started(dsn, "--seconds", "2", *SMALL) as demo:
        assert await demo.end() == 0, demo.output
    assert "temporary server" not in demo.output
    assert BALANCED in demo.verdict


@pytest.mark.exhaustive
async def test_demo_prints_a_line_a_second_where_there_is_no_terminal(dsn: str) -> None:
    """Lines are printed as events happen, without control characters."""
    async with started(dsn, "--seconds", "3", *SMALL) as demo:
        await demo.reaches("transfers/s", "1 s", "2 s", "balances")
        assert await demo.end() == 0
    assert "\x1b" not in demo.output


@pytest.mark.exhaustive
async def test_demo_shows_a_live_table_on_a_terminal(dsn: str) -> None:
    """The table is redrawn in place, and the hidden cursor is restored after Ctrl-C."""
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
        except OSError:  # Linux raises it for a closed terminal
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


@pytest.mark.exhaustive
async def test_interrupted_demo_still_checks_its_balances(dsn: str) -> None:
    """Ctrl-C ends the run early, with the summary and status 130."""
    async with started(dsn, "--seconds", "60", *SMALL) as demo:
        await demo.reaches("transfers/s", "1 s")
        demo.signal(signal.SIGINT)
        assert await demo.end() == 130, demo.output
    assert BALANCED in demo.output


@pytest.mark.exhaustive
async def test_demo_interrupted_repeatedly_still_checks_its_balances(
    dsn: str, conn: Connection
) -> None:
    """A second Ctrl-C aborts running transfers; further ones change nothing.

    A lock blocks every transfer, so that none can end normally.
    """
    async with started(dsn, "--seconds", "60", *SMALL) as demo:
        await demo.reaches("transfers/s", "1 s")
        async with conn.transaction():
            await conn.execute("LOCK TABLE asyncpool_demo.history IN EXCLUSIVE MODE")
            demo.signal(signal.SIGINT)
            await demo.reaches("interrupted")
            demo.signal(signal.SIGINT)
            demo.signal(signal.SIGINT)
            await demo.reaches("balances")
        demo.signal(signal.SIGINT)
        assert await demo.end() == 130, demo.output
    assert BALANCED in demo.output


async def test_demo_interrupted_while_it_connects_leaves_at_once() -> None:
    """Ctrl-C before the run gives status 130."""
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
    assert demo.verdict.startswith("FAIL       interrupted before the first transfer")


@pytest.mark.exhaustive
async def test_demo_exits_with_1_when_an_acknowledged_transfer_is_lost(
    dsn: str, conn: Connection
) -> None:
    """The output shows the mismatch."""
    async with started(dsn, "--seconds", "3", *SMALL) as demo:
        await demo.reaches("transfers/s", "1 s")
        await conn.execute(
            "DELETE FROM asyncpool_demo.history WHERE id ="
            " (SELECT min(id) FROM asyncpool_demo.history WHERE delta <> 0)"
        )
        assert await demo.end() == 1, demo.output
    assert "MISMATCH: the sums differ: accounts" in demo.output
    assert "MISMATCH: 1 acknowledged transfers are missing" in demo.output
    assert BALANCED not in demo.output
    assert demo.verdict.startswith("FAIL       the sums differ: accounts")


@pytest.mark.exhaustive
async def test_demo_whose_server_dies_says_so() -> None:
    """If the balances cannot be read, the status is 1, with no traceback."""
    async with (
        postgres() as server,
        started(server.dsn, "--seconds", "2", *SMALL) as demo,
    ):
        await demo.reaches("transfers/s", "1 s")
        await server.kill()
        assert await demo.end() == 1, demo.output
    assert "acknowledged" in demo.output
    assert "the balances could not be checked" in demo.output
    assert "DROP SCHEMA asyncpool_demo CASCADE" in demo.output
    assert demo.verdict.startswith("FAIL       the ")


@pytest.mark.exhaustive
async def test_demo_does_not_touch_an_existing_schema(dsn: str, conn: Connection) -> None:
    """The schema may belong to another demo or user: the user must decide."""
    await conn.execute("CREATE SCHEMA asyncpool_demo")
    await conn.execute("CREATE TABLE asyncpool_demo.accounts ()")
    async with started(dsn, "--seconds", "2", *SMALL) as demo:
        assert await demo.end() == 1
    assert "the schema asyncpool_demo exists already" in demo.output
    await conn.execute("SELECT FROM asyncpool_demo.accounts")
    await conn.execute("DROP SCHEMA asyncpool_demo CASCADE")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    few(
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
        2,
    ),
)
async def test_demo_explains_what_it_cannot_do(
    arguments: list[str], status: int, message: str
) -> None:
    """Bad DSNs and options give a message and an exit status, no traceback, no password."""
    async with started(*arguments) as demo:
        assert await demo.end() == status, demo.output
    assert message in demo.output
    assert status == 2 or demo.verdict.startswith("FAIL")


async def test_the_package_is_run_as_the_script_is() -> None:
    """`python -m asyncpool` names itself asyncpool, and has the same commands."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncpool", "--version"),
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    out, _ = await process.communicate()
    assert (process.returncode, out.decode()) == (0, f"asyncpool {__version__}\n")


@pytest.mark.parametrize("missing", few(["typer", "rich"]))
async def test_command_line_without_its_libraries_says_how_to_get_them(missing: str) -> None:
    """The output is one line, with status 1 and no traceback."""
    program = f"import sys; sys.modules[{missing!r}] = None; import asyncpool.cli as c; c.main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().splitlines() == [
        f"asyncpool: the command line needs {missing}: pip install 'psycopg-asyncpool[cli]'"
    ]


@pytest.fixture
async def workload(dsn: str) -> AsyncIterator[Workload]:
    """A finished workload of twelve workers and about a hundred transfers."""
    async with control_connection(dsn, "test") as conn:
        await create(conn, "test", branches=2)
    async with AsyncConnectionPool(dsn, min_size=4, kwargs={"application_name": "test"}) as pool:
        workload = Workload(pool, branches=2)
        async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
            group.create_task(workload.run(12))
            while workload.tally.acknowledged < 100:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)
            workload.stopping = True
    yield workload
    async with control_connection(dsn, "test") as conn:
        await drop(conn, "test")


async def test_the_audit_of_a_correct_run_finds_no_fault(dsn: str, workload: Workload) -> None:
    """The four sums agree, and the history holds exactly the acknowledged transfers."""
    async with control_connection(dsn, "test") as conn:
        found = await audit(conn, workload.tally.outcomes)
    assert found.faults == []
    assert found.accounts == found.tellers == found.branches == found.history
    assert found.rows == found.acknowledged == workload.tally.acknowledged >= 100
    assert len(workload.tally.waits) >= found.rows


@pytest.mark.parametrize(
    ("tampering", "fault"),
    [
        (
            """DELETE FROM asyncpool_demo.history WHERE id IN
                   (SELECT id FROM asyncpool_demo.history LIMIT 3)""",
            "3 acknowledged transfers are missing",
        ),
        ("INSERT INTO asyncpool_demo.history VALUES (-1, 0, 0, 0, 0, now())", "1 transfers are in"),
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
async def test_the_audit_finds_manipulated_data(
    dsn: str, workload: Workload, tampering: str, fault: str
) -> None:
    """Each of the tables is checked, for missing and for additional data."""
    async with control_connection(dsn, "test") as conn:
        await conn.execute(tampering)
        found = await audit(conn, workload.tally.outcomes)
    assert any(fault in line for line in found.faults), found.faults


async def test_transfers_in_doubt_may_be_in_the_history(dsn: str, workload: Workload) -> None:
    """Transfers in doubt are counted and are no fault; a failed one in the history is."""
    outcomes = workload.tally.outcomes
    booked = outcomes.index(Outcome.ACKNOWLEDGED)
    outcomes[booked] = Outcome.IN_DOUBT
    outcomes.append(Outcome.IN_DOUBT)
    async with control_connection(dsn, "test") as conn:
        found = await audit(conn, outcomes)
        assert (found.faults, found.in_doubt, found.resolved) == ([], 2, 1)
        outcomes[booked] = Outcome.FAILED
        assert (await audit(conn, outcomes)).unexpected == 1
