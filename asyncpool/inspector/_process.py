"""Which process this is: each worker of an app has its own pools, and its own page."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

IMPORTED = time.time()


def identity() -> dict[str, Any]:
    """Return the host's name, the process ID and the seconds since the process started."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "uptime": time.time() - _started(pid)}


@lru_cache(maxsize=1)
def _started(pid: int) -> float:
    """Return when the process started, in seconds of the epoch.

    Where the system does not say so, this is the import of this module.
    """
    with suppress(OSError, ValueError, AttributeError, IndexError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks, boottime = int(after_name[19]), time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - boottime + ticks / os.sysconf("SC_CLK_TCK")
    return IMPORTED
