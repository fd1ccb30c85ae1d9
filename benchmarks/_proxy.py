"""A server that is far away: a TCP proxy, in a process of its own, that lets what it copies wait.

Either the first bytes of each connection, once, or all that is sent, each way. Besides, it adds
what copying costs. It can also break connections, in mid-message.
Run as `python -m benchmarks._proxy HOST PORT DELAY LAG`, it prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks._plan import ROOT


@contextlib.contextmanager
def far_away(dsn: str, *, delay: float = 0.0, lag: float = 0.0) -> Iterator[str]:
    """A connection string for the same server, for which everything takes longer.

    Args:
        dsn: the server's own.
        delay: seconds more for each new connection.
        lag: seconds more for all that is sent, each way.
    """
    parts = conninfo_to_dict(dsn)
    host = str(parts.pop("hostaddr", None) or parts.get("host") or "localhost").split(",")[0]
    port = str(parts.get("port") or 5432).split(",")[0]
    command = [sys.executable, "-m", "benchmarks._proxy", host, port, str(delay), str(lag)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None, "bug: stdout is a pipe"
        mine = process.stdout.readline().strip()
        if not mine:
            msg = f"the proxy did not start; it ended with {process.wait()}"
            raise RuntimeError(msg)
        given = {key: value for key, value in parts.items() if value is not None}
        yield make_conninfo("", **{**given, "host": "127.0.0.1", "port": mine})
    finally:
        process.kill()
        process.communicate()


async def serve(host: str, port: str, delay: float, lag: float) -> None:
    """Listen until stdin ends, as it does with the parent, however that ends."""
    proxy = Proxy(host, port)
    proxy.delay, proxy.lag = delay, lag
    await proxy.start()
    print(proxy.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


class Proxy:
    """The proxy itself, in this event loop; what it does to connections can be changed meanwhile.

    Attributes:
        delay: seconds more for each new connection.
        lag: seconds more for all that is sent, each way.
        piece: if not 0, what is sent comes in pieces of so many bytes, one in two milliseconds.
        accepted: connections so far.
        cuts: those of them that were broken.
    """

    def __init__(self, host: str, port: str) -> None:
        self._host, self._there = host, port
        self._server: asyncio.Server | None = None
        self.port = 0
        self.delay = self.lag = 0.0
        self.piece = self.accepted = self.cuts = 0
        self._doomed = 0

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Listen no more."""
        assert self._server is not None, "bug: never started"
        self._server.close()

    def cut(self) -> None:
        """Pass on half of the next answer on each connection there is, and break it."""
        self._doomed = self.accepted

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        await asyncio.sleep(self.delay)
        with contextlib.suppress(OSError):
            try:
                if self._host.startswith("/"):
                    place = f"{self._host}/.s.PGSQL.{self._there}"
                    there = await asyncio.open_unix_connection(place)
                else:
                    there = await asyncio.open_connection(self._host, int(self._there))
            except OSError:
                writer.close()
                raise
            await asyncio.gather(self._copy(reader, there[1]), self._copy(there[0], writer, number))

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers_of: int = 0
    ) -> None:
        later = asyncio.get_running_loop().call_later
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    if 0 < answers_of <= self._doomed:
                        self.cuts += 1
                        writer.write(data[: len(data) // 2])
                        return
                    if self.lag:
                        later(self.lag, writer.write, data)
                    elif self.piece:
                        await self._trickle(data, writer)
                    else:
                        writer.write(data)
                        await writer.drain()
        finally:
            later(self.lag, writer.close)

    async def _trickle(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        size = self.piece
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
