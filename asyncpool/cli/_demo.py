"""`asyncpool demo`: a server, a bank, a run with a disaster in the middle, and the audit.

The order of events is decided here, and that whatever was begun is also ended: on success, on
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
from asyncpool.cli._bank import Bank, Tally
from asyncpool.cli._books import audit, create, drop, kill, office
from asyncpool.cli._meter import Meter, percentiles
from asyncpool.cli._screen import Screen, milliseconds, screen_for, tell
from asyncpool.cli._target import BadDSN, read
from asyncpool.testing import ServerError, postgres

GRACE = 5.0
"""Seconds in which the last transfers may end by themselves."""
SERVER_DEFAULT = 50
"""Connections of a server that was not asked for more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the user asked for."""

    dsn: str | None
    """None: a throw-away server."""
    tasks: int
    size: int
    seconds: float


class Refused(Exception):
    """The demo cannot go on; the message is for the user."""


class Interrupts:
    """Ctrl-C and SIGTERM: the first ends the set-up or the run, the second hurries its end."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.status = 0
        """What a shell expects of a program that a signal ended, such as 130; 0 if none came."""
        self.cancelling = True
        """Whether the first is to cancel this task, as there is no run yet to end."""
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


async def demo(plan: Plan) -> int:
    """Run it; returns the exit status."""
    console = Console(highlight=False)
    with Interrupts() as interrupts:
        show = _Demo(plan, console, interrupts)
        try:
            async with AsyncExitStack() as show.stack:
                await show.run()
        except asyncio.CancelledError:
            if not interrupts.status:
                raise
            console.print("Interrupted before the first transfer.")
        except (Refused, ServerError) as error:
            show.complain(str(error))
        return 1 if show.failed else interrupts.status


class _Demo:
    stack: AsyncExitStack
    """What is to be undone in the end."""

    def __init__(self, plan: Plan, console: Console, interrupts: Interrupts) -> None:
        self.plan = plan
        self.console = console
        self.interrupts = interrupts
        self.failed = False
        self.name = f"asyncpool-demo-{uuid4().hex[:8]}"
        self.dsn = plan.dsn or ""
        self.disaster = "The run ended before the backends were to be terminated."

    async def run(self) -> None:
        """Everything in its order."""
        try:
            bank = await self._set_up()
        finally:
            self.interrupts.cancelling = False
        began = perf_counter()
        failure = await self._trade(bank, screen_for(self.console, self.plan.seconds), began)
        elapsed = perf_counter() - began
        await bank.pool.close(1.0)
        if failure is not None:
            self.complain(f"the run broke off: {type(failure).__name__}: {_line(failure)}")
        self._summarise(bank.tally, elapsed)
        await self._audit(bank.tally)

    def complain(self, what: str) -> None:
        """Say what went wrong; the exit status will say it too."""
        self.failed = True
        Console(stderr=True).print(Text(f"asyncpool demo: {what}", "red"), soft_wrap=True)

    async def _set_up(self) -> Bank:
        await self._find_server()
        branches = 4 * self.plan.size  # so many that transfers seldom wait for a row
        await self._make_books(branches)
        pool = AsyncConnectionPool(
            self.dsn,
            min_size=self.plan.size,
            kwargs={"application_name": self.name},
            name="demo",
            open=False,
        )
        await self._open(pool)
        return Bank(pool, branches)

    async def _find_server(self) -> None:
        if self.plan.dsn is None:
            self.console.print("No DSN was given: starting a server to be thrown away...")
            needed = self.plan.size + 10
            server = await self.stack.enter_async_context(
                postgres(max_connections=needed if needed > SERVER_DEFAULT else None)
            )
            self.dsn = server.dsn
            self._tell("server", server.description)
        try:
            read(self.dsn)
        except BadDSN as error:
            raise Refused(str(error)) from None

    async def _make_books(self, branches: int) -> None:
        doing = ""
        try:
            async with office(self.dsn, self.name) as conn:
                doing = "cannot make the tables: "
                if self.plan.dsn is not None:
                    version = conn.info.parameter_status("server_version") or "?"
                    place = f"{conn.info.host}:{conn.info.port}/{conn.info.dbname}"
                    self._tell("server", f"PostgreSQL {version} at {place}")
                self.stack.push_async_callback(self._drop_books)
                await create(conn, self.name, branches)
        except psycopg.errors.DuplicateSchema:
            raise Refused(
                "the schema asyncpool_demo is there already: another demo runs on this database,"
                " or one was killed; then remove it with DROP SCHEMA asyncpool_demo CASCADE"
            ) from None
        except psycopg.Error as error:
            raise Refused(f"{doing}{_line(error)}") from error
        sizes = f"{branches} branches, {branches * 10} tellers, {branches * 1000:,} accounts"
        self._tell("tables", f"{sizes}, in the schema asyncpool_demo")

    async def _open(self, pool: AsyncConnectionPool) -> None:
        self.stack.push_async_callback(pool.close, 1.0)
        began = perf_counter()
        try:
            await pool.open(wait=True, timeout=15.0)
        except psycopg.Error as error:
            cause = f": {_line(error.__cause__)}" if error.__cause__ else ""
            raise Refused(f"cannot fill the pool: {_line(error)}{cause}") from error
        took = milliseconds(perf_counter() - began)
        self._tell("pool", f"{_plural(self.plan.size, 'connection')}, opened in {took} ms")
        tasks = _plural(self.plan.tasks, "task")
        self._tell("load", f"{tasks} for {self.plan.seconds:g} s; Ctrl-C ends the run")
        self.console.print()

    async def _trade(self, bank: Bank, screen: Screen, began: float) -> BaseException | None:
        """The run itself; returns what broke it off, if anything did."""
        work = asyncio.create_task(bank.work(self.plan.tasks), name="work")
        first = asyncio.create_task(self.interrupts.first.wait())
        second = asyncio.create_task(self.interrupts.second.wait())
        meter = Meter(bank, began)
        with screen:
            killer = asyncio.create_task(self._strike(bank, screen, began), name="killer")
            shower = asyncio.create_task(_show(meter, screen), name="shower")
            await asyncio.wait(
                {work, first}, timeout=self.plan.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            bank.stopping = True
            if first.done():
                screen.note(meter.elapsed, "interrupted: the last transfers may end", "yellow")
            await asyncio.wait({work, second}, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            for task in (killer, shower, first, second, work):
                task.cancel()
            # psycopg tells the server of each cancelled statement, and may take a while.
            await asyncio.wait({killer, shower, first, second, work}, timeout=15.0)
        for task in (killer, shower):
            if task.done() and not task.cancelled() and (error := task.exception()):
                return error
        if work.done() and not work.cancelled():
            return _first(work.exception())
        return None

    async def _strike(self, bank: Bank, screen: Screen, began: float) -> None:
        """Terminate all of the pool's backends half-way, and see how long until it serves again."""
        await asyncio.sleep(self.plan.seconds / 2)
        try:
            async with office(self.dsn, self.name) as conn:
                struck = perf_counter()
                pids = await kill(conn, self.name)
                bank.mourn(pids)
        except psycopg.Error as error:
            self.disaster = f"The backends could not be terminated: {_line(error)}"
            screen.note(perf_counter() - began, self.disaster, "yellow")
            return
        what = f"terminated all backends of the pool ({len(pids)})"
        self.disaster = f"{what[0].upper()}{what[1:]}; it did not serve again before the end."
        screen.note(struck - began, what, "yellow")
        await bank.served_again.wait()
        took = milliseconds(perf_counter() - struck)
        self.disaster = f"{what[0].upper()}{what[1:]}; it served again after {took} ms."
        screen.note(perf_counter() - began, f"served again after {took} ms", "green")

    def _summarise(self, tally: Tally, elapsed: float) -> None:
        rate = tally.acknowledged / elapsed
        p50, p99 = (milliseconds(value) for value in percentiles(tally.waits))
        counts = f"errors {tally.errors:,}, retries {tally.retries:,}, given up {tally.failed:,}"
        self.console.print()
        self._tell("transfers", f"{tally.acknowledged:,} acknowledged, {rate:,.0f} a second")
        self._tell("waiting", f"p50 {p50} ms, p99 {p99} ms for a connection")
        self._tell("failures", self.disaster)
        self._tell("", f"{counts}, in doubt {tally.in_doubt:,}")
        if tally.last_error:
            self._tell("", f"the last error: {tally.last_error}")

    async def _audit(self, tally: Tally) -> None:
        try:
            async with office(self.dsn, self.name) as conn:
                found = await audit(conn, tally.fates)
        except psycopg.Error as error:
            raise Refused(f"the books could not be checked: {_line(error)}") from error
        self._tell(
            "books",
            f"accounts {found.accounts:,}, tellers {found.tellers:,},"
            f" branches {found.branches:,}, history {found.history:,} in {found.rows:,} rows",
        )
        if found.in_doubt:
            doubt = f"{found.resolved:,} of {found.in_doubt:,} in doubt"
            self._tell("", f"{doubt} (broken off during COMMIT) are in the history")
        for fault in found.faults:
            self.failed = True
            self._tell("", f"DO NOT BALANCE: {fault}", "bold red")
        if not found.faults:
            every = f"all {found.acknowledged:,} acknowledged transfers are in the history"
            self._tell("", f"balance: the four sums agree, and {every}", "bold green")

    async def _drop_books(self) -> None:
        try:
            async with office(self.dsn, self.name) as conn:
                await drop(conn, self.name)
        except psycopg.Error as error:
            remedy = "remove them with DROP SCHEMA asyncpool_demo CASCADE"
            self.complain(f"the tables could not be dropped: {_line(error)}; {remedy}")

    def _tell(self, head: str, text: str, style: str = "") -> None:
        tell(self.console, head, text, style)


async def _show(meter: Meter, screen: Screen) -> None:
    due = 0.0
    while True:
        due += screen.interval
        await asyncio.sleep(max(0.0, due - meter.elapsed))
        screen.show(meter.sample())


def _first(error: BaseException | None) -> BaseException | None:
    """The first error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _line(error: BaseException) -> str:
    """A message of many lines in one; libpq puts no password into it."""
    return " ".join(str(error).split()) or type(error).__name__


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
