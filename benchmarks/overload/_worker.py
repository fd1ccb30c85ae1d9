"""One cell, in a process of its own: it reads its settings from stdin and prints the figures."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import warnings
from random import Random
from typing import Any

from benchmarks.overload._cost import LIMIT, cost
from benchmarks.overload._figures import Cell, evaluate
from benchmarks.overload._peers import make
from benchmarks.overload._play import Play, capacity
from benchmarks.overload._rows import COST, ROWS, Row
from benchmarks.overload._schedule import schedule, spans


async def _play(row: Row, given: dict[str, Any]) -> Cell:
    peer = make(given["pool"], given["dsn"], row.limit)
    random = Random(f"{given['seed']} {row.key}")
    places = spans(row.phases(given["seconds"]))
    await peer.open()
    try:
        uses = tuple(use for stream in row.streams for use in stream.uses)
        found = await capacity(peer, uses, given["probe"], Random(given["seed"]))
        requests = schedule(row, places, found, random)
        share = await Play(peer, row, places).run(requests)
    finally:
        await peer.close()
    cell = evaluate(row.key, given["pool"], requests, places, found)
    cell.cpu = share
    return cell


async def _cost(given: dict[str, Any]) -> Cell:
    peer = make(given["pool"], given["dsn"], LIMIT)
    await peer.open()
    try:
        return Cell(COST, given["pool"], cost=await cost(peer, given["seconds"]))
    finally:
        await peer.close()


def main() -> None:
    """Run the cell."""
    given = json.loads(sys.stdin.read())
    row = ROWS.get(given["row"])
    cell = asyncio.run(_cost(given) if row is None else _play(row, given))
    print(json.dumps(cell.record()))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    main()
