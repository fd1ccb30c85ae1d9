"""The load generators, which are programs of their own: wrk, else k9 of the package k9-load."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from tempfile import TemporaryDirectory

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class LoadFailed(Exception):
    """The generator failed, or not every answer was a success; the message says which."""


@dataclass(frozen=True)
class Load:
    """What clients saw: requests a second, and the median and 99th percentile in seconds."""

    rate: float
    p50: float
    p99: float


def generator() -> str:
    """Return the generator to use.

    Raises:
        LoadFailed: none is installed.
    """
    for name in ("wrk", "k9"):
        if find_program(name):
            return name
    raise LoadFailed("no load generator: install the program wrk, or pip install --group bench")


async def load(url: str, clients: int, seconds: int, using: str) -> Load:
    """Request a page from all clients as fast as it is answered."""
    return await (_wrk if using == "wrk" else _k9)(url, clients, seconds)


def parse_wrk(printed: str) -> Load:
    """Read what `wrk --latency` has printed.

    Raises:
        LoadFailed: an answer was no success, or a figure is missing.
    """
    if failed := re.search(r"^ *(Non-2xx.*|Socket errors.*)", printed, re.MULTILINE):
        raise LoadFailed(failed[1])
    rate = re.search(r"^Requests/sec: +([\d.]+)", printed, re.MULTILINE)
    times = dict(re.findall(r"^ +(50|99)% +([\d.]+[a-z]+)", printed, re.MULTILINE))
    if rate is None or len(times) != 2:
        raise LoadFailed(f"wrk printed no figures: {printed[-200:]}")
    return Load(float(rate[1]), _seconds(times["50"]), _seconds(times["99"]))


def parse_k9(summary: str) -> Load:
    """Read the summary that k9 has exported.

    Raises:
        LoadFailed: an answer was no success.
    """
    metrics = json.loads(summary)["metrics"]
    if failed := metrics["http_req_failed"]["passes"]:
        raise LoadFailed(f"{failed} answers were no success")
    times = metrics["http_req_duration"]
    return Load(metrics["http_reqs"]["rate"], times["med"] / 1e3, times["p(99)"] / 1e3)


async def _wrk(url: str, clients: int, seconds: int) -> Load:
    options = ("-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "--latency")
    return parse_wrk(await _run("wrk", *options, url))


async def _k9(url: str, clients: int, seconds: int) -> Load:
    plan = {
        "options": {"summaryTrendStats": ["med", "p(99)"]},
        "flows": {"default": [{"request": {"url": url}}]},
    }
    with TemporaryDirectory() as folder:
        script, summary = Path(folder) / "plan.json", Path(folder) / "summary.json"
        script.write_text(json.dumps(plan))
        await _run(
            *("k9", "run", str(script), "-u", str(clients), "-d", f"{seconds}s"),
            *("--summary-export", str(summary), "--discard-response-bodies"),
        )
        return parse_k9(summary.read_text())


async def _run(name: str, *options: str) -> str:
    program = find_program(name)
    assert program is not None, f"bug: {name} was chosen, but is not installed"
    process = await asyncio.create_subprocess_exec(
        program, *options, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
    )
    output, _ = await process.communicate()
    printed = output.decode(errors="replace")
    if process.returncode:
        raise LoadFailed(f"{name} ended with status {process.returncode}: {printed[-200:]}")
    return printed


def find_program(name: str) -> str | None:
    """Find a program on the PATH, or beside this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    return float(number) * SECONDS[unit]
