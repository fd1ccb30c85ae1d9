"""The picture: requests a second of each pool, in one panel for each test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks._numbers import spread
from benchmarks.web._page import OURS

OURS_COLOUR, COLOUR = "#1f5fa8", "#c3c9d2"


def draw(report: dict[str, Any], file: Path) -> None:
    """Write the picture as PNG or SVG, by the file's suffix."""
    tests = report["tests"]
    picture = Figure(figsize=(8, 0.9 + 1.9 * len(tests)), layout="constrained", facecolor="white")
    panels = picture.subplots(len(tests), 1, squeeze=False)[:, 0]
    pools = report["settings"]["pools"]
    for axes, (test, title) in zip(panels, tests.items(), strict=True):
        rates = report["samples"].get(f"{test}-rate", {})
        _panel(axes, title, {pool: rates[pool] for pool in pools if pool in rates})
    picture.suptitle(
        "Web requests a second (median of rounds; whiskers: quartiles)",
        fontsize=12,
        fontweight="bold",
    )
    facts = report["facts"]
    picture.supxlabel(
        f"{facts['cpu']}; {facts['python']}; PostgreSQL {facts['postgresql']}",
        fontsize=8,
        color="#555",
    )
    picture.savefig(file, dpi=150)


def _panel(axes: Axes, title: str, rates: dict[str, list[float]]) -> None:
    spreads = {pool: found for pool, values in rates.items() if (found := spread(values))}
    middles = [each["median"] for each in spreads.values()]
    axes.barh(
        list(spreads),
        middles,
        xerr=[
            [each["median"] - each["p25"] for each in spreads.values()],
            [each["p75"] - each["median"] for each in spreads.values()],
        ],
        color=[OURS_COLOUR if pool in OURS else COLOUR for pool in spreads],
        error_kw={"ecolor": "#444", "elinewidth": 1, "capsize": 2},
        height=0.7,
    )
    for number, (pool, each) in enumerate(spreads.items()):
        axes.annotate(
            f" {each['median']:,.0f}",
            (each["p75"], number),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight="bold" if pool in OURS else "normal",
        )
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
