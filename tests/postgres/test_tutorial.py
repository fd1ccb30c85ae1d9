"""The tutorial's app, run in a process of its own as its reader runs it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from ._docs import FILE, ROOT

TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LIMIT = 60.0
"""Seconds until the test gives up; starting a server takes two or three."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the tutorial."""
    for block in BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")):
        if name := FILE.match(block):
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
    return tmp_path


@asynccontextmanager
async def serving(folder: Path, app: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run `python dev.py` and yield a client of it once the app is up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "dev.py", app),
        cwd=folder,
        env=os.environ
        | {"PORT": str(port), "INSPECTOR_PASSWORD": "secret", "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(LIMIT):
            while b"Uvicorn running" not in (line := await process.stderr.readline()):
                assert line, "the app ended before it was up"
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield client
            process.terminate()
            await process.communicate()
            assert process.returncode in {0, -15}
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_the_tutorials_app_does_what_the_tutorial_says(folder: Path) -> None:
    """Notes are kept, the pool is ready and has metrics, and the inspector wants its password."""
    async with serving(folder, "main:app") as client:
        note = {"id": 1, "text": "hello"}
        assert (await client.post("/notes", params={"text": "hello"})).json() == note
        assert (await client.get("/notes/1")).json() == note
        assert (await client.get("/notes/2")).status_code == 404
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/ready")).json()["status"] == "ok"
        assert 'asyncpool_requests_total{pool="notes"}' in (await client.get("/metrics")).text
        assert (await client.get("/pool/")).status_code in {401, 403}
        wrong = await client.get("/pool/", auth=("admin", "wrong"))
        assert wrong.status_code in {401, 403}
        snapshot = await client.get("/pool/snapshot", auth=("admin", "secret"))
        assert [each["name"] for each in snapshot.json()["pools"]] == ["notes"]
