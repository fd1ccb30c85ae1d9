"""The processes of one server, and the reaper, a process that ends them if this one dies.

The reaper is this file run as a script. It uses the standard library only, so that it starts in
milliseconds. It waits until its owner ends, then ends the server and removes its folder.
Linux's PR_SET_PDEATHSIG is no replacement: that signal comes when the *thread* that forked ends,
and ours are short-lived; the change of user, needed under root, clears it; it leaves the folder
behind; and macOS has none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from select import select
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Process(NamedTuple):
    pid: int
    parent: int
    zombie: bool
    command: str


def processes() -> list[Process]:
    """List all processes of this machine that are visible to us."""
    return _from_proc() if sys.platform == "linux" else _from_ps()


def _from_proc() -> list[Process]:
    table = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # the process ended meanwhile
                stat = Path(entry.path, "stat").read_bytes()
                command = Path(entry.path, "cmdline").read_bytes()
                # The name, in brackets, may contain brackets, so count from the last one.
                status, parent = stat[stat.rindex(b")") + 2 :].split()[:2]
                words = command.replace(b"\0", b" ").decode(errors="replace")
                table.append(Process(int(entry.name), int(parent), status in b"ZX", words))
    return table


def _from_ps() -> list[Process]:
    command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,state=,command="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    table = []
    for line in listing.splitlines():
        pid, parent, state, *words = line.split(None, 3)
        table.append(Process(int(pid), int(parent), state.startswith("Z"), " ".join(words)))
    return table


def family(heads: Iterable[int]) -> list[int]:
    """Return the live processes among `heads` and their descendants, parents first."""
    table = [process for process in processes() if not process.zombie]
    found = [process.pid for process in table if process.pid in set(heads)]
    for pid in found:  # the list grows during the loop
        found += [process.pid for process in table if process.parent == pid]
    return found


def heads_of(data: Path) -> list[int]:
    """Find the processes on the data folder `data`: postgres, initdb, pg_basebackup."""
    return [process.pid for process in heads_with(f" -D {data} ")]


def heads_with(mark: str) -> list[Process]:
    """Find the processes with `mark` in their command.

    A child that still shows its parent's command is left out.
    """
    found = {each.pid: each for each in processes() if mark in each.command + " "}
    return [each for each in found.values() if each.parent not in found]


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def freeze(head: int) -> list[int]:
    """Suspend `head` first, so that it cannot fork, then all its descendants."""
    send([head], signal.SIGSTOP)
    pids = family([head])
    send(pids, signal.SIGSTOP)
    return pids


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def kill_all(heads: Iterable[int]) -> None:
    """Kill `heads` and their descendants with SIGKILL, and wait until they have ended."""
    pids = [pid for head in heads for pid in freeze(head)]
    send(pids, signal.SIGKILL)
    wait_until(lambda: not family(pids), 10.0)


def end(heads: list[int], timeout: float = 3.0) -> None:
    """End `heads` with SIGQUIT, on which initdb and a postmaster clean up; kill the rest.

    A killed postmaster may leave shared memory behind.

    Args:
        heads: the parents of the processes to end.
        timeout: seconds after which those that still run are killed.
    """
    if pids := family(heads):
        send(heads, signal.SIGQUIT)
        send(pids, signal.SIGCONT)
        wait_until(lambda: not family(pids), timeout)
        kill_all(family(pids))


def discard(folder: Path) -> None:
    """End all processes of a server's folder; remove the folder and their shared memory."""
    data = folder / "data"
    end(heads_of(data))
    kill_all(heads_of(data))
    _free_shared_memory(data)
    shutil.rmtree(folder, ignore_errors=True)


def _free_shared_memory(data: Path) -> None:
    """Remove the System V segment (a few bytes) that a killed postmaster leaves on Linux."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (data / "postmaster.pid").read_text().splitlines()
        postmaster, segment = lines[0], lines[6].split()[1]
        for row in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            _, number, _, _, creator, _, attached, *_ = row.split()
            # The file may be old, and the segment's number reused.
            if (number, creator, attached) == (segment, postmaster, "0"):
                ctypes.CDLL(None).shmctl(int(segment), 0, None)  # 0 is IPC_RMID


def spawn(folder: Path, lock: int) -> subprocess.Popen[bytes]:
    """Start a reaper of `folder` that runs until we close its input, or end.

    Args:
        folder: the folder to discard at the end.
        lock: a descriptor that holds the folder's lock: the reaper's copy keeps it locked.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(folder), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        pass_fds=[lock],
        process_group=0,  # so that the terminal's Ctrl-C does not reach it
    )


def main(folder: Path, owner: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    # A child forked by the owner also holds the pipe open, so check for a new parent too.
    while os.getppid() == owner and not select([sys.stdin], [], [], 1.0)[0]:
        pass
    discard(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
