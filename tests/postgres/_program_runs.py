"""Run programs and check that each request ends legally and the tables agree."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, PoolDeadlock

from ._programs import ANY, Block, Op, Program, Shot, program, schema
from ._sharing import DONE, LEFT, active, leave
from ._tools import eventually

if TYPE_CHECKING:
    from ._programs import Step
    from ._tools import Backends

WATCHDOG = 20.0
"""Seconds after which a program counts as hanging; a whole program takes one or two."""


class Undone(Exception):
    """Makes a block roll back."""


@dataclass(slots=True)
class Verdict:
    """The result of one run of a program."""

    faults: list[str] = field(default_factory=list)
    """The violations that were found."""
    seconds: dict[str, float] = field(default_factory=dict)
    """The seconds of each request whose caller stays, by its place in the program."""
    outcomes: Counter[str] = field(default_factory=Counter)
    shared: int = 0


class Run:
    """One run of a program.

    Args:
        made: the program.
        pool: the pool.
        verdict: where outcomes and violations are recorded.
    """

    def __init__(self, made: Program, pool: AsyncConnectionPool[Any], verdict: Verdict) -> None:
        self.made, self.pool, self.verdict = made, pool, verdict
        self.done: Counter[tuple[str, int]] = Counter()
        """Effects that were acknowledged."""
        self.possible: Counter[tuple[str, int]] = Counter()
        """Effects of requests whose caller has left."""
        self.own: dict[int, list[tuple[int, float]]] = {}
        """For each task the possible values of its row, each with the time its caller left."""
        self.at: dict[int, str] = {}
        """The current place of each task in the program."""

    async def all_tasks(self, backends: Backends) -> None:
        """Run the tasks; report those that do not end, with all that wait for a lock."""
        works = [self._task(number, steps) for number, steps in enumerate(self.made.tasks)]
        tasks = [asyncio.create_task(work) for work in works]
        _, pending = await asyncio.wait(tasks, timeout=WATCHDOG)
        if pending:
            waiting = "\n".join(f"task {n}: {self.at[n]}" for n in sorted(self.at))
            rows = "\n".join(map(str, active(backends)))
            self.verdict.faults.append(f"hangs:\n{waiting}\n{rows}\n{self.pool.explain()}")
            for task in pending:
                task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                self.verdict.faults.append(f"a task failed: {outcome!r}")

    async def _task(self, number: int, steps: list[Step]) -> None:
        self.own[number] = [(0, 0.0)]
        for place, step in enumerate(steps):
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            self.at[number] = f"{place} {step}"
            began = monotonic()
            if isinstance(step, Shot):
                outcome = await self._shot(number, step)
            else:
                outcome = await self._block(number, step)
            self.verdict.outcomes[outcome] += 1
            if step.way is None:
                self.verdict.seconds[f"{number}.{place}"] = monotonic() - began
        del self.at[number]

    def _fault(self, what: object) -> None:
        self.verdict.faults.append(str(what))

    def _judge(self, step: Step, how: str, errors: set[str]) -> str:
        """Return an outcome, and report it if it is not legal."""
        legal = {DONE, *errors}
        if not isinstance(step, float) and step.way is not None:
            legal.add(LEFT)
        if not self.made.ordered:
            legal.add("DeadlockDetected")
        if how not in legal:
            self._fault(f"{how} is none of {legal}: {step}")
        return how

    async def _shot(self, number: int, shot: Shot, *, nested: bool = False) -> str:
        errors = set(shot.op.errors)
        if nested and self.made.kind == "crowd":
            errors.add("PoolDeadlock")
        call = partial(self._call, shot.op)
        issued = monotonic()
        try:
            how = DONE
            if shot.way is None:
                value = await call()
            else:
                box: list[Any] = []
                how = await leave(shot.way, partial(self._kept, call, box), shot.after)
                value = box[0] if box else None
                if how is not DONE and how is not LEFT:
                    how = "failed" if not box else type(box[0]).__name__
        except psycopg.Error as error:
            how = type(error).__name__
        except asyncio.CancelledError:
            self._left(number, shot)  # the caller leaves the block around it
            raise
        if how is DONE:
            self.done.update(shot.op.effects)
            self._check_value(number, shot, value, issued)
        elif how is LEFT:
            self._left(number, shot)
        return self._judge(shot, how, errors)

    def _left(self, number: int, shot: Shot) -> None:
        self.possible.update(shot.op.effects)
        if shot.key:
            self.own[number].append((shot.key, monotonic()))

    async def _kept(self, call: Any, box: list[Any], **limit: float) -> None:
        """Make a call and keep its result or error in `box`, as `leave` returns neither."""
        try:
            box.append(await call(**limit))
        except psycopg.Error as error:
            box.append(error)
            raise

    async def _call(self, op: Op, **limit: float) -> Any:
        if op.call == "batch":
            return await self.pool.batch(op.params, **limit)
        values = list(op.params)
        return await getattr(self.pool, op.call)(op.query, values, **limit)

    def _check_value(self, number: int, shot: Shot, value: Any, issued: float) -> None:
        if shot.op.expected is not ANY and value != shot.op.expected:
            self._fault(f"{value!r} is not {shot.op.expected!r}: {shot}")
        if shot.key is None:
            return
        own = self.own[number]
        if not shot.key:
            if value not in [each for each, _ in own]:
                self._fault(f"{value} is none of {own}: {shot}")
        else:
            # A write that was abandoned just before may still be on its way to the server.
            recent = [(each, left) for each, left in own if left and issued - left < 1.0]
            self.own[number] = [*recent, (shot.key, 0.0)]

    async def _block(self, number: int, block: Block) -> str:
        errors = {error for op in block.work if isinstance(op, Op) for error in op.errors}
        if self.made.kind == "crowd":
            errors.add("PoolDeadlock")
        if not block.commits:
            errors.add("Undone")
        effects: list[tuple[str, int]] = []
        caught: list[str] = []
        work = partial(self._work, number, block, effects, caught)
        if block.way is None:
            how = DONE
            try:
                await work()
            except (psycopg.Error, Undone):
                how = caught[0]
        else:
            try:
                how = await leave(block.way, work, block.after)
            except Undone:
                how = "Undone"
            if how not in (DONE, LEFT):
                how = caught[0]
        if how is DONE:
            self.done.update(effects)
        elif how is LEFT:
            self.possible.update(effects)
        return self._judge(block, how, errors)

    async def _work(
        self, number: int, block: Block, effects: list[tuple[str, int]], caught: list[str]
    ) -> None:
        try:
            async with getattr(self.pool, block.kind)() as conn:
                if block.kind == "session":
                    await conn.execute("SELECT 1")  # begins a transaction for the rest
                for op in block.work:
                    if isinstance(op, float):
                        await asyncio.sleep(op)
                    elif isinstance(op, Shot):
                        if await self._shot(number, op, nested=True) == "PoolDeadlock":
                            raise PoolDeadlock("of a one-shot inside")
                    else:
                        await self._in_block(block, conn, op)
                        effects += op.effects
                if not block.commits:
                    raise Undone
        except (psycopg.Error, Undone) as error:
            caught.append(type(error).__name__)
            raise

    async def _in_block(self, block: Block, conn: Any, op: Op) -> None:
        if block.kind == "session":
            value = await self._call(op)
        else:
            cur = await conn.execute(op.query, list(op.params) or None)
            value = cur.statusmessage if op.call == "execute" else (await cur.fetchone())[0]
        if op.expected is not ANY and value != op.expected:
            self._fault(f"{value!r} is not {op.expected!r}: {op} in {block}")

    def judge_tables(self, backends: Backends, name: str) -> None:
        """Compare the tables with the acknowledged effects."""
        for table in ("a", "b", "free"):
            for row, value in backends.ask(f"SELECT id, n FROM {name}.{table}"):
                least = self.done[table, row]
                if not least <= value <= least + self.possible[table, row]:
                    self._fault(f"{table}.{row} is {value}: {least} and {self.possible}")
        there = {key for (key,) in backends.ask(f"SELECT id FROM {name}.uniq")}
        for (table, key), times in self.done.items():
            if table == "uniq" and (times > 1 or key not in there):
                self._fault(f"key {key} was inserted {times} times, there is {there}")
        for key in there:
            if not self.done["uniq", key] and not self.possible["uniq", key]:
                self._fault(f"key {key} is there, and nobody has inserted it")
        for task, value in backends.ask(f"SELECT id, n FROM {name}.own"):
            if value not in [each for each, _ in self.own.get(task, [(0, 0.0)])]:
                self._fault(f"own row {task} is {value}: none of {self.own[task]}")


async def run(dsn: str, backends: Backends, seed: int, *, pipeline: bool) -> Verdict:
    """Run the program of a seed once.

    Args:
        dsn: the server, with the application name of `backends`.
        backends: the server's view.
        seed: the program's seed.
        pipeline: whether one-shots may share connections.
    """
    name, verdict = f"s_{uuid4().hex[:12]}", Verdict()
    made = program(seed, name)
    for statement in schema(name):
        backends.ask(statement)
    try:
        quick = make_conninfo(dsn, options="-c deadlock_timeout=100ms")
        async with AsyncConnectionPool(
            quick, pipeline=pipeline, timeout=WATCHDOG * 2, overload=None, **made.options
        ) as pool:
            running = Run(made, pool, verdict)
            await running.all_tasks(backends)
            await _quiet(pool, backends, verdict)
            verdict.shared = pool.stats().requests_shared
        await eventually(lambda: not backends.pids(), WATCHDOG)
        running.judge_tables(backends, name)
    finally:
        backends.ask(f"DROP SCHEMA {name} CASCADE")
    return verdict


async def _quiet(pool: AsyncConnectionPool[Any], backends: Backends, verdict: Verdict) -> None:
    """Wait until nothing is leased, waits or runs; report if that does not come."""

    def at_rest() -> bool:
        now = pool.stats()
        return not (now.leased or now.waiting or now.cleaning or active(backends))

    try:
        await eventually(at_rest, WATCHDOG)
    except AssertionError:
        verdict.faults.append(f"not at rest:\n{active(backends)}\n{pool.explain()}")
