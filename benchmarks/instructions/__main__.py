"""Count and compare, or renew: `python -m benchmarks.instructions`. It needs valgrind."""

from __future__ import annotations

import argparse
import asyncio
import sys

from asyncpool.testing import postgres
from benchmarks.instructions import __doc__ as description
from benchmarks.instructions._callgrind import Uncountable, count
from benchmarks.instructions._compare import compare
from benchmarks.instructions._record import FILE, Record, facts, read, write


async def _count() -> dict[str, int]:
    async with postgres() as server:
        return await count(server.dsn)


def main() -> int:
    """Return the exit status: 0 within the budget or not comparable, 1 beyond it, 2 not counted."""
    parser = argparse.ArgumentParser("python -m benchmarks.instructions", description=description)
    parser.add_argument("--renew", action="store_true", help="write the counts, compare nothing")
    renew = parser.parse_args().renew
    try:
        now = Record(facts(), asyncio.run(_count()))
    except Uncountable as error:
        print(f"instructions cannot be counted: {error}", file=sys.stderr)
        return 2
    if renew:
        write(now, FILE)
        print(f"wrote {FILE}")
        return 0
    verdict = compare(read(FILE), now)
    print("\n".join(verdict.lines))
    return int(verdict.failed)


sys.exit(main())
