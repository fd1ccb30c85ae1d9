"""The test server on real PostgreSQL: its operations, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from asyncpool.testing import (
    Server,
    ServerError,
    ServerUnavailable,
    ServerUnsupported,
    _reaper,
    postgres,
)
from asyncpool.testing._install import find_binaries, find_wheel
from tests._tools import few

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from asyncpool.testing._backend import Source

pytestmark = pytest.mark.skipif(os.name != "posix", reason="servers of our own need POSIX")


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder for the servers' folders; at the end it is empty and no server runs.

    `tmp_path` is requested only so that pytest first makes its own folders elsewhere.
    """
    folder = Path(tempfile.mkdtemp(prefix="test-server-", dir="/tmp"))
    folder.chmod(0o755)  # so that the server's user can enter
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert running_in(folder) == []
    for copy in folder.glob("asyncpool-wheel-*"):  # from a private wheel
        shutil.rmtree(copy)
    folder.rmdir()


@pytest.fixture(params=["binaries", "wheel"])
def source(request: pytest.FixtureRequest) -> Source:
    """Each provider that runs programs, if it is available."""
    if not (find_binaries() if request.param == "binaries" else find_wheel()):
        pytest.skip(f"no {request.param} on this machine")
    chosen: Source = request.param
    return chosen


@pytest.fixture
async def server(own: Source) -> AsyncIterator[Server]:
    async with postgres(source=own) as server:
        yield server


@pytest.fixture
def own() -> Source:
    """One provider that runs programs: the one in the environment, or any."""
    if find_wheel() and (os.environ.get("ASYNCPOOL_TEST_SERVER") == "wheel" or not find_binaries()):
        return "wheel"
    if find_binaries():
        return "binaries"
    pytest.skip("neither binaries nor the wheel on this machine")


def folders(base: Path) -> list[Path]:
    """List the servers' folders in `base`, without a copy of the wheel's programs."""
    return [each for each in base.iterdir() if not each.name.startswith("asyncpool-wheel-")]


def running_in(folder: Path) -> list[str]:
    """List the server programs that run on a data folder in `folder`."""
    return [process.command for process in _reaper.heads_with(f" -D {folder}/")]


@asynccontextmanager
async def connected(dsn: str | None) -> AsyncIterator[psycopg.AsyncConnection]:
    assert dsn is not None
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        yield conn


async def value(dsn: str | None, query: str) -> object:
    async with connected(dsn) as conn:
        row = await (await conn.execute(query)).fetchone()
        assert row is not None
        return row[0]


async def execute(dsn: str, query: str) -> None:
    async with connected(dsn) as conn:
        await conn.execute(query)


@pytest.mark.exhaustive
async def test_each_provider_of_programs_gives_a_full_server(source: Source) -> None:
    """Every operation works on the machine's own PostgreSQL and on the wheel's."""
    async with postgres(source=source) as server:
        assert server.source == source
        assert "PostgreSQL" in server.description
        await execute(server.dsn, "CREATE TABLE t AS SELECT 42 AS answer")
        await server.restart()
        await server.kill()
        await server.start()
        await server.pause()
        await server.resume()
        async with server.standby() as replica:
            await replica.promote()
            assert await value(replica.dsn, "SELECT answer FROM t") == 42


@pytest.mark.exhaustive
async def test_settings_reach_the_server_and_override_the_defaults(own: Source) -> None:
    """`settings` override our defaults; quotes, numbers and booleans keep their values."""
    settings: dict[str, str | bool] = {
        "fsync": True,
        "work_mem": "5MB",
        "cluster_name": r"it's a \ name",
    }
    async with postgres(max_connections=7, settings=settings, source=own) as server:
        names = ("max_connections", "fsync", "work_mem", "cluster_name")
        shown = [await value(server.dsn, f"SHOW {name}") for name in names]
    assert shown == ["7", "on", "5MB", r"it's a \ name"]


@pytest.mark.exhaustive
async def test_a_setting_that_the_server_refuses_is_reported_with_its_log(own: Source) -> None:
    """A failed start gives the reason and leaves nothing behind."""
    with pytest.raises(ServerError, match="unrecognized configuration parameter"):
        async with postgres(settings={"no_such_setting": 1}, source=own):
            pass


async def test_the_unix_socket_leads_to_the_same_server(server: Server) -> None:
    """`socket_dsn` connects to the same server."""
    query = "SELECT inet_server_port() IS NULL AND current_setting('port') <> ''"
    assert await value(server.socket_dsn, query) is True


async def test_restart_keeps_the_port_and_the_data_and_ends_connections(server: Server) -> None:
    """A client that reconnects to the same DSN finds its data."""
    before = server.dsn, server.socket_dsn
    async with connected(server.dsn) as conn:
        await conn.execute("CREATE TABLE kept AS SELECT 1 AS n")
        await server.restart()
        with pytest.raises(psycopg.OperationalError):
            await conn.execute("SELECT 1")
    assert (server.dsn, server.socket_dsn) == before
    assert await value(server.dsn, "SELECT n FROM kept") == 1


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
@pytest.mark.exhaustive
async def test_a_stopped_server_refuses_connections_until_it_is_started(
    server: Server, mode: str
) -> None:
    """`stop` returns when the server has ended, `start` when it accepts connections."""
    await server.stop(mode)  # type: ignore[arg-type]
    assert server.state == "stopped"
    with pytest.raises(psycopg.OperationalError, match="refused"):
        await value(server.dsn, "SELECT 1")
    await server.stop()
    await server.start()
    assert await value(server.dsn, "SELECT 1") == 1


@pytest.mark.exhaustive
async def test_a_smart_stop_waits_for_clients_up_to_its_limit(server: Server) -> None:
    """Then it raises an error; the server stops once the client has disconnected."""
    async with connected(server.dsn):
        with pytest.raises(ServerError, match=r"stop \(smart\) within 0\.1 s"):
            await server.stop("smart", timeout=0.1)
        assert server.state == "running"
    await server.stop("smart")


@pytest.mark.exhaustive
async def test_operations_that_make_no_sense_are_refused(server: Server) -> None:
    """The error names the server's state."""
    with pytest.raises(ServerError, match="running already"):
        await server.start()
    with pytest.raises(ServerError, match="only a standby"):
        await server.promote()
    with pytest.raises(ValueError, match="smart, fast, immediate"):
        await server.stop("slow")  # type: ignore[arg-type]
    await server.pause()
    with pytest.raises(ServerError, match=r"resume\(\) it first"):
        await server.promote()
    with pytest.raises(ServerError, match=r"resume\(\) it first"):
        async with server.standby():
            pass
    await server.kill()
    for operation in (server.pause, server.promote):
        with pytest.raises(ServerError, match=r"start\(\) it first"):
            await operation()
    await server.kill()


@pytest.mark.exhaustive
async def test_kill_ends_every_process_and_the_data_survive(server: Server, base: Path) -> None:
    """Like `kill -9` of all processes; a transaction committed just before is recovered."""
    await execute(server.dsn, "CREATE TABLE kept AS SELECT 1 AS n")
    async with connected(server.dsn) as conn:
        backend = conn.info.backend_pid
        await server.kill()
        assert running_in(base) == []
        assert not _reaper.family([backend])
    await server.start()
    assert await value(server.dsn, "SELECT n FROM kept") == 1


@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="looks into Linux's /proc")
@pytest.mark.exhaustive
async def test_a_killed_server_leaves_no_shared_memory(own: Source, base: Path) -> None:
    """The segment that the killed postmaster left is removed."""

    def makers() -> list[str]:
        return [row.split()[4] for row in Path("/proc/sysvipc/shm").read_text().splitlines()]

    async with postgres(source=own) as server:
        (folder,) = folders(base)
        (postmaster,) = _reaper.heads_of(folder / "data")
        assert str(postmaster) in makers()
        await server.kill()
    assert str(postmaster) not in makers()


async def test_a_paused_server_answers_only_after_resume(server: Server) -> None:
    """Connections stay open and queries hang, as on a network that drops all packets."""
    async with connected(server.dsn) as conn:
        await server.pause()
        assert server.state == "paused"
        query = asyncio.create_task(conn.execute("SELECT 1"))
        done, _ = await asyncio.wait([query], timeout=0.3)
        assert not done
        await server.resume()
        assert await (await query).fetchone() == (1,)
    assert server.state == "running"


@pytest.mark.parametrize("operation", ["stop", "kill", "restart", "nothing"])
@pytest.mark.exhaustive
async def test_a_paused_server_can_be_ended(server: Server, operation: str) -> None:
    """A stop resumes the server first; so does the end of the block."""
    await server.pause()
    if operation != "nothing":
        await getattr(server, operation)()
        assert server.state == ("running" if operation == "restart" else "stopped")


async def test_a_standby_streams_and_becomes_read_write_by_promote(server: Server) -> None:
    """The replica follows its primary, refuses writes, and accepts them after `promote`."""
    async with server.standby() as replica:
        assert replica.dsn != server.dsn
        await execute(server.dsn, "CREATE TABLE streamed AS SELECT 1 AS n")
        async with asyncio.timeout(20):
            while not await value(replica.dsn, "SELECT to_regclass('streamed') IS NOT NULL"):
                pass
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await execute(replica.dsn, "INSERT INTO streamed VALUES (2)")
        await server.kill()
        await replica.promote()
        await execute(replica.dsn, "INSERT INTO streamed VALUES (2)")
        assert await value(replica.dsn, "SELECT sum(n) FROM streamed") == 3
        await replica.restart()
        assert await value(replica.dsn, "SELECT pg_is_in_recovery()") is False


async def reaches(replica: Server, query: str) -> None:
    """Wait until a query of a replica gives true."""
    async with asyncio.timeout(20):
        while await value(replica.dsn, query) is not True:
            pass


async def test_the_standbys_of_a_server_follow_the_one_that_is_promoted(server: Server) -> None:
    """A standby keeps its connections; the old primary is copied anew and keeps its port."""
    async with server.standby() as first, server.standby() as second:
        await server.kill()
        await first.promote()
        await execute(first.dsn, "CREATE TABLE after AS SELECT 1 AS n")
        before = server.dsn
        async with connected(second.dsn) as conn:
            await second.follow(first)
            await server.follow(first)
            assert server.dsn == before
            for replica in (server, second):
                await reaches(replica, "SELECT to_regclass('after') IS NOT NULL")
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    await execute(replica.dsn, "INSERT INTO after VALUES (2)")
            assert await (await conn.execute("SELECT n FROM after")).fetchone() == (1,)
        await server.promote()
        await first.follow(server)
        assert await value(first.dsn, "SELECT pg_is_in_recovery()") is True


@pytest.mark.exhaustive
async def test_a_standby_that_is_ahead_of_its_new_primary_is_copied_once_stopped(
    server: Server,
) -> None:
    """The one that streams cannot follow; the error says so, with the log."""
    async with server.standby() as first, server.standby() as second:
        await first.stop()
        await execute(server.dsn, "CREATE TABLE lost AS SELECT 1 AS n")
        await reaches(second, "SELECT to_regclass('lost') IS NOT NULL")
        await server.kill()
        await first.start()
        await first.promote()
        with pytest.raises(ServerError, match=r"did not stream within 1 s:(?s:.*)fork"):
            await second.follow(first, timeout=1.0)
        await second.stop()
        await second.follow(first)
        assert await value(second.dsn, "SELECT to_regclass('lost') IS NULL") is True


async def test_a_standby_shows_no_changes_while_its_replay_is_paused(server: Server) -> None:
    """It receives them, and shows them after `resume_replay`."""
    async with server.standby() as replica:
        await replica.pause_replay()
        await execute(server.dsn, "CREATE TABLE later AS SELECT 1 AS n")
        there = str(await value(server.dsn, "SELECT pg_current_wal_flush_lsn()"))
        await reaches(replica, f"SELECT pg_last_wal_receive_lsn() >= '{there}'")
        assert await value(replica.dsn, "SELECT to_regclass('later') IS NULL") is True
        await replica.resume_replay()
        await reaches(replica, "SELECT to_regclass('later') IS NOT NULL")


async def test_a_standby_may_have_settings_of_its_own(server: Server) -> None:
    """They override those of the primary, which keeps its own."""
    with pytest.raises(ValueError, match="'port' is not allowed"):
        async with server.standby(settings={"port": 5432}):
            pass
    async with server.standby(settings={"recovery_min_apply_delay": "2s"}) as replica:
        assert await value(replica.dsn, "SHOW recovery_min_apply_delay") == "2s"
        assert await value(server.dsn, "SHOW recovery_min_apply_delay") == "0"


@pytest.mark.exhaustive
async def test_only_a_server_of_the_same_cluster_is_followed(server: Server, own: Source) -> None:
    """And only a standby has a replay to be paused."""
    async with postgres(source=own) as other:
        for stranger in (server, other):
            with pytest.raises(ServerError, match="of the same cluster"):
                await server.follow(stranger)
    for operation in (server.pause_replay, server.resume_replay):
        with pytest.raises(ServerError, match="only a standby replays"):
            await operation()
    async with server.standby() as replica:
        await server.pause()
        with pytest.raises(ServerError, match=r"resume\(\) it first"):
            await replica.follow(server)


@pytest.mark.exhaustive
async def test_two_servers_live_side_by_side(server: Server, own: Source) -> None:
    """Each server has a port and a folder of its own."""
    async with postgres(source=own) as other:
        assert other.dsn != server.dsn
        await execute(other.dsn, "CREATE TABLE here_only ()")
        assert await value(server.dsn, "SELECT to_regclass('here_only') IS NULL") is True
    assert await value(server.dsn, "SELECT 1") == 1


@pytest.mark.exhaustive
def test_a_server_outlives_the_event_loop_it_was_made_in(own: Source) -> None:
    """The methods of the server work from any running loop."""
    server = postgres(source=own)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        entered = first.run(server.__aenter__())
        second.run(entered.restart())
        assert second.run(value(entered.dsn, "SELECT 1")) == 1
        first.run(server.__aexit__(None, None, None))


@pytest.mark.parametrize("delay", few([0.1, 0.0, 0.02, 0.25, 0.4]))
@pytest.mark.parametrize("kind", ["asyncio", "anyio"])
@pytest.mark.exhaustive
async def test_a_cancelled_start_leaves_nothing(
    own: Source, base: Path, delay: float, kind: str
) -> None:
    """No process and no folder stays, with either library, also if it cancels twice."""

    async def start() -> None:
        async with postgres(source=own):
            await anyio.sleep_forever()

    if kind == "anyio":
        with anyio.move_on_after(delay) as scope:
            await start()
        assert scope.cancelled_caught
    else:
        task = asyncio.create_task(start())
        await asyncio.wait([task], timeout=delay)
        task.cancel()
        await asyncio.wait([task], timeout=0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert folders(base) == []


@pytest.mark.exhaustive
async def test_a_cancelled_stop_comes_back_at_once(server: Server) -> None:
    """The caller continues although the server still waits for its client."""
    async with connected(server.dsn):
        with anyio.move_on_after(0.05) as scope:
            await server.stop("smart")
        assert scope.cancelled_caught


OWNER = """
import asyncio, os, sys
from asyncpool.testing import postgres

async def main(mode):
    async with postgres(source=sys.argv[2]) as server:
        if mode == "paused":
            await server.pause()
        if mode == "forked" and os.fork() == 0:
            os.close(1)
            os.read(0, 1)  # the child keeps the owner's descriptors until the test ends
            os._exit(0)
        print("ready", flush=True)
        await asyncio.sleep(3600)

print("starting", flush=True)
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("mode", few(["running", "paused", "forked", "starting"]))
@pytest.mark.exhaustive
def test_no_server_outlives_an_owner_that_is_killed(own: Source, base: Path, mode: str) -> None:
    """After kill -9 of its owner, the server ends within seconds and its folder is removed.

    This also holds for a paused server, with a live forked child of the owner, and during initdb.
    """
    command = [sys.executable, "-c", OWNER, mode, own]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"starting\n"
        if mode == "starting":
            assert _reaper.wait_until(lambda: bool(running_in(base)), 20)
        else:
            assert owner.stdout.readline() == b"ready\n"
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert _reaper.wait_until(lambda: not running_in(base), 10)
        assert _reaper.wait_until(lambda: not folders(base), 10)


@pytest.mark.exhaustive
def test_a_folder_without_owner_and_reaper_is_swept_with_its_server(
    own: Source, base: Path
) -> None:
    """After both were killed, the next start ends the orphaned server and removes its folder."""
    command = [sys.executable, "-c", OWNER, "running", own]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert [owner.stdout.readline(), owner.stdout.readline()] == [b"starting\n", b"ready\n"]
        (orphan,) = folders(base)
        reapers = [p.pid for p in _reaper.processes() if f"_reaper.py {orphan}" in p.command]
        _reaper.send([*reapers, owner.pid], signal.SIGKILL)
    assert len(reapers) == 1
    assert len(running_in(base)) == 1

    async def start_another() -> None:
        async with postgres(source=own):
            assert not orphan.exists()
            assert len(running_in(base)) == 1

    asyncio.run(start_another())


async def test_a_server_given_by_a_dsn_is_used_and_left_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation is refused with a reason to skip; no text shows the password."""
    monkeypatch.setenv("ASYNCPOOL_TEST_DSN", server.dsn)
    secret = str(conninfo_to_dict(server.dsn)["password"])
    async with postgres(source="dsn") as given:
        assert await value(given.dsn, "SELECT 1") == 1
        assert given.source == "dsn"
        assert secret not in repr(given)
        for operation in (
            *(given.start, given.stop, given.restart, given.kill),
            *(given.pause, given.resume, given.promote),
            *(given.pause_replay, given.resume_replay, lambda: given.follow(server)),
        ):
            with pytest.raises(ServerUnsupported, match="is not supported by the 'dsn' server"):
                await operation()
        with pytest.raises(ServerUnsupported, match="standby"):
            async with given.standby():
                pass
    with pytest.raises(ServerUnsupported, match="settings"):
        async with postgres(source="dsn", settings={"work_mem": "1MB"}):
            pass
    await server.stop()
    with pytest.raises(ServerUnavailable, match="does not answer") as caught:
        async with postgres(source="dsn"):
            pass
    assert secret not in str(caught.value)
    monkeypatch.setenv("ASYNCPOOL_TEST_DSN", f"host=127.0.0.1 password=two {secret}")
    with pytest.raises(ServerUnavailable, match="conninfo is neither") as malformed:
        async with postgres(source="dsn"):
            pass
    assert secret not in f"{malformed.value} {malformed.value.__cause__!r}"


def test_the_fixtures_give_a_server_to_tests_without_an_event_loop(
    pytester: pytest.Pytester, own: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need no plugin for asynchronous tests; a line names the provider."""
    monkeypatch.setenv("ASYNCPOOL_TEST_SERVER", own)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        """
        import asyncio
        import psycopg

        def test_the_dsn(asyncpool_dsn):
            with psycopg.connect(asyncpool_dsn) as conn:
                assert conn.execute("SELECT 1").fetchone() == (1,)

        def test_the_server(asyncpool_server, asyncpool_dsn):
            asyncio.run(asyncpool_server.restart())
            assert asyncpool_server.dsn == asyncpool_dsn
        """
    )
    result = pytester.runpytest_subprocess("-p", "asyncpool.testing.plugin", "-W", "error")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"asyncpool server: {own}, PostgreSQL * in *"])
