"""A server that is far away: a TCP proxy, in a process of its own, that lets what it copies wait.

Either the first bytes of each connection, once, or all that is sent, each way. Besides, it adds
what copying costs.
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

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay)
        with contextlib.suppress(OSError):
            if host.startswith("/"):
                there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                there = await asyncio.open_connection(host, int(port))
            await asyncio.gather(_copy(reader, there[1], lag), _copy(there[0], writer, lag))

    server = await asyncio.start_server(carry, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lag: float) -> None:
    later = asyncio.get_running_loop().call_later
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if lag:
                    later(lag, writer.write, data)
                else:
                    writer.write(data)
                    await writer.drain()
    finally:
        later(lag, writer.close)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
