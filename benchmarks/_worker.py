"""One event loop's run, in a process of its own: it reads a plan and writes JSON lines."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks._facts import server_version
from benchmarks._plan import Plan, figures
from benchmarks._pools import find
from benchmarks._rounds import Bench


def factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of an event loop.

    Raises:
        ImportError: the event loop is not installed.
    """
    if loop == "asyncio":
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - uvloop is optional

    return uvloop.new_event_loop


async def run(plan: Plan, report: Callable[[str], None]) -> dict[str, Any]:
    """Run all rows, one after another."""
    from benchmarks._rows import RUN  # noqa: PLC0415 - asyncpool itself may be missing

    makers, notes = find(plan.pools)
    bench = Bench(plan, makers, report)
    bench.notes += notes
    gc.collect()
    gc.freeze()
    for row in plan.rows:
        await RUN[row](bench)
    return {
        "loop": plan.loop,
        "notes": bench.notes,
        "postgresql": await server_version(plan.dsn),
        "figures": [asdict(figure) for figure in figures(plan) if figure.key in bench.samples],
        "samples": bench.samples,
    }


def _print(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    """Read the plan from stdin, run it and print the result."""
    plan = Plan(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        make = factory(plan.loop)
    except ImportError as error:
        _print(result={"loop": plan.loop, "notes": [f"{plan.loop} is left out: {error}"]})
        return
    with asyncio.Runner(loop_factory=make) as runner:
        _print(result=runner.run(run(plan, lambda line: _print(progress=line))))


if __name__ == "__main__":
    main()
