"""Run the program under `valgrind --tool=callgrind`, and read how many instructions it counted."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path
from statistics import median
from subprocess import DEVNULL, PIPE
from tempfile import TemporaryDirectory

from benchmarks._plan import ROOT
from benchmarks.instructions._paths import PATHS
from benchmarks.instructions._program import BATCHES, MARK

PARTS = 2 * BATCHES
"""Parts of a path: one before each mark. Each second one is a batch."""
SUMMARY = re.compile(r"^summary: (\d+)", re.MULTILINE)


class Uncountable(Exception):
    """Instructions cannot be counted here; the message says why."""


async def count(dsn: str, paths: tuple[str, ...] = tuple(PATHS)) -> dict[str, int]:
    """Return the instructions of each path, for one time: the median of its batches.

    Raises:
        Uncountable: valgrind is not installed, or the program failed.
    """
    if (valgrind := shutil.which("valgrind")) is None:
        raise Uncountable("valgrind is not installed")
    with TemporaryDirectory() as folder:
        program = await asyncio.create_subprocess_exec(
            *(valgrind, "--tool=callgrind", f"--callgrind-out-file={folder}/part"),
            *(f"--dump-before={MARK}", "--combine-dumps=no"),
            *(sys.executable, "-m", "benchmarks.instructions._program"),
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=PIPE,
        )
        given = json.dumps({"dsn": dsn, "paths": paths})
        _, errors = await program.communicate(given.encode() + b"\n")
        if program.returncode:
            raise Uncountable(errors.decode(errors="replace")[-2000:])
        return per_run(parts(Path(folder)), paths)


def parts(folder: Path) -> list[int]:
    """Return the instructions between the marks, in order; the first part is the start."""
    files = sorted(folder.glob("part.*"), key=lambda file: int(file.suffix[1:]))
    return [_instructions(file) for file in files]


def per_run(counted: list[int], paths: tuple[str, ...]) -> dict[str, int]:
    """Return the median of each path's batches, divided by how many times the path ran in one.

    Raises:
        Uncountable: there is another number of parts than of marks.
    """
    if len(counted) != PARTS * len(paths):
        msg = f"callgrind wrote {len(counted)} parts for {PARTS * len(paths)} calls of {MARK}"
        raise Uncountable(msg)
    batches = counted[1::2]
    return {
        name: round(median(batches[place * BATCHES : (place + 1) * BATCHES]) / PATHS[name][1])
        for place, name in enumerate(paths)
    }


def _instructions(file: Path) -> int:
    found = SUMMARY.search(file.read_text(errors="replace"))
    if found is None:
        raise Uncountable(f"callgrind's part {file.name} has no summary")
    return int(found[1])
