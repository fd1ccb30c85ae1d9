"""Run the simulator by hand: one seed again, or many on all cores.

python -m tests.sim 1234
python -m tests.sim --count 100000
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time

from tests.sim.world import World, outcome_of


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="run this one, with its traceback")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    if options.seed is not None:
        logging.disable(logging.NOTSET)
        logging.basicConfig(level=logging.DEBUG)
        World(options.seed).run()
        return 0
    started = time.perf_counter()
    seeds = range(options.start, options.start + options.count)
    with multiprocessing.get_context("spawn").Pool(
        initializer=logging.disable, initargs=[logging.ERROR]
    ) as processes:
        broken = [
            line for line in processes.imap_unordered(outcome_of, seeds, chunksize=50) if line
        ]
    took = time.perf_counter() - started
    print(*broken[:20], sep="\n")
    print(f"{options.count} seeds, {len(broken)} broken, {options.count / took:.0f} seeds a second")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
