"""Decide whether a hot path has grown. Counts that were made with something else decide nothing.

Another patch version of Python is compared: its bytecode is the same. Another CPU is, as callgrind
counts instructions and not their time. All other facts must be equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.instructions._record import Record

ALLOWED = 0.05
"""The share by which a path may grow."""
UNCOMPARED = ("cpu",)
RENEW = "python -m benchmarks.instructions --renew"


@dataclass(frozen=True)
class Verdict:
    """The outcome, and the lines that say it."""

    failed: bool
    lines: list[str]


def compare(committed: Record, now: Record) -> Verdict:
    """Compare new counts with the committed ones."""
    if other := _differences(committed.made_with, now.made_with):
        return Verdict(failed=False, lines=[f"not compared: made with {each}" for each in other])
    if committed.instructions.keys() != now.instructions.keys():
        strange = sorted(committed.instructions.keys() ^ now.instructions.keys())
        lines = [f"only committed or only counted: {', '.join(strange)}. Run: {RENEW}"]
        return Verdict(failed=True, lines=lines)
    lines, grown, shrunk = [], [], []
    for path, count in now.instructions.items():
        before = committed.instructions[path]
        lines.append(f"{path:<32} {before:>9,} -> {count:>9,}  {count / before - 1:+.1%}")
        if count > before * (1 + ALLOWED):
            grown.append(path)
        elif count < before * (1 - ALLOWED):
            shrunk.append(path)
    if grown:
        lines.append(
            f"grown by more than {ALLOWED:.0%}: {', '.join(grown)}."
            f" Find the cause, or commit what it costs: {RENEW}"
        )
        lines += _other_patch(committed, now)
    if shrunk:
        lines.append(f"less by more than {ALLOWED:.0%}: {', '.join(shrunk)}. Keep it: {RENEW}")
    return Verdict(failed=bool(grown), lines=lines)


def _differences(made_with: dict[str, str], here: dict[str, str]) -> list[str]:
    names = [name for name in made_with | here if name not in UNCOMPARED]
    return [
        f"{name} {made_with.get(name, 'unknown')}, here {here.get(name, 'unknown')}"
        for name in names
        if _series(name, made_with.get(name, "")) != _series(name, here.get(name, ""))
    ]


def _series(name: str, value: str) -> str:
    """Return the part of a value that must be equal: of Python's version without its patch."""
    return value.rpartition(".")[0] if name == "python" else value


def _other_patch(committed: Record, now: Record) -> list[str]:
    made, here = committed.made_with["python"], now.made_with["python"]
    return [] if made == here else [f"The committed counts are of Python {made}, these of {here}."]
