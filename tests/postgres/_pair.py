"""A primary with a standby, for the tests of what is read where it was written elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from asyncpool import Cluster
from asyncpool.testing import Server, postgres

from ._tools import LIMIT, eventually

SETTINGS: dict[str, Any] = {"wal_writer_delay": "10s"}


@dataclass
class Pair:
    """Two servers, and how far the second one follows."""

    primary: Server
    standby: Server

    @property
    def hosts(self) -> str:
        """A connection string with both hosts, the standby first."""
        return conninfo_of(self.standby, self.primary)

    def on_primary(self, query: str) -> Any:
        """Return the first value of a statement on the primary."""
        return _value(self.primary.dsn, query)

    def on_standby(self, query: str) -> Any:
        """Return the first value of a statement on the standby."""
        return _value(self.standby.dsn, query)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Have the standby replay nothing, after all that was flushed by now."""
        self.catch_up()
        self.on_standby("SELECT pg_wal_replay_pause()")
        try:
            while not self.on_standby(f"SELECT {self._paused()}"):
                # A replay that waits for records pauses when the next one comes.
                self.on_primary("SELECT pg_switch_wal()")
                time.sleep(0.01)
            yield
        finally:
            self.on_standby("SELECT pg_wal_replay_resume()")

    def _paused(self) -> str:
        """Return the expression for whether the standby has paused."""
        if int(self.on_standby("SHOW server_version_num")) < 140000:
            return "pg_is_wal_replay_paused()"  # it applies no further record from then on
        return "pg_get_wal_replay_pause_state() = 'paused'"

    def catch_up(self) -> None:
        """Wait until the standby has replayed what the primary has flushed."""
        position = self.on_primary("SELECT pg_current_wal_flush_lsn()")
        deadline = time.monotonic() + 15
        while not self.on_standby(f"SELECT pg_last_wal_replay_lsn() >= '{position}'"):
            assert time.monotonic() < deadline, "the standby does not follow"
            time.sleep(0.01)


@contextlib.asynccontextmanager
async def opened(pair: Pair, **options: Any) -> AsyncIterator[Cluster[Any]]:
    """A cluster whose hosts are known, after which no other task is left."""
    before = asyncio.all_tasks()
    async with Cluster(pair.hosts, **{"min_size": 1, "max_size": 4, **options}) as cluster:
        await cluster.wait(LIMIT)
        await eventually(lambda: all(host.role for host in cluster.hosts()))
        yield cluster
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks are left: {left}"


def conninfo_of(*servers: Server) -> str:
    """Return a connection string with several hosts."""
    each = [psycopg.conninfo.conninfo_to_dict(server.dsn) for server in servers]
    many = {name: ",".join(str(one[name]) for one in each) for name in ("host", "port")}
    return psycopg.conninfo.make_conninfo("", **{**each[0], **many})


def value(server: Server, query: str) -> Any:
    """Return the first value of a statement."""
    return _value(server.dsn, query)


def _value(dsn: str, query: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as conn:
        cur = conn.execute(query.encode())
        return (cur.fetchone() or (None,))[0] if cur.description else None


@contextlib.contextmanager
def started_pair() -> Iterator[Pair]:
    """A primary and its standby, for as long as the block lasts."""
    with asyncio.Runner() as runner:
        started = new_pair()
        pair = runner.run(started.__aenter__())
        try:
            yield pair
        finally:
            runner.run(started.__aexit__(None, None, None))


@contextlib.asynccontextmanager
async def new_pair() -> AsyncIterator[Pair]:
    """A primary and its standby, for one test that changes their roles."""
    async with postgres(settings=SETTINGS) as primary:
        if primary.source not in ("binaries", "wheel"):
            pytest.skip(f"{primary.source}: no standby")
        async with primary.standby() as standby:
            yield Pair(primary, standby)
