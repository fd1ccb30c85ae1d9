"""Runs many seeds on all cores, in chunks; prints progress, broken laws and speed."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import time

from tests.sim.world import outcome_of

CHUNK = 100
REPORT = 20
"""The number of chunks between two reports of progress."""


def run_all(seeds: range, processes: int | None = None) -> int:
    """Run all seeds and print each broken law at once; return their number."""
    started = time.perf_counter()
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    done = broken = 0
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=_be_quiet) as workers:
        for number, (ran, failures) in enumerate(workers.imap_unordered(_run_chunk, chunks), 1):
            done += ran
            broken += len(failures)
            if failures:
                print(*failures, sep="\n", flush=True)
            if number % REPORT == 0 or number == len(chunks):
                took = time.perf_counter() - started
                rate = f"{took:.0f} s, {done / took:.0f} seeds a second"
                print(f"{done} seeds from {seeds.start}, {broken} broken, {rate}", flush=True)
    return broken


def _run_chunk(seeds: range) -> tuple[int, list[str]]:
    return len(seeds), [said for seed in seeds if (said := outcome_of(seed))]


def _be_quiet() -> None:
    logging.disable(logging.ERROR)
    gc.freeze()
