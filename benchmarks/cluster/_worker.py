"""One pool with its load, in a process of its own.

It reads its settings from a line of stdin, opens the pool, starts the load and says so in a line;
after the next line of stdin it ends the load and prints all requests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import warnings
from typing import Any

from benchmarks.cluster._load import Load
from benchmarks.cluster._peers import PEERS, Setup

CLOSE = 20.0
"""Seconds after which a `close()` hangs."""


async def _run(given: dict[str, Any]) -> None:
    peer = PEERS[given["pool"]](Setup(given["dsn"], given["limit"]))
    await peer.open()
    load = Load(peer, given["rates"], given["first"])
    load.start()
    print("started", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    requests = await load.finish()
    print(json.dumps([each.record() for each in requests]), flush=True)
    async with asyncio.timeout(CLOSE):
        await peer.close()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    asyncio.run(_run(json.loads(sys.stdin.readline())))
