"""The tables, in Markdown for a page, and the place between the marks of the page."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._markdown import replaced
from benchmarks._numbers import ratios, spread

PAGE = "docs/performance.md"
PICTURE = "web.png"
BEGIN, END = "<!-- web: begin -->", "<!-- web: end -->"
OURS = ("asyncpool", "asyncpool one-shots")
Samples = dict[str, dict[str, list[float]]]


def tables(report: dict[str, Any]) -> list[str]:
    """Return the ratios, then all figures."""
    return [*_ratio_tables(report), _figures(report)]


def rate_ratio(samples: Samples, test: str, ours: str, peer: str) -> dict[str, float] | None:
    """Return the spread of how many times as many requests a second one has as the other."""
    rates = samples.get(f"{test}-rate", {})
    return ratios(rates.get(ours, []), rates.get(peer, []))


def cpu_ratio(samples: Samples, test: str, ours: str, peer: str) -> dict[str, float] | None:
    """Return the spread of how many times less CPU time a request one takes than the other."""
    times = samples.get(f"{test}-cpu", {})
    return ratios(times.get(peer, []), times.get(ours, []))


def write(report: dict[str, Any], page: Path) -> None:
    """Write the tables into the page, and the picture next to it.

    Raises:
        ValueError: the page has no marks.
    """
    text = replaced(page, BEGIN, END, [*tables(report), _how(report)])
    from benchmarks.web._picture import draw  # noqa: PLC0415 - matplotlib is slow to import

    page.write_text(text)
    draw(report, page.with_name(PICTURE))


def _ratio_tables(report: dict[str, Any]) -> list[str]:
    pools = report["settings"]["pools"]
    peers = [pool for pool in pools if pool not in OURS]
    found = []
    for ours in OURS:
        if ours not in pools or not peers:
            continue
        lines = [_line([ours, *(f"to {peer}" for peer in peers)]), "|---" * (len(peers) + 1) + "|"]
        for test, title in report["tests"].items():
            for what, ratio in (("requests/s", rate_ratio), ("CPU", cpu_ratio)):
                cells = [_cell(ratio(report["samples"], test, ours, peer)) for peer in peers]
                if any(cells):
                    lines.append(_line([f"{title}: {what}", *cells]))
        found.append("\n".join(lines))
    return found


def _cell(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['p25']:.2f}..{ratio['p75']:.2f})"


def _figures(report: dict[str, Any]) -> str:
    heads = ["test", "pool", "requests/s (quartiles)", "p50", "p99", "CPU a request"]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    for test, title in report["tests"].items():
        rates = report["samples"].get(f"{test}-rate", {})
        for number, pool in enumerate(sorted(rates, key=lambda pool: -median(rates[pool]))):
            values = [report["samples"][f"{test}-{what}"][pool] for what in ("p50", "p99", "cpu")]
            p50, p99, cpu = map(median, values)
            rate = spread(rates[pool])
            assert rate is not None, "bug: a pool has a rate in each round"
            lines.append(
                _line(
                    [
                        "" if number else title,
                        pool,
                        f"{rate['median']:,.0f} ({rate['p25']:,.0f}..{rate['p75']:,.0f})",
                        f"{p50:.1f} ms",
                        f"{p99:.1f} ms",
                        f"{cpu:,.0f} µs",
                    ]
                )
            )
    return "\n".join(lines)


def _how(report: dict[str, Any]) -> str:
    settings = report["settings"]
    how = (
        f"Medians of {settings['rounds']} rounds of {settings['seconds']} s,"
        f" {settings['size']} connections, {settings['clients']} clients. Measured on: "
    )
    return how + ", ".join(f"{name} {value}" for name, value in report["facts"].items()) + "."


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
