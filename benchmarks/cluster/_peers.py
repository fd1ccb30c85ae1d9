"""The pools under test: how each of them reads and writes on several hosts.

All get the same number of connections to read with, and to write with, and the same limits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

from psycopg.conninfo import conninfo_to_dict, make_conninfo

SIZE = 4
"""Connections to each host that is read from, and connections to write with, at least."""
MOST = 8
"""The same at most."""
CONNECT = 2
"""Seconds that a connect to one host may take."""
MAX_LAG = 1.0
"""Seconds by which a standby that is read from may lag, for the pools that know lags."""

WRITE = "INSERT INTO ledger (id) VALUES (%s)"
READ = (
    "SELECT inet_server_port(), (SELECT max(id) FROM ledger),"
    " EXISTS (SELECT FROM ledger WHERE id = %s)"
)


class Answer(NamedTuple):
    """The result of a read."""

    port: int
    newest: int | None
    """The highest number in the ledger."""
    found: bool
    """Whether the number that was asked for is in the ledger."""


class Peer(Protocol):
    """A pool under test, or a pair of them."""

    async def open(self) -> None:
        """Open the pool and wait for its connections."""

    async def close(self) -> None:
        """Close the pool with all its connections."""

    async def write(self, number: int) -> None:
        """Enter a number in the ledger."""

    async def read(self, number: int) -> Answer:
        """Ask for a number on a standby."""

    def own_writes(self) -> AbstractContextManager[Any]:
        """Return a context whose reads see what was written in it, if the pool can do that."""


@dataclass(frozen=True)
class Setup:
    """The settings that are equal for all pools: the hosts, and seconds to wait in a queue."""

    dsn: str
    limit: float


class Ours:
    """An `asyncpool.Cluster`.

    Args:
        setup: its settings.
        tokens: whether the reads of a context see what was written in it.
        options: further arguments of the reads.
    """

    def __init__(self, setup: Setup, *, tokens: bool = False, **options: Any) -> None:
        self._tokens = tokens
        self._options = options
        self._cluster: Any = import_module("asyncpool").Cluster(
            make_conninfo(setup.dsn, connect_timeout=CONNECT),
            min_size=SIZE,
            max_size=MOST,
            max_lag=MAX_LAG,
            timeout=setup.limit,
            kwargs={"autocommit": True},
        )

    async def open(self) -> None:
        await self._cluster.open()
        await self._cluster.wait()

    async def close(self) -> None:
        await self._cluster.close()

    async def write(self, number: int) -> None:
        await self._cluster.write.execute(WRITE, [number])

    async def read(self, number: int) -> Answer:
        return Answer(*await self._cluster.read.fetchone(READ, [number], **self._options))

    def own_writes(self) -> AbstractContextManager[Any]:
        found: AbstractContextManager[Any]
        found = self._cluster.own_writes() if self._tokens else nullcontext()
        return found


class _Plain:
    """Pools that cannot read what was written before."""

    def own_writes(self) -> AbstractContextManager[Any]:
        return nullcontext()


class Psycopg(_Plain):
    """Two `psycopg_pool.AsyncConnectionPool`s, one for writes and one for reads."""

    def __init__(self, setup: Setup) -> None:
        dsn = make_conninfo(setup.dsn, connect_timeout=CONNECT)
        common: dict[str, Any] = {
            "timeout": setup.limit,
            "kwargs": {"autocommit": True},
            "open": False,
        }
        kind = import_module("psycopg_pool").AsyncConnectionPool
        self._writes = kind(
            make_conninfo(dsn, target_session_attrs="read-write"),
            min_size=SIZE,
            max_size=MOST,
            **common,
        )
        self._reads = kind(
            make_conninfo(dsn, target_session_attrs="prefer-standby", load_balance_hosts="random"),
            min_size=2 * SIZE,
            max_size=2 * MOST,
            **common,
        )

    async def open(self) -> None:
        for pool in (self._writes, self._reads):
            await pool.open(wait=True)

    async def close(self) -> None:
        for pool in (self._writes, self._reads):
            await pool.close()

    async def write(self, number: int) -> None:
        async with self._writes.connection() as conn:
            await conn.execute(WRITE, [number])

    async def read(self, number: int) -> Answer:
        async with self._reads.connection() as conn:
            return Answer(*await (await conn.execute(READ, [number])).fetchone())


class Asyncpg(_Plain):
    """Two pools of `asyncpg.create_pool()`, which has no option for load balancing."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._writes: Any = None
        self._reads: Any = None

    async def open(self) -> None:
        parts = {key: str(value) for key, value in conninfo_to_dict(self._setup.dsn).items()}
        create = import_module("asyncpg").create_pool
        common: dict[str, Any] = {
            "host": parts["host"].split(","),
            "port": [int(each) for each in parts["port"].split(",")],
            "user": parts["user"],
            "password": parts["password"],
            "database": parts["dbname"],
            "ssl": False,
            "timeout": CONNECT,
        }
        self._writes = await create(
            **common, min_size=SIZE, max_size=MOST, target_session_attrs="read-write"
        )
        self._reads = await create(
            **common, min_size=2 * SIZE, max_size=2 * MOST, target_session_attrs="prefer-standby"
        )

    async def close(self) -> None:
        for pool in (self._writes, self._reads):
            pool.terminate()

    async def write(self, number: int) -> None:
        await self._writes.execute(WRITE.replace("%s", "$1"), number)

    async def read(self, number: int) -> Answer:
        return Answer(*await self._reads.fetchrow(READ.replace("%s", "$1"), number))


class Hasql(_Plain):
    """`hasql`: a `psycopg_pool` for each host, whose role and lag it looks at every second."""

    def __init__(self, setup: Setup) -> None:
        staleness = import_module("hasql.staleness")
        checker = staleness.TimeStalenessChecker(max_lag=timedelta(seconds=MAX_LAG))
        self._manager = import_module("hasql.driver.psycopg3").PoolManager(
            _url(make_conninfo(setup.dsn, connect_timeout=CONNECT)),
            acquire_timeout=setup.limit,
            fallback_master=True,
            staleness=staleness.StalenessPolicy(checker),
            pool_factory_kwargs={
                "min_size": SIZE,
                "max_size": MOST,
                "timeout": setup.limit,
                "kwargs": {"autocommit": True},
            },
        )

    async def open(self) -> None:
        await self._manager.ready(masters_count=1, replicas_count=2)

    async def close(self) -> None:
        await self._manager.close()

    async def write(self, number: int) -> None:
        async with self._manager.acquire_master() as conn:
            await conn.execute(WRITE, [number])

    async def read(self, number: int) -> Answer:
        async with self._manager.acquire_replica() as conn:
            return Answer(*await (await conn.execute(READ, [number])).fetchone())


def _url(conninfo: str) -> str:
    """Return a connection string for several hosts as a URL."""
    parts = {key: str(value) for key, value in conninfo_to_dict(conninfo).items()}
    hosts = zip(parts.pop("host").split(","), parts.pop("port").split(","), strict=True)
    where = ",".join(f"{host}:{port}" for host, port in hosts)
    who = f"{quote(parts.pop('user'))}:{quote(parts.pop('password'))}"
    return f"postgresql://{who}@{where}/{parts.pop('dbname')}?{urlencode(parts)}"


OURS, RETRY, TOKENS = "asyncpool", "asyncpool-retry", "asyncpool-token"
PEERS: dict[str, Callable[[Setup], Peer]] = {
    OURS: Ours,
    RETRY: lambda setup: Ours(setup, retry_elsewhere=True),
    TOKENS: lambda setup: Ours(setup, tokens=True),
    "psycopg_pool": Psycopg,
    "asyncpg": Asyncpg,
    "hasql": Hasql,
}
MODULES = {"psycopg_pool": "psycopg_pool", "asyncpg": "asyncpg", "hasql": "hasql"}
"""The module that a pool needs."""
