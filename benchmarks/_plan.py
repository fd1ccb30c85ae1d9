"""What is to be run, with every number, and what each figure means; plain data, for JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks._sql import BLOCK, COUNTED, FETCHED, LINE

ROOT = Path(__file__).resolve().parent.parent
"""Where `python -m benchmarks` works, and its own subprocesses start."""

ROWS = (
    "cycle",
    "handover",
    "select",
    "oneshot",
    "transaction",
    "fetch",
    "copy",
    "latency",
    "opening",
    "memory",
)


@dataclass(frozen=True)
class Plan:
    """One run on one event loop; times in seconds."""

    dsn: str
    loop: str
    rows: list[str]
    pools: list[str]
    rounds: int
    seed: int
    size: int = 10
    slice: float = 0.04
    """How long each pool cycles uncontended in a round."""
    few: int = 200
    few_times: int = 5
    many: int = 10_000
    tasks: int = 200
    queries: int = 10
    """That each task runs in a round."""
    pgbench: int = 2000
    """Queries of each of pgbench's clients in a round."""
    fetches: int = 60
    copied: float = 100.0
    """Megabytes, each way."""
    asked: int = 1000
    """Queries on a single connection in a round."""
    asleep: int = 10_000
    """Waiters whose memory is measured."""
    to_open: int = 50
    delay: float = 0.1
    lag: float = 0.005
    """Of a network, each way."""
    timeout: float = 300.0
    """That a request may wait: more than any does."""

    def some(self, share: int) -> int:
        """The rounds of a row that is slow enough to be measured less often."""
        return max(1, self.rounds // share)


def quick(plan: Plan) -> Plan:
    """For a first look: the same work, hardly repeated."""
    return replace(
        plan,
        slice=0.02,
        few_times=3,
        queries=5,
        pgbench=1000,
        fetches=30,
        copied=5.0,
        asked=300,
        asleep=2000,
    )


def tiny(plan: Plan) -> Plan:
    """For a test that it runs at all."""
    return replace(
        plan,
        size=2,
        slice=0.001,
        few=5,
        few_times=1,
        many=20,
        asleep=20,
        tasks=4,
        queries=2,
        pgbench=5,
        fetches=3,
        copied=0.1,
        asked=3,
        to_open=3,
        delay=0.01,
        lag=0.001,
        timeout=30.0,
    )


@dataclass(frozen=True)
class Figure:
    """One thing that is measured of every pool; less is better."""

    key: str
    title: str
    unit: str
    note: str


def figures(plan: Plan) -> list[Figure]:
    """All of them, in the order of the table; beside the time of requests their client's CPU."""
    return [each for figure in _measured(plan) for each in _with_cpu(figure)]


LOADED = ("select-", "oneshot-", "transaction", "fetch")


def _with_cpu(figure: Figure) -> tuple[Figure, ...]:
    if not figure.key.startswith(LOADED):
        return (figure,)
    note = "CPU time of the client a request, in its own code and in the kernel"
    return figure, Figure(f"{figure.key}-cpu", f"{figure.title}: CPU", figure.unit, note)


def _measured(plan: Plan) -> list[Figure]:
    size = plan.size
    over = f"{plan.tasks} tasks over {size} connections, {plan.queries} times each"
    usable = (
        f"until {plan.to_open} are lent out at the same time; the pool object is made before."
        f" min_size = max_size = {plan.to_open} and the pool's own way to wait for them;"
        " SQLAlchemy's grows on demand, by the requests themselves."
        " aiopg also looks up its types on each connection, as is its default"
    )
    return [
        Figure(
            "cycle",
            "uncontended cycle",
            "µs",
            "borrow and return with nobody else there, `async with`, no query inside;"
            f" as many as fit into {plan.slice * 1e3:g} ms, the same for each pool",
        ),
        Figure(
            "handover-few",
            f"hand-over, {plan.few} waiting",
            "µs",
            f"{plan.few} tasks wait for {size} connections; timed from the first return until the"
            f" last task has had and returned one; the mean of {plan.few_times} such lines;"
            " asyncpg waits without a time limit, as is its default, the others with one",
        ),
        Figure(
            "handover-many",
            f"hand-over, {plan.many:,} waiting",
            "µs",
            f"the same with {plan.many:,} tasks",
        ),
        Figure(
            "handover-growth",
            f"hand-over, {plan.many:,} to {plan.few}",
            "ratio",
            "the ratio of the two, within a round",
        ),
        Figure(
            "select-autocommit",
            "SELECT 1, autocommit",
            "µs",
            f"{over}: borrow, SELECT 1, return; pgbench's lines are the time a query takes at its"
            f" rate with -c {size} -j {min(size, 2)}, its connecting left out, and the last column"
            " is asyncpool's share of that rate; psycopg and asyncpg prepare the statement as"
            " -M prepared does",
        ),
        Figure(
            "select-transaction",
            "SELECT 1, transaction",
            "µs",
            f"{over}: borrow, BEGIN, SELECT 1, COMMIT, return",
        ),
        *(
            Figure(
                f"oneshot-{key}",
                f"one-shot, {what}",
                "µs",
                f"{over}: {what} by the pool's own shortest way, all its rows fetched:"
                " `pool.fetchall()`, asyncpg's `pool.fetch()`, psycopg_pool's"
                " `connection()` with `execute()`",
            )
            for key, what in (
                ("constant", "SELECT 1"),
                ("key", "a row by its key"),
                ("hundred", "100 rows"),
            )
        ),
        Figure(
            "oneshot-write",
            "one-shot, UPDATE by key",
            "µs",
            f"{over}: UPDATE of one of {COUNTED:,} rows of an unlogged table by its key, in"
            " autocommit: `pool.execute()`, asyncpg's too, psycopg_pool's `connection()` with"
            " `execute()`",
        ),
        Figure(
            "oneshot-far",
            f"one-shot, {plan.lag * 1e3:g} ms away",
            "µs",
            f"SELECT 1 in the same way, through a proxy that holds back all that is sent for"
            f" {plan.lag * 1e3:g} ms, each way",
        ),
        Figure(
            "transaction",
            "transaction of 3 statements",
            "µs",
            f"{over}: borrow, BEGIN, three SELECTs of a constant with a row fetched from each,"
            " COMMIT, return",
        ),
        Figure(
            "fetch",
            f"{FETCHED:,} rows of 10 columns",
            "µs",
            f"{plan.fetches} tasks over {size} connections: borrow, fetch all the rows as Python's"
            " objects, return; integers, floats, texts, a truth value, a date, a timestamp;"
            " psycopg's in text, asyncpg's in binary, as each comes",
        ),
        Figure(
            "copy-out",
            f"COPY {plan.copied:g} MB out",
            "ms",
            f"COPY (SELECT ...) TO STDOUT on one borrowed connection, lines of {LINE} bytes in"
            " text format; psycopg hands out each line, asyncpg what has arrived; SQLAlchemy has"
            " psycopg's own COPY and aiopg none, so both are left out",
        ),
        Figure(
            "copy-in",
            f"COPY {plan.copied:g} MB in",
            "ms",
            f"the same lines by COPY FROM STDIN into an empty unlogged table, from blocks of"
            f" {LINE * BLOCK / 1e3:g} kB made ahead",
        ),
        Figure(
            "latency",
            "SELECT 1, one connection",
            "µs",
            f"one task, one connection that it has borrowed before, {plan.asked:,} queries one"
            " after another, autocommit; asyncpg's reset has no part in it",
        ),
        Figure("opening-near", f"open {plan.to_open}, loopback", "ms", usable),
        Figure(
            "opening-far",
            f"open {plan.to_open}, {plan.delay * 1e3:g} ms away",
            "ms",
            f"the same through a proxy that holds each new connection back for"
            f" {plan.delay * 1e3:g} ms, once",
        ),
        Figure(
            "memory",
            f"memory, {plan.asleep:,} waiting",
            "bytes",
            "what each waiter takes beyond a task that waits on a bare future (tracemalloc)",
        ),
    ]
