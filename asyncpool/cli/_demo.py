"""`asyncpool demo`: start a server, run transfers, kill the backends once, audit the result.

This module decides the order of the steps. It undoes every step that it began: on success, on
errors, on Ctrl-C and on a second Ctrl-C.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Self
from uuid import uuid4

import psycopg
from rich.console import Console
from rich.text import Text

from asyncpool import AsyncConnectionPool
from asyncpool.cli._meter import Meter, percentiles
from asyncpool.cli._screen import Screen, milliseconds, print_line, screen_for
from asyncpool.cli._tables import audit, control_connection, create, drop, kill
from asyncpool.cli._target import BadDSN, read
from asyncpool.cli._workload import Tally, Workload
from asyncpool.testing import ServerError, postgres

GRACE = 5.0
"""Seconds for which the last transfers may finish normally."""
EXPECTED = (
    "errors are expected: the demo ends the connections in use; a transfer that had not begun its"
    " COMMIT is tried again, another one is in doubt and looked up in the history"
)
SERVER_DEFAULT = 50
"""The default max_connections of a server from asyncpool.testing."""


@dataclass(frozen=True, slots=True)
class Run:
    """The options of a run."""

    dsn: str | None
    """None: start a temporary server."""
    tasks: int
    size: int
    seconds: float


class CannotRun(Exception):
    """The demo cannot continue; the message is for the user."""


class Interrupts:
    """Ctrl-C and SIGTERM: the first ends the setup or the run, the second aborts transfers."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.status = 0
        """The exit status after a signal, such as 130 for Ctrl-C; 0: no signal came."""
        self.cancelling = True
        """Whether the first signal cancels this task, since the run has not begun yet."""
        self._task = asyncio.current_task()

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._arrived, number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _arrived(self, number: int) -> None:
        if self.first.is_set():
            self.second.set()
            return
        self.status = 128 + number
        self.first.set()
        if self.cancelling and self._task is not None:
            self._task.cancel()


async def demo(options: Run) -> int:
    """Run the demo; return the exit status."""
    console = Console(highlight=False)
    with Interrupts() as interrupts:
        run = _Demo(options, console, interrupts)
        try:
            async with AsyncExitStack() as run.stack:
                await run.run()
        except asyncio.CancelledError:
            if not interrupts.status:
                raise
            run.failure = "interrupted before the first transfer; nothing was checked"
            run.print_verdict()
            return interrupts.status
        except (CannotRun, ServerError) as error:
            run.report_failure(str(error))
        run.print_verdict()
        return 1 if run.failure else interrupts.status


class _Demo:
    stack: AsyncExitStack
    """The cleanup steps."""

    def __init__(self, options: Run, console: Console, interrupts: Interrupts) -> None:
        self.options = options
        self.console = console
        self.interrupts = interrupts
        self.failure = ""
        """The first reason why the demo has failed; empty: it has not."""
        self.checked = ""
        """The result of an audit without faults, for the last line; empty: there was none."""
        self.name = f"asyncpool-demo-{uuid4().hex[:8]}"
        self.dsn = options.dsn or ""
        self.outage = "The run ended before the backends were terminated."

    async def run(self) -> None:
        """Set up, run the load, summarise and audit."""
        try:
            workload = await self._set_up()
        finally:
            self.interrupts.cancelling = False
        began = perf_counter()
        failure = await self._run_load(
            workload, screen_for(self.console, self.options.seconds), began
        )
        elapsed = perf_counter() - began
        await workload.pool.close(1.0)
        if failure is not None:
            self.report_failure(f"the run failed: {type(failure).__name__}: {_line(failure)}")
        self._summarise(workload.tally, elapsed)
        await self._audit(workload.tally)

    def report_failure(self, what: str) -> None:
        """Print what went wrong, and make the exit status 1."""
        self.failure = self.failure or what
        Console(stderr=True).print(Text(f"asyncpool demo: {what}", "red"), soft_wrap=True)

    def print_verdict(self) -> None:
        """Print the last line: PASS, or FAIL with the first reason."""
        if self.failure:
            self._print("FAIL", self.failure, "bold red")
        else:
            self._print("PASS", self.checked, "bold green")

    async def _set_up(self) -> Workload:
        await self._find_server()
        branches = 4 * self.options.size  # enough that transfers seldom wait for a row lock
        await self._create_tables(branches)
        pool = AsyncConnectionPool(
            self.dsn,
            min_size=self.options.size,
            kwargs={"application_name": self.name},
            name="demo",
            open=False,
        )
        await self._open(pool)
        return Workload(pool, branches)

    async def _find_server(self) -> None:
        if self.options.dsn is None:
            self.console.print("No DSN was given: starting a temporary server...")
            needed = self.options.size + 10
            server = await self.stack.enter_async_context(
                postgres(max_connections=needed if needed > SERVER_DEFAULT else None)
            )
            self.dsn = server.dsn
            self._print("server", server.description)
        try:
            read(self.dsn)
        except BadDSN as error:
            raise CannotRun(str(error)) from None

    async def _create_tables(self, branches: int) -> None:
        step = ""
        try:
            async with control_connection(self.dsn, self.name) as conn:
                step = "cannot create the tables: "
                if self.options.dsn is not None:
                    version = conn.info.parameter_status("server_version") or "?"
                    place = f"{conn.info.host}:{conn.info.port}/{conn.info.dbname}"
                    self._print("server", f"PostgreSQL {version} at {place}")
                self.stack.push_async_callback(self._drop_tables)
                await create(conn, self.name, branches)
        except psycopg.errors.DuplicateSchema:
            raise CannotRun(
                "the schema asyncpool_demo exists already: another demo runs on this database,"
                " or one was killed; in that case run DROP SCHEMA asyncpool_demo CASCADE"
            ) from None
        except psycopg.Error as error:
            raise CannotRun(f"{step}{_line(error)}") from error
        sizes = f"{branches} branches, {branches * 10} tellers, {branches * 1000:,} accounts"
        self._print("tables", f"{sizes}, in the schema asyncpool_demo")

    async def _open(self, pool: AsyncConnectionPool) -> None:
        self.stack.push_async_callback(pool.close, 1.0)
        began = perf_counter()
        try:
            await pool.open(wait=True, timeout=15.0)
        except psycopg.Error as error:
            cause = f": {_line(error.__cause__)}" if error.__cause__ else ""
            raise CannotRun(f"cannot fill the pool: {_line(error)}{cause}") from error
        took = milliseconds(perf_counter() - began)
        self._print("pool", f"{_plural(self.options.size, 'connection')}, opened in {took} ms")
        tasks = _plural(self.options.tasks, "task")
        self._print("load", f"{tasks} for {self.options.seconds:g} s; Ctrl-C ends the run")
        self.console.print()

    async def _run_load(
        self, workload: Workload, screen: Screen, began: float
    ) -> BaseException | None:
        """Run the workload; return the error that ended it, or None."""
        work = asyncio.create_task(workload.run(self.options.tasks), name="work")
        first = asyncio.create_task(self.interrupts.first.wait())
        second = asyncio.create_task(self.interrupts.second.wait())
        meter = Meter(workload, began)
        with screen:
            killing = asyncio.create_task(
                self._kill_backends(workload, screen, began), name="killing"
            )
            display = asyncio.create_task(_update(meter, screen), name="display")
            await asyncio.wait(
                {work, first}, timeout=self.options.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            workload.stopping = True
            if first.done():
                screen.note(meter.elapsed, "interrupted: waiting for the last transfers", "yellow")
            await asyncio.wait({work, second}, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            for task in (killing, display, first, second, work):
                task.cancel()
            # Cancelling a statement on the server may take a while.
            await asyncio.wait({killing, display, first, second, work}, timeout=15.0)
        for task in (killing, display):
            if task.done() and not task.cancelled() and (error := task.exception()):
                return error
        if work.done() and not work.cancelled():
            return _first(work.exception())
        return None

    async def _kill_backends(self, workload: Workload, screen: Screen, began: float) -> None:
        """Terminate the pool's backends half-way, and measure how soon it serves again."""
        await asyncio.sleep(self.options.seconds / 2)
        try:
            async with control_connection(self.dsn, self.name) as conn:
                killed_at = perf_counter()
                pids = await kill(conn, self.name)
                workload.expect_recovery(pids)
        except psycopg.Error as error:
            self.outage = f"The backends could not be terminated: {_line(error)}"
            screen.note(perf_counter() - began, self.outage, "yellow")
            return
        what = f"terminated all backends of the pool ({len(pids)})"
        self.outage = f"{what[0].upper()}{what[1:]}; it did not serve again before the end."
        screen.note(killed_at - began, what, "yellow")
        await workload.served_again.wait()
        took = milliseconds(perf_counter() - killed_at)
        self.outage = f"{what[0].upper()}{what[1:]}; it served again after {took} ms."
        screen.note(perf_counter() - began, f"served again after {took} ms", "green")

    def _summarise(self, tally: Tally, elapsed: float) -> None:
        rate = tally.acknowledged / elapsed
        p50, p99 = (milliseconds(value) for value in percentiles(tally.waits))
        counts = f"errors {tally.errors:,}, retries {tally.retries:,}, given up {tally.failed:,}"
        self.console.print()
        self._print("transfers", f"{tally.acknowledged:,} acknowledged, {rate:,.0f} a second")
        self._print("waiting", f"p50 {p50} ms, p99 {p99} ms for a connection")
        self._print("failures", self.outage)
        self._print("", f"{counts}, in doubt {tally.in_doubt:,}")
        if tally.last_error:
            self._print("", EXPECTED)
            self._print("", f"the last error: {tally.last_error}")

    async def _audit(self, tally: Tally) -> None:
        try:
            async with control_connection(self.dsn, self.name) as conn:
                found = await audit(conn, tally.outcomes)
        except psycopg.Error as error:
            raise CannotRun(f"the balances could not be checked: {_line(error)}") from error
        self._print(
            "balances",
            f"accounts {found.accounts:,}, tellers {found.tellers:,},"
            f" branches {found.branches:,}, history {found.history:,} in {found.rows:,} rows",
        )
        if found.in_doubt:
            doubt = f"{found.resolved:,} of {found.in_doubt:,} in doubt"
            self._print("", f"{doubt} (the connection broke during COMMIT) are in the history")
        for fault in found.faults:
            self.failure = self.failure or fault
            self._print("", f"MISMATCH: {fault}", "bold red")
        if not found.faults:
            every = f"all {found.acknowledged:,} acknowledged transfers are in the history"
            self.checked = f"the four sums agree, and {every}"

    async def _drop_tables(self) -> None:
        try:
            async with control_connection(self.dsn, self.name) as conn:
                await drop(conn, self.name)
        except psycopg.Error as error:
            remedy = "run DROP SCHEMA asyncpool_demo CASCADE"
            self.report_failure(f"the tables could not be dropped: {_line(error)}; {remedy}")

    def _print(self, head: str, text: str, style: str = "") -> None:
        print_line(self.console, head, text, style)


async def _update(meter: Meter, screen: Screen) -> None:
    due = 0.0
    while True:
        due += screen.interval
        await asyncio.sleep(max(0.0, due - meter.elapsed))
        screen.show(meter.sample())


def _first(error: BaseException | None) -> BaseException | None:
    """Return the first error of a group, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _line(error: BaseException) -> str:
    """Join an error's lines into one; libpq puts no password into them."""
    return " ".join(str(error).split()) or type(error).__name__


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
