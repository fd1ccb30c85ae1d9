"""The drawing of one snapshot of an inspector, for `asyncpool top`, in 80 columns or more.

A line that may be long is folded, or loses the end that matters less. What needs attention comes
first; the list of leases is shortened on a screen of few lines.
"""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

COLOURS = {
    "idle": "green",
    "leased": "blue",
    "opening": "magenta",
    "cleaning": "yellow",
    "closing": "bright_black",
}
STATES = {"leased": "in use", "active": "query running"}
"""The names of states that are not shown as they are in the feed."""
BADGES = {
    "ok": ("OK", "bold white on green"),
    "degraded": ("DEGRADED", "bold black on yellow"),
    "down": ("DOWN", "bold white on red"),
    "not open": ("NOT OPEN", "bold"),
}
"""The badge of each status of a pool's health, as on the page."""
OLD = 10.0
"""Seconds after which a lease is shown in red."""
HEIGHTS = " ▁▂▃▄▅▆▇█"
WIDTH = 30
"""The number of timeline samples shown."""
LEASES = 12
"""The number of leases shown where the height is not limited."""
OTHER_LINES = 17
"""Lines that a pool needs besides its leases, on a screen."""


class Frame:
    """One snapshot, drawn.

    Args:
        snapshot: what the inspector has sent, with the timelines so far.
        place: the inspector's address, without credentials.
        live: whether the frame is one of many, which `q` ends.
        processes: how many processes of the app have answered so far.
    """

    def __init__(
        self,
        snapshot: dict[str, Any],
        place: str = "",
        *,
        live: bool = False,
        processes: int = 1,
    ) -> None:
        self._snapshot = snapshot
        self._place = place
        self._live = live
        self._processes = processes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """See rich."""
        pools = self._snapshot["pools"]
        leases = LEASES
        if options.height is not None and pools:
            leases = max(1, (options.height // len(pools) - OTHER_LINES) // 2)
        # Without a height of its own, a panel would fill the screen and hide the next one.
        free = options.update(height=None)
        width = options.max_width - 4
        parts: list[RenderableType] = [self._header()]
        parts += [_panel(pool, leases, width) for pool in pools] or [Text("no pool")]
        yield from console.render(Group(*parts), free)

    def _header(self) -> RenderableType:
        pools = self._snapshot["pools"]
        leased = sum(pool["stats"]["leased"] for pool in pools)
        waiting = sum(pool["stats"]["waiting"] for pool in pools)
        at = time.strftime("%H:%M:%S", time.localtime(self._snapshot.get("at")))
        right = Text(f"{leased} in use, queue {waiting}  {at}")
        if self._live:
            right.append("  q quits", "bold")
        line = Table.grid(expand=True, padding=(0, 1))
        line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        line.add_column(no_wrap=True, justify="right")
        line.add_row(Text(_plain(f"asyncpool top {self._place}"), "bold"), right)
        if (process := self._snapshot.get("process")) is not None:
            which = f"process {process['pid']} on {process['host']}"
            others = self._processes > 1
            line.add_row(
                Text.assemble(
                    (_plain(which), "dim"),
                    (f", one of {self._processes} that have answered" if others else "", "yellow"),
                    (f", up {_span(process['uptime'])}", "dim"),
                ),
                "",
            )
        return line


def _panel(pool: dict[str, Any], leases: int, width: int) -> Panel:
    """Draw a pool: first its state and what needs attention, then who has its connections."""
    stats, health = pool["stats"], pool["health"] or {"status": ""}
    badge, style = BADGES.get(health["status"], ("CHECKING", "bold"))
    parts: list[RenderableType] = []
    if badge in ("DEGRADED", "DOWN"):
        parts.append(Text(_plain(health["reason"]), "red"))
        if health["last_error"]:
            error = " ".join(health["last_error"].split())
            parts.append(Text(_plain(f"last error: {error}"), "red"))
    parts += [_cells(pool)] if pool["connections"] else []
    parts.append(_numbers(pool["minute"]))
    if pool["waiters"]:
        first = pool["waiters"][0]
        text = f"queue {stats['waiting']}, the first waits for {_span(first['age'])}:"
        parts.append(Text(_plain(f"{text} {first['task']}"), "red"))
    if pace := _pace(stats, pool["minute"]):
        parts.append(Text(pace, "red"))
    overload = pool.get("overload", ())
    notes = [*overload, *pool["doing"], *pool["advice"], *_long_leases(pool["leases"])]
    parts += [Text(_plain(f"- {each}"), "yellow") for each in notes]
    if budget := pool.get("budget"):
        parts.append(Text(_plain(f"budget: {budget}"), "dim"))
    if pool["timeline"]:
        parts.append(_timeline(pool["timeline"], stats))
    if pool["leases"]:
        parts.append(_leases(pool["leases"][:leases], width))
        if (more := len(pool["leases"]) - leases) > 0:
            parts.append(Text(f"and {more} more", "dim"))
    for event in pool["events"][:5]:
        text = f"{_span(event['age'])} ago: {event['kind']}: {event['text'].splitlines()[0]}"
        parts.append(Text(_plain(text), "red" if event["level"] == "warning" else "dim"))
    most = stats["max_size"] or "unlimited"
    title = Text.assemble(
        f"{_plain(pool['name'])}  ",
        (f" {badge} ", style),
        f"  {stats['size']} of {stats['min_size']} to {most}",
    )
    return Panel(Group(*parts), title=title, title_align="left")


def _cells(pool: dict[str, Any]) -> Text:
    """Draw a block for each connection."""
    text = Text()
    for each in pool["connections"]:
        old = each["lease"] is not None and each["lease"]["age"] > OLD
        text.append("■ ", "red" if old else COLOURS.get(each["state"], ""))
    for state, colour in COLOURS.items():
        if pool["stats"][state]:
            text.append(f" {pool['stats'][state]} {STATES.get(state, state)}", colour)
    return text


def _numbers(minute: dict[str, Any]) -> Text:
    """Write what the last minute has counted."""
    wait, hold = minute["wait"], minute["hold"]
    return Text(
        f"last {minute['seconds']:.0f} s: requests {minute['requests']},"
        f" queued {minute['requests_queued']}, failed {minute['requests_failed']},"
        f" cancelled {minute['requests_cancelled']}"
        f" | wait time p50 {_span(wait['p50'])} p99 {_span(wait['p99'])}"
        f" | hold time p50 {_span(hold['p50'])} p99 {_span(hold['p99'])}"
        f" | connects {minute['connects']}, failed {minute['connects_failed']},"
        f" lost {minute['lost']}"
    )


def _pace(stats: dict[str, Any], minute: dict[str, Any]) -> str:
    """Write how long requests wait and how many were refused; an older app does not send it."""
    found = []
    if expected := stats.get("expected_wait"):
        found.append(f"expected wait {_span(expected)}")
    if standing := stats.get("standing"):
        found.append(f"queue not empty for {_span(standing)}")
    if refused := minute.get("requests_refused"):
        found.append(f"{refused} refused in the last {minute['seconds']:.0f} s")
    return ", ".join(found)


def _timeline(samples: list[list[float]], stats: dict[str, Any]) -> Text:
    last = samples[-WIDTH:]
    text = Text("in use ")
    text.append(_spark([each[2] for each in last], stats["max_size"]), "blue")
    text.append("  queue ")
    text.append(_spark([each[3] for each in last], 0), "red")
    return text


def _spark(values: list[float], least: float) -> str:
    most = max([least, 1, *values])
    return "".join(HEIGHTS[round(value / most * (len(HEIGHTS) - 1))] for value in values)


def _long_leases(found: list[dict[str, Any]]) -> list[str]:
    """Return a note on the leases that are shown in red, if there are any; the longest is first."""
    if not (number := sum(each["age"] > OLD for each in found)):
        return []
    age, holder = _span(found[0]["age"]), found[0]["holder"]
    if number == 1:
        return [f"1 connection in use for more than {OLD:.0f} s: for {age} by {holder}"]
    return [
        f"{number} connections in use for more than {OLD:.0f} s, the longest for {age} by {holder}"
    ]


def _leases(found: list[dict[str, Any]], width: int) -> Table:
    """Draw two or three lines for each lease: its holder, place, state and last statement."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    room = width - 10
    for lease in found:
        colour = "red" if lease["age"] > OLD else ""
        holder, place = _plain(lease["holder"]), _plain(lease["borrowed_at"] or "?")
        state = STATES.get(lease["transaction"], lease["transaction"])
        if len(holder) + len(place) + len(state) + 4 <= room:
            lines = [f"{holder}  {place}  {state}"]
        else:
            lines = [holder, f"{_short(place, room - len(state) - 2)}  {state}"]
        statement = _plain(" ".join(lease["last_sql"].split()))
        lines.append(statement if len(statement) <= room else f"{statement[: room - 1]}…")
        table.add_row(Text(_span(lease["age"]), colour), Text("\n".join(lines), colour))
    return table


def _short(place: str, room: int) -> str:
    """Shorten a place to its file, line and function, without folders and outer functions."""
    if len(place) > room:
        file, _, function = place.partition(" in ")
        place = f"{file.rpartition('/')[2]} in {function.rpartition('.')[2]}"
    return place if len(place) <= room else f"…{place[1 - room :]}"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _plain(text: str) -> str:
    """Replace control characters, since task names may hold escape sequences."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)
