"""Run the simulator: one seed, or many on all cores.

python -m tests.sim 1234
python -m tests.sim --count 1000000 --start 1000000
python -m tests.sim --hypothesis 5000
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from tests.sim.campaign import run_all
from tests.sim.world import World


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("seed", type=int, nargs="?", help="run this one, with its traceback")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--processes", type=int, help="how many at once; as many as cores")
    parser.add_argument(
        "--hypothesis", type=int, metavar="N", help="let the state machine try N examples"
    )
    options = parser.parse_args()
    if options.seed is not None:
        logging.basicConfig(level=logging.DEBUG)
        World(options.seed).run()
        return 0
    logging.disable(logging.ERROR)
    if options.hypothesis is not None:
        return search(options.hypothesis)
    seeds = range(options.start, options.start + options.count)
    return 1 if run_all(seeds, options.processes) else 0


def search(examples: int) -> int:
    """Drive the state machine; a failure is shrunk, and raised with its script."""
    from tests.sim.machine import search_for

    started = time.perf_counter()
    search_for(examples)
    took = time.perf_counter() - started
    print(f"{examples} examples, 0 broken, {took:.0f} s, {examples / took:.0f} a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
