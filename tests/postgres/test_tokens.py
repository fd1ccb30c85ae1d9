"""Tokens on a primary and a standby: what was written is read, wherever it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from asyncpool import Cluster, PoolTimeout
from asyncpool._cluster.token import Token

from ._pair import Pair, conninfo_of, new_pair, opened, started_pair, value
from ._tools import LIMIT, eventually, in_time


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The servers of this module."""
    with started_pair() as pair:
        yield pair


@pytest.fixture
def notes(pair: Pair) -> str:
    """The name of a table `(x int)` that both have."""
    name = f"t_{uuid4().hex[:12]}"
    pair.on_primary(f"CREATE TABLE {name} (x int)")
    pair.catch_up()
    return name


async def host_of(cluster: Cluster[Any], after: str | None = None) -> str:
    """The role of the host that serves a read."""
    async with cluster.read.connection(after=after) as conn:
        row = await (await conn.execute("SELECT pg_is_in_recovery()")).fetchone()
    return "standby" if row == (True,) else "primary"


@pytest.mark.exhaustive
async def test_a_read_with_a_token_sees_the_write(pair: Pair, notes: str) -> None:
    """Each kind of read; a standby serves it if it follows."""
    async with opened(pair, token_wait=LIMIT) as cluster:
        read, count = cluster.read, f"SELECT count(*) FROM {notes}"
        for number in range(1, 30):
            await cluster.write.execute(f"INSERT INTO {notes} VALUES (1)")
            token = await cluster.write.token()
            kind = number % 6
            if kind == 0:
                assert await read.fetchval(count, after=token) == number
            elif kind == 1:
                assert await read.fetchone(count, after=token) == (number,)
            elif kind == 2:
                assert await read.fetchall(count, after=token, retry_elsewhere=True) == [(number,)]
            elif kind == 3:
                async with read.connection(after=token) as conn:
                    assert await (await conn.execute(count)).fetchone() == (number,)
            elif kind == 4:
                async with read.transaction(after=token) as conn:
                    assert await (await conn.execute(count)).fetchone() == (number,)
            else:
                conn = await read.acquire(after=token)
                assert await (await conn.execute(count)).fetchone() == (number,)
                await read.release(conn)
            assert await host_of(cluster, token) == "standby"


@pytest.mark.exhaustive
async def test_the_flushed_position_alone_would_be_stale(pair: Pair, notes: str) -> None:
    """With `synchronous_commit = off` a commit does not wait until its record is flushed."""
    async with opened(pair) as cluster:
        for _ in range(50):
            async with cluster.write.connection() as conn:
                await conn.execute("SET LOCAL synchronous_commit = off")
                await conn.execute(f"INSERT INTO {notes} VALUES (1)")
            token = Token.parse(await cluster.write.token())
            flushed = pair.on_primary("SELECT pg_current_wal_flush_lsn()")
            has_replayed = f"SELECT pg_last_wal_replay_lsn() >= '{flushed}'"
            await eventually(lambda: pair.on_standby(has_replayed))  # noqa: B023 - called at once
            stale = pair.on_standby(f"SELECT count(*) FROM {notes}")
            seen = await cluster.read.fetchval(f"SELECT count(*) FROM {notes}", after=str(token))
            written = await cluster.write.fetchval(f"SELECT count(*) FROM {notes}")
            assert seen == written
            if Token.parse(flushed).lsn < token.lsn and stale < written:
                break
        else:
            raise AssertionError("each commit was flushed at once")


async def test_a_standby_that_lags_is_not_waited_for_in_vain(pair: Pair, notes: str) -> None:
    """After `token_wait` the primary serves the read."""
    async with opened(pair, token_wait=0.05) as cluster:
        with pair.paused():
            await cluster.write.execute(f"INSERT INTO {notes} VALUES (1)")
            token = await cluster.write.token()
            count = f"SELECT count(*) FROM {notes}"
            assert await cluster.read.fetchval(count) == 0
            assert await cluster.read.fetchval(count, after=token) == 1
            assert await host_of(cluster, token) == "primary"
            async with cluster.read.connection(after=token, timeout=0) as conn:
                assert await (await conn.execute(count)).fetchone() == (1,)
        pair.catch_up()
        await in_time(until_standby(cluster, token))


async def until_standby(cluster: Cluster[Any], token: str) -> None:
    """Wait until a standby serves a token."""
    while True:
        if await host_of(cluster, token) == "standby":
            return
        await asyncio.sleep(0.01)


async def test_a_token_that_was_replayed_before_the_last_look_costs_nothing(
    pair: Pair, notes: str
) -> None:
    """The standby is not asked again."""
    async with opened(pair) as cluster:
        await cluster.write.execute(f"INSERT INTO {notes} VALUES (1)")
        token = await cluster.write.token()
        await until_standby(cluster, token)

        def replayed() -> bool:
            standby = next(host for host in cluster.hosts() if host.role == "standby")
            return Token.parse(standby.replayed or "0/0").lsn >= Token.parse(token).lsn

        await eventually(replayed)
        replays = cluster.read._router._freshness._replays.values()
        before = [each.questions for each in replays]
        for _ in range(20):
            assert await host_of(cluster, token) == "standby"
        assert [each.questions for each in replays] == before
        assert any(before)


async def test_many_reads_share_the_questions(pair: Pair, notes: str) -> None:
    """However many wait, the standby is asked one thing at a time."""
    async with opened(pair, token_wait=LIMIT, max_size=2) as cluster:
        with pair.paused():
            await cluster.write.execute(f"INSERT INTO {notes} VALUES (1)")
            token = await cluster.write.token()
            count = f"SELECT count(*) FROM {notes}"
            reads = [
                asyncio.create_task(cluster.read.fetchval(count, after=token)) for _ in range(99)
            ]
            await asyncio.sleep(0.2)
            reads.pop().cancel()
            (replay,) = cluster.read._router._freshness._replays.values()
            assert 3 < replay.questions < 99
            assert [host.reads for host in cluster.hosts()] == [0, 0], "a question is no read"
            assert not any(each.done() for each in reads)
        assert await in_time(asyncio.gather(*reads)) == [1] * 98


@pytest.mark.parametrize("token", ["FFFFFFFF/FFFFFFFF", "FFFFFFFF/FFFFFFFF@1"])
async def test_a_token_that_nobody_can_have_given_goes_to_the_primary(
    pair: Pair, token: str
) -> None:
    """As from a forged cookie: at once, without a question to a standby."""
    async with opened(pair, token_wait=LIMIT) as cluster:
        assert await in_time(host_of(cluster, token), 2) == "primary"


async def test_a_token_of_an_unknown_timeline_goes_to_the_primary(pair: Pair) -> None:
    """Another process may have seen a promotion first, so the hosts are looked at before."""
    async with opened(pair, token_wait=0.2) as cluster:
        assert await in_time(host_of(cluster, "0/1@7"), 2) == "primary"


async def test_a_made_up_timeline_does_not_keep_the_hosts_busy(pair: Pair) -> None:
    """They are looked at for the first such token; for a while no other one causes looks."""
    async with opened(pair, token_wait=0.0) as cluster:
        assert await in_time(host_of(cluster, "0/1@9"), 5) == "primary"
        pools = [host.pool for host in cluster._members.all()]
        before = [pool.looks for pool in pools]
        for _ in range(100):
            assert await in_time(host_of(cluster, "0/1@9"), 5) == "primary"
        made = [pool.looks - n for pool, n in zip(pools, before, strict=True)]
        assert max(made) < 20, made


@pytest.mark.exhaustive
async def test_a_promotion_that_others_have_seen_is_found_for_their_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old primary, which nobody has stopped, does not answer for the new one."""
    async with new_pair() as own:
        own.on_primary("CREATE TABLE seen (x int)")
        own.catch_up()
        async with opened(own, token_wait=0.0) as cluster:
            monkeypatch.setattr("asyncpool._cluster.watch.INTERVAL", 60.0)
            await asyncio.sleep(1.2)  # the interval of the last look is over
            await own.standby.promote()
            own.on_standby("INSERT INTO seen VALUES (1)")
            token = f"{own.on_standby('SELECT pg_current_wal_insert_lsn()')}@2"
            assert await cluster.read.fetchval("SELECT count(*) FROM seen", after=token) == 1


async def test_a_plain_position_is_a_token(pair: Pair) -> None:
    """Such as one that a trigger or another library has asked for."""
    async with opened(pair, token_wait=LIMIT) as cluster:
        assert await host_of(cluster, "0/0") == "standby"
        assert await host_of(cluster, pair.on_primary("SELECT pg_current_wal_flush_lsn()")) == (
            "standby"
        )


async def test_what_is_no_token_is_an_error_at_the_call(pair: Pair) -> None:
    """For blocks before they are entered."""
    async with opened(pair) as cluster:
        with pytest.raises(ValueError, match="token"):
            cluster.read.connection(after="now")
        with pytest.raises(TypeError, match="token"):
            cluster.read.transaction(after=5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="token"):
            await cluster.read.fetchval("SELECT 1", after="16/")
        with pytest.raises(ValueError, match="token"):
            cluster.own_writes("16/")
        with pytest.raises(ValueError, match="token_wait"):
            Cluster(pair.hosts, token_wait=-1)


@pytest.mark.exhaustive
async def test_without_a_primary_a_read_waits_for_a_standby(notes: str) -> None:
    """Until its timeout; the message says why each host is of no use."""
    async with new_pair() as own:
        own.on_primary(f"CREATE TABLE {notes} (x int)")
        own.catch_up()
        async with opened(own) as cluster:
            with own.paused():
                await cluster.write.execute(f"INSERT INTO {notes} VALUES (1)")
                token = await cluster.write.token()
                await own.primary.stop()
                count = f"SELECT count(*) FROM {notes}"
                await eventually(lambda: not all(host.reachable for host in cluster.hosts()))
                with pytest.raises(PoolTimeout, match=f"has replayed the token '{token}' within"):
                    await cluster.read.fetchval(count, after=token, timeout=1)
                read = asyncio.create_task(cluster.read.fetchval(count, after=token))
                await asyncio.sleep(0.1)
            assert await in_time(read) == 1


@pytest.mark.exhaustive
async def test_a_standby_of_the_old_primary_has_not_replayed_what_the_new_one_wrote() -> None:
    """Although it is further on in the log: its timeline is an older one."""
    table = "forked"
    async with new_pair() as own, own.primary.standby() as other:
        own.on_primary(f"CREATE TABLE {table} (x int)")
        own.catch_up()
        await own.standby.promote()
        for _ in range(20):
            own.on_primary(f"INSERT INTO {table} SELECT 1 FROM generate_series(1, 1000)")
        lost = own.on_primary("SELECT pg_current_wal_flush_lsn()")
        caught_up = f"SELECT pg_last_wal_replay_lsn() >= '{lost}'"
        await eventually(lambda: value(other, caught_up))
        hosts = conninfo_of(own.standby, other)
        async with Cluster(hosts, min_size=1, token_wait=0.2) as cluster:
            await cluster.wait(LIMIT)
            await eventually(lambda: all(host.role for host in cluster.hosts()))
            await cluster.write.execute(f"TRUNCATE {table}")
            token = await cluster.write.token()
            assert token.endswith("@2")
            count = f"SELECT count(*) FROM {table}"
            # The look may have found that it takes no reads, so it is asked directly.
            freshness, members = cluster.read._router._freshness, cluster.read._router.members
            follower = next(host for host in members.all() if host.role == "standby")
            replay, needed = freshness._replay_of(follower), Token.parse(token)
            assert await replay.reach(Token(1, needed.lsn), LIMIT), "no fork to see"
            assert not await replay.reach(needed, 1.0)
            assert freshness._is_known_to_have(follower, Token(1, needed.lsn))
            assert not freshness._is_known_to_have(follower, needed)
            for _ in range(20):
                assert await cluster.read.fetchval(count, after=token) == 0
            # A token of what was lost with the old primary is no later than those of the new one.
            assert await cluster.read.fetchval(count, after=f"{lost}@1") in (0, 20_000)
            with cluster.own_writes(after=f"{lost}@1"):
                await cluster.write.execute(f"INSERT INTO {table} VALUES (1)")
                assert await cluster.read.fetchval(count) == 1


@pytest.mark.exhaustive
async def test_a_token_outlives_a_promotion() -> None:
    """A standby that is promoted serves the tokens of before and of after."""
    async with new_pair() as own, opened(own, token_wait=0.2) as cluster:
        await cluster.write.execute("CREATE TABLE kept (x int)")
        before = await cluster.write.token()
        own.catch_up()
        await own.primary.stop()
        await own.standby.promote()
        await in_time(cluster.write.execute("INSERT INTO kept VALUES (1)"))
        after = await cluster.write.token()
        assert Token.parse(after).timeline == 2
        for token in (before, after):
            assert await cluster.read.fetchval("SELECT count(*) FROM kept", after=token) == 1


async def test_an_idle_standby_has_replayed_up_to_the_beginning_of_a_page(pair: Pair) -> None:
    """The primary's next record would begin behind the page's header, where a token must not be."""
    emit = "SELECT pg_logical_emit_message(true, '', repeat('x', {}))"
    insert = "SELECT pg_current_wal_insert_lsn() - '0/0'"
    async with opened(pair, token_wait=LIMIT) as cluster:
        write = cluster.write
        for _ in range(500):
            before = int(await write.fetchval(insert))
            await write.fetchval(emit.format(8))
            least = int(await write.fetchval(insert)) - before - 8
            left = 8192 - int(await write.fetchval(insert)) % 8192
            if left >= least + 250:
                await write.fetchval(emit.format(left - least - 200))
            elif least <= left:
                await write.fetchval(emit.format(left - least))
                if int(await write.fetchval(insert)) % 8192 == 24:
                    break
        else:
            raise AssertionError("no commit has filled a page")
        token = Token.parse(await write.token())
        assert token.lsn % 8192 == 0
        await in_time(until_standby(cluster, str(token)))
        assert pair.on_standby("SELECT pg_last_wal_replay_lsn()") == str(Token(0, token.lsn))


async def test_a_server_without_wait_for_is_asked_again_and_again(
    pair: Pair, notes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it were one that has it, but not as expected."""
    monkeypatch.setattr("asyncpool._cluster.replay.WAITS", 1)
    async with opened(pair, token_wait=LIMIT) as cluster:
        with pair.paused():
            await cluster.write.execute(f"INSERT INTO {notes} VALUES (1)")
            token = await cluster.write.token()
            query = f"SELECT count(*) FROM {notes} WHERE pg_is_in_recovery()"
            read = asyncio.create_task(cluster.read.fetchval(query, after=token))
            await asyncio.sleep(0.1)
        assert await in_time(read) == 1


async def test_a_role_that_sees_no_receiver_knows_the_timeline_by_the_checkpoint(
    pair: Pair,
) -> None:
    """So that its tokens are served by standbys too, unless there was a promotion lately."""
    pair.on_primary("DROP ROLE IF EXISTS plain")
    pair.on_primary("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    pair.catch_up()
    login = psycopg.conninfo.conninfo_to_dict("user=plain password=plain")
    dsn = psycopg.conninfo.make_conninfo(pair.hosts, **login)
    async with Cluster(dsn, min_size=1, token_wait=LIMIT) as cluster:
        await cluster.wait(LIMIT)
        await eventually(lambda: all(host.role for host in cluster.hosts()))
        token = await cluster.write.token()
        assert token.endswith("@1")
        assert await host_of(cluster, token) == "standby"
