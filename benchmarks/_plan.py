"""The plan of a run, with all its numbers, and the meaning of each figure; plain data for JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks._sql import BLOCK, COUNTED, FETCHED, LINE, TWENTY

ROOT = Path(__file__).resolve().parent.parent
"""The working directory of `python -m benchmarks` and of its subprocesses."""

ROWS = (
    "cycle",
    "handover",
    "select",
    "key",
    "oneshot",
    "transaction",
    "twenty",
    "fetch",
    "copy",
    "latency",
    "null",
    "opening",
    "memory",
    "scale",
)


@dataclass(frozen=True)
class Plan:
    """The plan of one run on one event loop; durations are in seconds."""

    dsn: str
    loop: str
    rows: list[str]
    pools: list[str]
    rounds: int
    seed: int
    size: int = 10
    slice: float = 0.04
    """The duration of each pool's uncontended cycles in a round."""
    few: int = 200
    few_times: int = 5
    many: int = 10_000
    tasks: int = 200
    queries: int = 10
    """Queries of each task in a round."""
    blocks: int = 2
    """Blocks of twenty queries of each task in a round."""
    pgbench: int = 2000
    """Queries of each of pgbench's clients in a round."""
    fetches: int = 60
    copied: float = 100.0
    """Megabytes in each direction."""
    asked: int = 1000
    """Queries on a single connection in a round."""
    connects: int = 20
    """Connections of a null pool in a round."""
    asleep: int = 10_000
    """Waiters whose memory is measured."""
    to_open: int = 50
    scale: int = 1000
    """Connections of one pool, and pools, in the row `scale`."""
    delay: float = 0.1
    lag: float = 0.005
    """Delay of a network in each direction."""
    timeout: float = 300.0
    """Limit of a request's wait, longer than any wait."""

    def some(self, share: int) -> int:
        """Return the number of rounds of a slow row, which runs less often."""
        return max(1, self.rounds // share)


def quick(plan: Plan) -> Plan:
    """Shorten a plan for a first look: the same work with few repetitions."""
    return replace(
        plan,
        slice=0.02,
        few_times=3,
        queries=5,
        pgbench=1000,
        fetches=30,
        copied=5.0,
        asked=300,
        connects=10,
        asleep=2000,
        scale=200,
    )


def tiny(plan: Plan) -> Plan:
    """Shorten a plan for a test that the benchmarks run."""
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
        connects=2,
        to_open=3,
        scale=4,
        delay=0.01,
        lag=0.001,
        timeout=30.0,
    )


@dataclass(frozen=True)
class Figure:
    """A figure that is measured for every pool; less is better."""

    key: str
    title: str
    unit: str
    note: str


def figures(plan: Plan) -> list[Figure]:
    """List all figures in the table's order; timed requests also have a CPU figure."""
    return [each for figure in _measured(plan) for each in _with_cpu(figure)]


LOADED = ("select-", "key-", "oneshot-", "transaction", "twenty", "fetch", "null")


def _with_cpu(figure: Figure) -> tuple[Figure, ...]:
    if not figure.key.startswith(LOADED):
        return (figure,)
    note = "CPU time of the client a request, in its own code and in the kernel"
    return figure, Figure(f"{figure.key}-cpu", f"{figure.title}: CPU", figure.unit, note)


def _measured(plan: Plan) -> list[Figure]:
    size = plan.size
    over = f"{plan.tasks} tasks over {size} connections, {plan.queries} times each"
    usable = (
        f"until {plan.to_open} are leased at the same time; the pool object is made earlier."
        f" min_size = max_size = {plan.to_open}, with the pool's own way to wait for them;"
        " SQLAlchemy's pool grows on demand, by the requests themselves."
        " aiopg also looks up its types on each connection, which is its default"
    )
    return [
        Figure(
            "cycle",
            "acquire and release",
            "µs",
            "acquire and release without contention, by `async with`, no query inside;"
            f" as many as fit into {plan.slice * 1e3:g} ms",
        ),
        Figure(
            "handover-few",
            f"hand-over, {plan.few} waiting",
            "µs",
            f"{plan.few} tasks wait for {size} connections; timed from the first release until the"
            f" last task has acquired and released one; the mean of {plan.few_times} such queues;"
            " asyncpg waits without a time limit, which is its default, the others with one",
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
            f"{over}: acquire, SELECT 1, release; pgbench's lines are the time a query takes at its"
            f" rate with -c {size} -j {min(size, 2)}, without its connects, and the last column is"
            " asyncpool's share of that rate; psycopg and asyncpg prepare the statement, as -M"
            " prepared does",
        ),
        Figure(
            "select-transaction",
            "SELECT 1, transaction",
            "µs",
            f"{over}: acquire, BEGIN, SELECT 1, COMMIT, release",
        ),
        Figure(
            "key-autocommit",
            "a row by its key, autocommit",
            "µs",
            f"{over}: acquire, SELECT of one row of a catalog by its key, release",
        ),
        Figure(
            "key-transaction",
            "a row by its key, transaction",
            "µs",
            f"{over}: acquire, BEGIN, the same SELECT, COMMIT, release; for psycopg's pools this is"
            " `async with pool.connection()` as it is by default",
        ),
        *(
            Figure(
                f"oneshot-{key}",
                f"one-shot, {what}",
                "µs",
                f"{over}: {what} by the pool's shortest API, fetching all rows:"
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
            f"SELECT 1 by the same API, through a proxy that delays all data by"
            f" {plan.lag * 1e3:g} ms in each direction",
        ),
        Figure(
            "transaction",
            "transaction of 3 statements",
            "µs",
            f"{over}: acquire, BEGIN, three SELECTs of a constant with a row fetched from each,"
            " COMMIT, release",
        ),
        Figure(
            "twenty",
            f"{TWENTY} rows by key in a block",
            "µs",
            f"{plan.tasks} tasks over {size} connections, {plan.blocks} times each: acquire, SELECT"
            f" one row by its key {TWENTY} times one after another, in autocommit, release; the"
            " time is that of the block",
        ),
        Figure(
            "fetch",
            f"{FETCHED:,} rows of 10 columns",
            "µs",
            f"{plan.fetches} tasks over {size} connections: acquire, fetch all rows as Python"
            " objects, release; integers, floats, texts, a boolean, a date, a timestamp;"
            " psycopg's in text format, asyncpg's in binary, which are their defaults",
        ),
        Figure(
            "copy-out",
            f"COPY {plan.copied:g} MB out",
            "ms",
            f"COPY (SELECT ...) TO STDOUT on one leased connection, lines of {LINE} bytes in"
            " text format; psycopg yields each line, asyncpg each block received; SQLAlchemy uses"
            " psycopg's COPY and aiopg has none, so both are left out",
        ),
        Figure(
            "copy-in",
            f"COPY {plan.copied:g} MB in",
            "ms",
            f"the same lines by COPY FROM STDIN into an empty unlogged table, from blocks of"
            f" {LINE * BLOCK / 1e3:g} kB made in advance",
        ),
        Figure(
            "latency",
            "SELECT 1, one connection",
            "µs",
            f"one task on one leased connection, {plan.asked:,} queries one after another,"
            " autocommit; asyncpg's reset is not included",
        ),
        Figure(
            "null",
            "SELECT 1 of a null pool",
            "µs",
            f"one task, {plan.connects} times connect, SELECT 1, close, autocommit",
        ),
        Figure("opening-near", f"open {plan.to_open}, loopback", "ms", usable),
        Figure(
            "opening-far",
            f"open {plan.to_open}, {plan.delay * 1e3:g} ms away",
            "ms",
            f"the same through a proxy that delays each new connection once by"
            f" {plan.delay * 1e3:g} ms",
        ),
        Figure(
            "memory",
            f"memory, {plan.asleep:,} waiting",
            "bytes",
            "memory of each waiter minus that of a task that waits on a bare future (tracemalloc,"
            " which does not see what psqlpy allocates in Rust)",
        ),
        Figure(
            "scale-connections",
            f"open {plan.scale:,} in one pool",
            "ms",
            f"until {plan.scale:,} are leased at the same time, as above",
        ),
        Figure(
            "scale-connections-use",
            f"SELECT 1 over {plan.scale:,} connections",
            "µs",
            f"{10 * plan.scale:,} tasks over {plan.scale:,} connections: acquire, BEGIN, SELECT 1,"
            " COMMIT, release",
        ),
        Figure(
            "scale-connections-memory",
            f"memory, {plan.scale:,} connections",
            "kB",
            "the client's resident memory for each connection of that pool",
        ),
        Figure(
            "scale-pools",
            f"open {plan.scale:,} pools",
            "ms",
            "each made, opened and used, with one connection, 50 at the same time; asyncpool's are"
            " those of a `PoolManager`",
        ),
        Figure(
            "scale-pools-use",
            f"cycle over {plan.scale:,} pools",
            "µs",
            f"a task for each of the {plan.scale:,} open pools: acquire and release",
        ),
        Figure(
            "scale-pools-memory",
            f"memory, {plan.scale:,} pools",
            "kB",
            "the client's resident memory for each of those pools, its connection included",
        ),
    ]
