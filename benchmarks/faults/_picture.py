"""The picture: failed requests that could have been served, a square per fault and pool."""

from __future__ import annotations

from math import log10
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.faults._peers import OURS

MOST = 3.5
"""The logarithm of the number with the darkest square."""
HUNG = "#3b3f46"
ABSENT = "#f0f1f3"


def draw(report: dict[str, Any], file: Path) -> None:
    """Write the picture."""
    pools, faults = report["pools"], report["faults"]
    picture = Figure(
        figsize=(3.6 + 1.15 * len(pools), 1.4 + 0.3 * len(faults)),
        layout="constrained",
        facecolor="white",
    )
    axes = picture.subplots()
    cells = {(each["fault"], each["pool"]): each for each in report["cells"]}
    for row, fault in enumerate(faults):
        for column, pool in enumerate(pools):
            if cell := cells.get((fault, pool)):
                _square(axes, row, column, cell)
    axes.set_xlim(-0.5, len(pools) - 0.5)
    axes.set_ylim(len(faults) - 0.5, -0.5)
    axes.set_xticks(range(len(pools)), [name.replace("-", "\n", 1) for name in pools])
    axes.set_yticks(range(len(faults)), [title.replace("`", "") for title in faults.values()])
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=8, length=0)
    for label in axes.get_xticklabels():
        label.set_fontweight("bold" if label.get_text() == OURS else "normal")
    axes.spines[:].set_visible(False)
    rate = report["settings"]["rate"]
    picture.suptitle(
        f"Failed requests that could have been served, at {rate:g} a second",
        fontsize=11,
        fontweight="bold",
    )
    facts = report["facts"]
    picture.supxlabel(
        f"{facts['cpu']}; {facts['python']}; PostgreSQL {facts.get('postgresql', '')}",
        fontsize=7,
        color="#555",
    )
    picture.savefig(file, dpi=150)


def _square(axes: Axes, row: int, column: int, cell: dict[str, Any]) -> None:
    count = cell["avoidable"]
    share = min(1.0, log10(1 + count) / MOST)
    colour: Any = (1 - 0.25 * share, 0.97 - 0.77 * share, 0.95 - 0.8 * share)
    text = str(count)
    if cell["status"] == "hung":
        colour, text = HUNG, "hung"
    elif cell["status"] != "done":
        colour, text = ABSENT, "-"
    elif not count:
        colour = "#dcefe0"
    axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, color=colour, linewidth=0))
    dark = text == "hung" or share > 0.6
    axes.text(
        column,
        row,
        text,
        ha="center",
        va="center",
        fontsize=8,
        fontweight="bold" if cell["pool"] == OURS else "normal",
        color="white" if dark else "#222",
    )
