"""The picture: goodput by load, and answers in time during a spike and a brown-out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.overload._figures import BIN
from benchmarks.overload._rows import CANCEL_LOADS, LOADS

COLOURS = {
    "asyncpool-refuse": "#1f5fa8",
    "asyncpool-wait": "#6fa3dc",
    "psycopg_pool": "#8a8f98",
    "asyncpg": "#c98a2b",
    "sqlalchemy": "#a04a4a",
}
Cells = dict[tuple[str, str], dict[str, Any]]


def draw(report: dict[str, Any], file: Path) -> None:
    """Write the picture as PNG or SVG, by the file's suffix."""
    cells: Cells = {
        (cell["row"], cell["pool"]): cell for cell in report["cells"] if not cell["reason"]
    }
    picture = Figure(figsize=(10, 7.2), layout="constrained", facecolor="white")
    (timeouts, cancels), (spike, slow) = picture.subplots(2, 2)
    peers = report["peers"]
    _loads(timeouts, cells, peers, "load", LOADS)
    timeouts.set_title("Goodput by load; callers set a time limit", fontsize=9, loc="left")
    _loads(cancels, cells, peers, "cancel", CANCEL_LOADS)
    cancels.set_title("Goodput by load; callers are cancelled", fontsize=9, loc="left")
    _curves(spike, cells, peers, "spike")
    spike.set_title("Answered in time: load 0.5, from 1 s to 3 s load 5", fontsize=9, loc="left")
    _curves(slow, cells, peers, "brown-out")
    half = report["settings"]["seconds"] / 2
    slow.set_title(
        f"Answered in time: load 0.9, from {half:g} s a slower server", fontsize=9, loc="left"
    )
    for axes in (timeouts, cancels, spike, slow):
        axes.set_ylim(-0.03, 1.13)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = timeouts.get_legend_handles_labels()
    if handles:
        picture.legend(
            handles, names, loc="outside upper center", ncols=5, fontsize=8, frameon=False
        )
    facts = report["facts"]
    picture.supxlabel(
        f"{facts['cpu']}; {facts['python']}; PostgreSQL {facts['postgresql']}",
        fontsize=7,
        color="#555",
    )
    picture.savefig(file, dpi=150)


def _loads(axes: Axes, cells: Cells, peers: list[str], kind: str, loads: tuple[float, ...]) -> None:
    for peer in peers:
        points = [(load, cells.get((f"{kind}-{load:g}", peer))) for load in loads]
        some = [(load, cell["goodput"]) for load, cell in points if cell]
        _line(axes, peer, [load for load, _ in some], [share for _, share in some])
    axes.set_xscale("log")
    axes.set_xticks(LOADS, [f"{load:g}" for load in LOADS])
    axes.minorticks_off()
    axes.set_xlabel("load in capacities", fontsize=8)


def _curves(axes: Axes, cells: Cells, peers: list[str], row: str) -> None:
    for peer in peers:
        if cell := cells.get((row, peer)):
            instants = [BIN * (number + 0.5) for number in range(len(cell["curve"]))]
            _line(axes, peer, instants, cell["curve"])
    axes.set_xlabel("seconds", fontsize=8)


def _line(axes: Axes, peer: str, across: list[float], up: list[float]) -> None:
    ours = peer.startswith("asyncpool")
    axes.plot(
        across,
        up,
        label=peer,
        color=COLOURS[peer],
        linewidth=2.0 if ours else 1.3,
        marker="o",
        markersize=3,
        zorder=3 if ours else 2,
    )
