"""A TCP proxy, in a process of its own, that simulates a distant server by delaying data.

It delays each new connection once, or all data in each direction. Copying adds its own cost. The
proxy can also break connections in the middle of a message.
Run as `python -m benchmarks._proxy HOST PORT DELAY LAG`, it prints its port.
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
    """Yield a connection string that leads to the server through a delaying proxy.

    Args:
        dsn: the server's own connection string.
        delay: additional seconds for each new connection.
        lag: additional seconds for all data, in each direction.
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
        proxy_port = process.stdout.readline().strip()
        if not proxy_port:
            msg = f"the proxy did not start: it ended with status {process.wait()}"
            raise RuntimeError(msg)
        given = {key: value for key, value in parts.items() if value is not None}
        yield make_conninfo("", **{**given, "host": "127.0.0.1", "port": proxy_port})
    finally:
        process.kill()
        process.communicate()


async def serve(host: str, port: str, delay: float, lag: float) -> None:
    """Listen until stdin ends, which happens when the parent ends, even if killed."""
    proxy = Proxy(host, port)
    proxy.delay, proxy.lag = delay, lag
    await proxy.start()
    print(proxy.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


class Proxy:
    """The proxy, in this event loop; its settings can be changed at any time.

    Attributes:
        delay: additional seconds for each new connection.
        lag: additional seconds for all data, in each direction.
        piece: if not 0, data is sent in pieces of this many bytes, one every 2 ms.
        accepted: the number of accepted connections so far.
        cuts: the number of broken connections so far.
    """

    def __init__(self, host: str, port: str) -> None:
        self._host, self._server_port = host, port
        self._server: asyncio.Server | None = None
        self.port = 0
        self.delay = self.lag = 0.0
        self.piece = self.accepted = self.cuts = 0
        self._cut_up_to = 0

    async def start(self) -> None:
        """Start listening."""
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Stop listening."""
        assert self._server is not None, "bug: never started"
        self._server.close()

    def cut(self) -> None:
        """On each current connection, forward half of the server's next data, then break it."""
        self._cut_up_to = self.accepted

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        await asyncio.sleep(self.delay)
        with contextlib.suppress(OSError):
            try:
                if self._host.startswith("/"):
                    path = f"{self._host}/.s.PGSQL.{self._server_port}"
                    server = await asyncio.open_unix_connection(path)
                else:
                    server = await asyncio.open_connection(self._host, int(self._server_port))
            except OSError:
                writer.close()
                raise
            await asyncio.gather(
                self._copy(reader, server[1]), self._copy(server[0], writer, number)
            )

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers_of: int = 0
    ) -> None:
        later = asyncio.get_running_loop().call_later
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    if 0 < answers_of <= self._cut_up_to:
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
