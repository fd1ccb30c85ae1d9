"""A connection string that leads through a proxy in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks._proxy import Proxy


@asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[tuple[str, Proxy]]:
    """Run a proxy to a server; yield a connection string that leads through it, and the proxy."""
    parts = conninfo_to_dict(dsn)
    proxy = Proxy(str(parts["host"]), str(parts["port"]))
    await proxy.start()
    try:
        yield make_conninfo(dsn, host="127.0.0.1", port=proxy.port), proxy
    finally:
        proxy.stop()
