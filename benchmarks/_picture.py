"""The picture: each pool's ratio to psycopg_pool, in one panel for each figure and loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks._pools import OURS, POOLS, REFERENCE

COLOURS = {OURS: "#1f5fa8", REFERENCE: "#8a8f98"}
OTHERS = "#c3c9d2"
REPEATS = {"handover-few": "handover-many", "select-transaction": "transaction"}
"""Figures that are not drawn if the similar figure on the right is drawn."""


def draw(report: dict[str, Any], file: Path) -> None:
    """Write the picture as PNG or SVG, by the file's suffix; without ratios, write nothing."""
    records = [
        record
        for record in report["results"]
        if record["pool"] in POOLS and record["times_better_than_psycopg_pool"]
    ]
    if not records:
        return
    found = list(dict.fromkeys(record["figure"] for record in records))
    keys = [key for key in found if REPEATS.get(key) not in found and not key.endswith("-cpu")]
    loops = list(dict.fromkeys(record["loop"] for record in records))
    picture = Figure(
        figsize=(6.2 * len(loops), 0.9 + 1.75 * len(keys)), layout="constrained", facecolor="white"
    )
    panels = picture.subplots(len(keys), len(loops), squeeze=False)
    for row, key in enumerate(keys):
        for column, loop in enumerate(loops):
            some = [each for each in records if (each["figure"], each["loop"]) == (key, loop)]
            _panel(panels[row][column], some, loop)
        right = max(axes.get_xlim()[1] for axes in panels[row])
        for axes in panels[row]:
            axes.set_xlim(0, right)
    picture.suptitle(
        "Times better than psycopg_pool (median of paired rounds; whiskers: quartiles)",
        fontsize=12,
        fontweight="bold",
    )
    facts = report["facts"]
    picture.supxlabel(
        f"{facts['cpu']}; {facts['python']}; PostgreSQL {facts.get('postgresql', '')}",
        fontsize=8,
        color="#555",
    )
    picture.savefig(file, dpi=90)


def _panel(axes: Axes, records: list[dict[str, Any]], loop: str) -> None:
    order = {name: number for number, name in enumerate(POOLS)}
    records = sorted(records, key=lambda record: order[record["pool"]])
    names = [record["pool"] for record in records]
    ratios = [record["times_better_than_psycopg_pool"] for record in records]
    middles = [ratio["median"] for ratio in ratios]
    errors = [
        [ratio["median"] - ratio["p25"] for ratio in ratios],
        [ratio["p75"] - ratio["median"] for ratio in ratios],
    ]
    axes.barh(
        names,
        middles,
        xerr=errors,
        color=[COLOURS.get(name, OTHERS) for name in names],
        error_kw={"ecolor": "#444", "elinewidth": 1, "capsize": 2},
        height=0.7,
    )
    for number, ratio in enumerate(ratios):
        axes.annotate(
            f" {ratio['median']:#.2g}x" if ratio["median"] < 10 else f" {ratio['median']:.0f}x",
            (max(ratio["p75"], ratio["median"]), number),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight="bold" if names[number] == OURS else "normal",
        )
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.axvline(1, color="#8a8f98", linewidth=0.8, linestyle=":")
    axes.set_title(f"{records[0]['title']} ({loop})" if records else "", fontsize=9, loc="left")
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
