"""Medians and ratios of samples; a ratio is taken in each round, then the median of them."""

from __future__ import annotations

from statistics import median, quantiles
from typing import Any

from benchmarks._pools import OURS, REFERENCE

Samples = dict[str, dict[str, list[float]]]


def spread(values: list[float]) -> dict[str, float] | None:
    """Return the median and quartiles; None: there are no values."""
    if not values:
        return None
    low, middle, high = (
        quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"p25": low, "median": middle, "p75": high}


def ratios(of: list[float], to: list[float]) -> dict[str, float] | None:
    """Return the spread of `of` divided by `to`, round by round."""
    return spread([ours / theirs for ours, theirs in zip(of, to, strict=False) if theirs > 0])


def results(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a record for each figure and pool, with ratios to the reference and to asyncpool."""
    samples: Samples = run.get("samples", {})
    records = []
    for figure in run.get("figures", []):
        pools = samples[figure["key"]]
        compared = figure["unit"] != "ratio"
        for name in sorted(pools, key=lambda name: median(pools[name])):
            values = pools[name]
            records.append(
                {
                    "loop": run["loop"],
                    "figure": figure["key"],
                    "title": figure["title"],
                    "unit": figure["unit"],
                    "pool": name,
                    "samples": values,
                    **(spread(values) or {}),
                    "times_better_than_psycopg_pool": ratios(pools.get(REFERENCE, []), values)
                    if compared
                    else None,
                    "asyncpool_times_better": ratios(values, pools.get(OURS, []))
                    if compared
                    else None,
                }
            )
    return records
