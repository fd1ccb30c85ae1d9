"""Write the tables between the marks of README and of docs/performance.md, and the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._markdown import Lines, markdown, replaced
from benchmarks._pools import OURS, PGBENCH

README, PAGE, PICTURE = "README.md", "docs/performance.md", "docs/benchmarks.png"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
PEERS = {
    "psycopg_pool": "psycopg_pool",
    "asyncpg-no-reset": "asyncpg, no reset",
    "psqlpy": "psqlpy",
    "sqlalchemy": "SQLAlchemy",
    "aiopg": "aiopg",
    "asyncpool-psycopg-wait": "psycopg's own wait",
}
"""The columns of the tables."""
UNSEEN = {("memory", "psqlpy")}
"""What is measured in part only: tracemalloc does not see memory that is allocated in Rust."""
SHORT = (
    *("cycle", "handover-few", "key-autocommit-cpu", "key-transaction-cpu", "twenty-cpu"),
    *("oneshot-key-cpu", "oneshot-write-cpu", "opening-far", "memory"),
)
"""The rows of README's table."""

Report = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """A ratio that the project sets itself."""

    what: str
    figure: str
    peer: str
    least: tuple[float, float]
    """On asyncio and on uvloop."""


BUDGETS = (
    Budget("acquire and release", "cycle", "psycopg_pool", (6, 6)),
    Budget("hand-over, 200 waiting", "handover-few", "psycopg_pool", (3.5, 3.5)),
    Budget("hand-over, 10,000 waiting", "handover-many", "psycopg_pool", (3.5, 3.5)),
    Budget("a row by its key, autocommit", "key-autocommit-cpu", "psycopg_pool", (3, 3)),
    Budget("", "key-autocommit-cpu", "asyncpg-no-reset", (2, 1.4)),
    Budget("a row by its key, transaction", "key-transaction-cpu", "psycopg_pool", (2.6, 2.6)),
    Budget("", "key-transaction-cpu", "asyncpg-no-reset", (2, 1.3)),
    Budget("a transaction of three statements", "transaction-cpu", "psycopg_pool", (2.2, 2.2)),
    Budget("", "transaction-cpu", "asyncpg-no-reset", (1.6, 1.15)),
    Budget("twenty rows by key in a block", "twenty-cpu", "psycopg_pool", (2.2, 2.2)),
    Budget("", "twenty-cpu", "asyncpg-no-reset", (1.6, 1.15)),
    Budget("one-shot read, by key", "oneshot-key-cpu", "psycopg_pool", (7, 7)),
    Budget("", "oneshot-key-cpu", "asyncpg-no-reset", (5, 3.5)),
    Budget("one-shot write, by key", "oneshot-write-cpu", "psycopg_pool", (3, 3)),
    Budget("", "oneshot-write-cpu", "asyncpg-no-reset", (2, 1.3)),
    Budget("one task on one connection", "latency", "psycopg_pool", (1, 1)),
    Budget("a null pool", "null", "psycopg_pool", (1, 1)),
    Budget("opening 50, 100 ms away", "opening-far", "psycopg_pool", (6, 6)),
    Budget("", "opening-far", "sqlalchemy", (1, 1)),
)
"""Rows whose figures end with "-cpu" are of the client's CPU time, the others of time."""


def write(report: Report, root: Path) -> None:
    """Write the tables and the picture.

    Raises:
        ValueError: a page has no marks.
    """
    short, full, judged = readme(report), table(report), budgets(report)
    pages = {
        root / README: [markdown(short), briefly(report)],
        root / PAGE: [markdown(full), "\n".join(pgbench(report)), how(report), markdown(judged)],
    }
    texts = {page: replaced(page, BEGIN, END, parts) for page, parts in pages.items()}
    from benchmarks._picture import draw  # noqa: PLC0415 - matplotlib is slow to import

    for page, text in texts.items():
        page.write_text(text)
    draw(report, root / PICTURE)


def table(report: Report) -> Lines:
    """Return all figures, each on both loops."""
    found = _found(report)
    loops = _loops(report)
    lines = [[" / ".join(loops), OURS, *(f"to {name}" for name in PEERS.values())]]
    for figure in report["figures"]:
        records = [found.get((loop, figure["key"], OURS)) for loop in loops]
        if not any(records):
            continue
        own = " / ".join(dict.fromkeys(_value(each, figure["unit"]) for each in records if each))
        lines.append([figure["title"], own, *_ratios(found, figure["key"], loops)])
    return lines


def readme(report: Report) -> Lines:
    """Return the rows of README's table."""
    titles = {each["key"]: each["title"] for each in report["figures"]}
    wanted = [titles[key] for key in SHORT if key in titles]
    head, *lines = table(report)
    by_title = {line[0]: line for line in lines}
    lines = [head, *(by_title[title] for title in wanted if title in by_title)]
    return [line[:-1] for line in lines]  # psycopg's own wait is no pool that one can choose


def budgets(report: Report) -> Lines:
    """Return what was aimed at and what was found; what is missed is bold."""
    found, loops = _found(report), _loops(report)
    lines = [["", "at least", f"measured, {' / '.join(loops)}"]]
    for each in BUDGETS:
        pairs = []
        for loop, least in zip(("asyncio", "uvloop"), each.least, strict=True):
            ratio = _ratio(found, loop, each.figure, each.peer)
            if ratio is not None:
                shown = _digits(ratio)
                pairs.append(shown if float(shown) >= least else f"**{shown}**")
        aims = " / ".join(dict.fromkeys(f"{least:g}" for least in each.least))
        if pairs:
            lines.append([each.what, f"{aims} times {PEERS[each.peer]}", " / ".join(pairs)])
    return lines


def pgbench(report: Report) -> Iterator[str]:
    """Yield a line of a list for each comparison with pgbench."""
    for record in report["results"]:
        if record["pool"].startswith(PGBENCH) and (share := record["asyncpool_times_better"]):
            yield (
                f"- {record['title']}, {record['loop']}: {share['median'] * 100:.0f} % of the rate"
                f" of `{record['pool']}`"
            )


def briefly(report: Report) -> str:
    """Return how the figures were measured, in one sentence."""
    facts, rounds = report["facts"], report["settings"]["rounds"]
    where = ", ".join(facts[name] for name in ("cpu", "python") if name in facts)
    return f"Medians of {rounds} rounds with every pool in each round, on {where}."


def how(report: Report) -> str:
    """Return how the figures were measured."""
    facts = ", ".join(f"{name} {value}" for name, value in report["facts"].items())
    return (
        f"Medians of {report['settings']['rounds']} rounds, fewer for slow rows, with every pool in"
        f" each round. A ratio above 1 means that asyncpool is faster, or needs less. Measured on:"
        f" {facts}."
    )


def _loops(report: Report) -> list[str]:
    return list(dict.fromkeys(record["loop"] for record in report["results"]))


def _found(report: Report) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(each["loop"], each["figure"], each["pool"]): each for each in report["results"]}


def _ratio(found: dict[Any, Any], loop: str, figure: str, peer: str) -> float | None:
    record = found.get((loop, figure, peer))
    ratio = None if record is None else record["asyncpool_times_better"]
    return None if ratio is None else float(ratio["median"])


def _ratios(found: dict[Any, Any], figure: str, loops: list[str]) -> Iterator[str]:
    for peer in PEERS:
        ratios = [_ratio(found, loop, figure, peer) for loop in loops]
        if (figure, peer) in UNSEEN:
            ratios = []
        known = [_digits(each) for each in ratios if each is not None]
        yield " / ".join(known) or "-"


def _value(record: dict[str, Any], unit: str) -> str:
    number, shown = record["median"], unit
    for larger, smaller in (("ms", "µs"), ("s", "ms")):
        if shown == smaller and number >= 1000:
            number, shown = number / 1000, larger
    text = f"{number:,.0f}" if number >= 100 else f"{number:#.2g}".rstrip(".")
    return text if unit == "ratio" else f"{text} {shown}"


def _digits(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 1.1 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
