"""The process of one application: it reads its settings from stdin and prints its port.

It ends when its stdin is closed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading

import uvicorn
import uvloop

from benchmarks.web._app import Application
from benchmarks.web._stores import Setup, find


async def _serve(given: dict[str, str]) -> None:
    store = find(given["pool"])(Setup(given["dsn"], int(given["size"])))
    await store.open()
    config = uvicorn.Config(
        Application(store).starlette(), http="httptools", lifespan="off", log_level="error"
    )
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        print(listener.getsockname()[1], flush=True)
        await uvicorn.Server(config).serve([listener])


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)


if __name__ == "__main__":
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    uvloop.run(_serve(settings))
