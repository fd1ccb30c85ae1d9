"""The processes of a row: start them, send them their lines, and keep what they print."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from typing import Any, Self

from benchmarks._plan import ROOT
from benchmarks.fleet._rows import Action

READY = 60.0
"""Seconds for the imports of a process."""
ENDS = 15.0
"""Seconds for a process to end, before it is killed."""
SIGNALS = {
    Action.KILL: signal.SIGKILL,
    Action.SUSPEND: signal.SIGSTOP,
    Action.RESUME: signal.SIGCONT,
}


@dataclass(frozen=True)
class Line:
    """One report of a process; counts are since its start."""

    at: float
    """In the time of `time.monotonic`."""
    answers: int
    errors: dict[str, int]
    first: float | None
    """Seconds from the opening of the pool to the first answer."""
    cpu: float


class MemberProcess:
    """One process with one pool."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._reader: asyncio.Task[None] | None = None
        self.lines: list[Line] = []

    @classmethod
    async def start(cls, given: dict[str, Any]) -> Self:
        """Start a process; it has imported all that it needs when this returns."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.fleet._member"),
            cwd=ROOT,
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
        )
        member = cls(process)
        try:
            member._send(json.dumps(given))
            async with asyncio.timeout(READY):
                await member._read()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        member._reader = asyncio.create_task(member._read_all())
        return member

    def do(self, action: Action) -> None:
        """Let the process do it."""
        if action in SIGNALS:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(SIGNALS[action])
        else:
            self._send(action)

    async def end(self) -> bool:
        """Wait until the process has ended; whether it had to be killed."""
        process, late = self._process, False
        if process.returncode is None:
            self.do(Action.RESUME)
            self._send(Action.END)
            try:
                await asyncio.wait_for(process.wait(), ENDS)
            except TimeoutError:
                process.kill()
                await process.wait()
                late = True
        if self._reader is not None:
            await self._reader
        return late

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None, "bug: a process without stdin"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(line.encode() + b"\n")

    async def _read_all(self) -> None:
        while await self._read():
            pass

    async def _read(self) -> bool:
        assert self._process.stdout is not None, "bug: a process without stdout"
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return False  # it has ended, perhaps within a line
        self.lines.append(Line(**json.loads(line)))
        return True
