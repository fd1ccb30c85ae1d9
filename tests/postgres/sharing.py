"""The campaign: run random programs for hours, with and without sharing, and compare the times.

python -m tests.postgres.sharing --minutes 60
python -m tests.postgres.sharing --seed 1234 --minutes 60
python -m tests.postgres.sharing --seed 1234 --programs 1 --loop uvloop

A request that takes more than 250 ms longer with sharing is measured again, five times each way, as
the order in which tasks get their locks varies. It is printed if its shortest time with sharing is
still that much above its longest without.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from psycopg.conninfo import make_conninfo

from asyncpool.testing import postgres

from ._program_runs import Verdict, run
from ._tools import Backends, new_uvloop

if TYPE_CHECKING:
    from collections.abc import Callable

LONGER = 0.25
"""Seconds by which a request may take longer with sharing than without."""


@dataclass(slots=True)
class Figures:
    """The measurements of a campaign."""

    programs: int = 0
    shared: int = 0
    faults: list[str] = field(default_factory=list)
    outcomes: dict[bool, Counter[str]] = field(
        default_factory=lambda: {True: Counter(), False: Counter()}
    )
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    again: int = 0
    """The number of requests that were measured again."""
    longer: list[tuple[float, str]] = field(default_factory=list)
    """Requests that take longer with sharing: by how many seconds, and their place."""

    def lines(self) -> list[str]:
        """Return the figures as text lines."""
        lines = [f"{self.programs} programs, {len(self.faults)} faults, {self.shared} shared"]
        for pipeline, name in ((True, "shared"), (False, "borrowed")):
            values = self.seconds[pipeline] or [0.0, 0.0]
            cuts = statistics.quantiles(values, n=1000)
            lines.append(
                f"{name}: {len(values)} requests, p50 {cuts[499]:.4f} s, p99 {cuts[989]:.4f} s,"
                f" p99.9 {cuts[998]:.4f} s, longest {max(values):.4f} s;"
                f" {dict(self.outcomes[pipeline].most_common())}"
            )
        lines.append(f"{self.again} measured again; longer with sharing by {LONGER} s or more:")
        lines += [f"  {seconds:.3f} s: {where}" for seconds, where in self.longer] or ["  none"]
        return lines


class Campaign:
    """Runs programs one after the other.

    Args:
        dsn: a server whose user may set `deadlock_timeout`.
        report: called with a line for each fault and each slow request.
    """

    def __init__(self, dsn: str, report: Callable[[str], None] = print) -> None:
        name = f"sharing-{uuid4().hex[:12]}"
        self._dsn = make_conninfo(dsn, application_name=name)
        self._backends = Backends(dsn, name)
        self._report = report
        self.figures = Figures()

    async def both(self, seed: int) -> None:
        """Run the program of a seed with sharing and without."""
        figures = self.figures
        verdicts = {pipeline: await self._one(seed, pipeline) for pipeline in (True, False)}
        figures.programs += 1
        figures.shared += verdicts[True].shared
        for pipeline, verdict in verdicts.items():
            figures.outcomes[pipeline] += verdict.outcomes
            figures.seconds[pipeline] += verdict.seconds.values()
        longer = excess(verdicts[True].seconds, verdicts[False].seconds)
        if not longer:
            return
        figures.again += len(longer)
        shared, borrowed = dict(verdicts[True].seconds), dict(verdicts[False].seconds)
        for _ in range(5):
            for place, seconds in (await self._one(seed, True)).seconds.items():
                shared[place] = min(seconds, shared.get(place, seconds))
            for place, seconds in (await self._one(seed, False)).seconds.items():
                borrowed[place] = max(seconds, borrowed.get(place, 0.0))
        for place, seconds in excess(shared, borrowed).items():
            figures.longer.append((seconds, f"seed {seed}, request {place}"))
            self._report(f"seed {seed}: request {place} takes {seconds:.3f} s longer with sharing")

    async def _one(self, seed: int, pipeline: bool) -> Verdict:
        verdict = await run(self._dsn, self._backends, seed, pipeline=pipeline)
        for fault in verdict.faults:
            where = f"seed {seed}, {'shared' if pipeline else 'borrowed'}: {fault}"
            self.figures.faults.append(where)
            self._report(where)
        return verdict


def excess(shared: dict[str, float], borrowed: dict[str, float]) -> dict[str, float]:
    """Return by how many seconds requests are too slow with sharing, by their places."""
    more = {place: shared[place] - borrowed[place] for place in shared.keys() & borrowed.keys()}
    return {place: seconds for place, seconds in more.items() if seconds > LONGER}


async def campaign(options: argparse.Namespace) -> Figures:
    """Run programs until the time or the number of programs is reached."""
    async with postgres(max_connections=100) as server:
        running = Campaign(server.dsn)
        deadline, reported_at, seed = time.monotonic() + options.minutes * 60, time.monotonic(), 0
        for seed in range(options.seed, options.seed + (options.programs or sys.maxsize)):
            if not options.programs and time.monotonic() > deadline:
                break
            await running.both(seed)
            if time.monotonic() - reported_at > 60:
                reported_at = time.monotonic()
                print(f"{running.figures.lines()[0]}, now at seed {seed}", flush=True)
        return running.figures


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.postgres.sharing")
    parser.add_argument("--seed", type=int, default=0, help="the first program")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--programs", type=int, default=0, help="so many instead of minutes")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    options = parser.parse_args(arguments)
    factory: Any = new_uvloop if options.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        figures = runner.run(campaign(options))
    print("\n".join(figures.lines()))
    return bool(figures.faults)


if __name__ == "__main__":
    sys.exit(main())
