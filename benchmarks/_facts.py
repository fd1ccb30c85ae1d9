"""Facts about the machine and the software of a run."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psycopg

DRIVERS = ("psycopg", "asyncpg", "psycopg2-binary", "psqlpy")
PACKAGES = ("psycopg-asyncpool", "psycopg-pool", "sqlalchemy", "aiopg", "hasql", "uvloop", *DRIVERS)


def facts() -> dict[str, str]:
    """Collect the facts that need no server."""
    found = {
        "cpu": f"{cpu()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if hasattr(os, "getloadavg"):
        found["load"] = f"{os.getloadavg()[0]:.1f} in the minute before"
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["libpq"] = f"{psycopg.pq.version()} ({psycopg.pq.__impl__})"
    return found


async def server_version(dsn: str) -> str:
    """Return the version that the server reports."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        return conn.info.parameter_status("server_version") or str(conn.info.server_version)


def cpu() -> str:
    """Return the name of the CPU's model."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
