"""`asyncpool top`: show in a terminal the live snapshots of an inspector."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

ANSWER_TIMEOUT = 10.0
"""Seconds to wait for data from the app."""
COLOURS = {
    "idle": "green",
    "leased": "blue",
    "opening": "magenta",
    "cleaning": "yellow",
    "closing": "bright_black",
}
OLD = 10.0
"""Seconds after which a lease is shown in red."""
HEIGHTS = " ▁▂▃▄▅▆▇█"
WIDTH = 60
"""The number of timeline samples shown."""


class NoInspector(Exception):
    """No snapshot can be read; the message says why."""


def top(
    url: str, headers: list[str], *, once: bool, as_json: bool, console: Console | None = None
) -> int:
    """Show snapshots until Ctrl-C, or one snapshot; return the exit status."""
    console = console or Console()
    try:
        open_path = _opener(url, headers)
        if once or not (as_json or console.is_terminal):
            snapshot = _read(open_path, "snapshot")
            if as_json:
                typer.echo(json.dumps(snapshot))
            else:
                console.print(frame(snapshot))
        elif as_json:
            for snapshot in _follow(open_path):
                typer.echo(json.dumps(snapshot))
        else:
            _show(_follow(open_path), console)
    except NoInspector as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def frame(snapshot: dict[str, Any]) -> RenderableType:
    """Render one snapshot."""
    return (
        Group(*(_panel(pool) for pool in snapshot["pools"]))
        if snapshot["pools"]
        else Text("no pool")
    )


def _show(found: Iterator[dict[str, Any]], console: Console) -> None:
    timelines: dict[str, deque[list[float]]] = {}
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for snapshot in found:
            for pool in snapshot["pools"]:
                kept = timelines.setdefault(pool["name"], deque(maxlen=WIDTH))
                if snapshot["whole"]:
                    kept.clear()
                kept.extend(pool["timeline"])
                pool["timeline"] = list(kept)
            live.update(frame(snapshot), refresh=True)


def _opener(url: str, headers: list[str]) -> Callable[[str], Any]:
    """Return a function that opens a path of the inspector at `url`.

    Raises:
        NoInspector: the address or a header is malformed.
    """
    address = url if "://" in url else f"http://{url}"
    place = re.sub("://.*@", "://***@", address)
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises if the port is no number
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        msg = f"not an http or https address: {place}"
        raise NoInspector(msg)
    if "@" in parts.netloc:
        msg = f"{place}: pass the password with --header 'Authorization: Basic ...'"
        raise NoInspector(msg)
    given = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not (name.strip() and colon):
            msg = "a header must be NAME: VALUE; yours is not shown here, since it may be a secret"
            raise NoInspector(msg)
        given[name.strip()] = value.strip()

    def open_path(path: str) -> Any:
        full = f"{address.rstrip('/')}/{path}"
        try:
            request = Request(full, headers=given)  # noqa: S310 - the scheme was checked
            return urlopen(request, timeout=ANSWER_TIMEOUT)  # noqa: S310
        except HTTPError as error:
            with error:
                if error.code in (401, 403):
                    msg = f"{place}: {error.code}, not allowed: pass credentials with --header"
                else:
                    msg = f"{place}: {error.code} {error.reason}: is an inspector mounted there?"
            raise NoInspector(msg) from None
        except (OSError, HTTPException, ValueError) as error:
            why = error.reason if isinstance(error, URLError) else error
            msg = f"{place}: {why}"
            raise NoInspector(msg) from None

    return open_path


def _read(open_path: Callable[[str], Any], path: str) -> dict[str, Any]:
    with open_path(path) as answer:
        return _checked(answer.read())


def _follow(open_path: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
    """Yield each snapshot of the feed; when the stream ends, open it again."""
    while True:
        with open_path("events") as answer:
            if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                _checked(b"")
            try:
                for line in answer:
                    if line.startswith(b"data: "):
                        yield _checked(line.removeprefix(b"data: "))
            except (OSError, HTTPException) as error:
                msg = f"the connection to the app is lost: {error}"
                raise NoInspector(msg) from None
        time.sleep(0.2)


def _checked(body: bytes) -> dict[str, Any]:
    try:
        snapshot = json.loads(body)
        if snapshot["asyncpool"] == 1 and isinstance(snapshot["pools"], list):
            return dict(snapshot)
    except (ValueError, KeyError, TypeError):
        pass
    msg = "no inspector of asyncpool at this address: give the address of its page"
    raise NoInspector(msg)


def _panel(pool: dict[str, Any]) -> Panel:
    stats = pool["stats"]
    parts: list[RenderableType] = [_cells(pool), _numbers(stats)]
    if pool["timeline"]:
        parts.append(_timeline(pool["timeline"], stats))
    if pool["leases"]:
        parts.append(_leases(pool["leases"][:12]))
    if pool["waiters"]:
        first = pool["waiters"][0]
        text = f"{stats['waiting']} waiting, the first for {_span(first['age'])}: {first['task']}"
        parts.append(Text(_plain(text), "red"))
    parts += [Text(_plain(f"- {each}"), "yellow") for each in [*pool["doing"], *pool["advice"]]]
    for event in pool["events"][:5]:
        text = f"{_span(event['age'])} ago: {event['kind']}: {event['text'].splitlines()[0]}"
        parts.append(Text(_plain(text), "red" if event["level"] == "warning" else "dim"))
    most = stats["max_size"] or "unlimited"
    title = f"{_plain(pool['name'])}  {stats['size']} of {stats['min_size']} to {most}"
    return Panel(Group(*parts), title=Text(title), title_align="left")


def _cells(pool: dict[str, Any]) -> Text:
    """Draw a block for each connection."""
    text = Text()
    for each in pool["connections"]:
        old = each["lease"] is not None and each["lease"]["age"] > OLD
        text.append("■ ", "red" if old else COLOURS.get(each["state"], ""))
    for state, colour in COLOURS.items():
        if pool["stats"][state]:
            text.append(f" {pool['stats'][state]} {state}", colour)
    return text


def _numbers(stats: dict[str, Any]) -> Text:
    wait, use = stats["wait"], stats["use"]
    return Text(
        f"requests {stats['requests']}, queued {stats['requests_queued']},"
        f" failed {stats['requests_failed']}, cancelled {stats['requests_cancelled']}"
        f" | wait p50 {_span(wait['p50'])} p99 {_span(wait['p99'])}"
        f" | use p50 {_span(use['p50'])} p99 {_span(use['p99'])}"
        f" | connects {stats['connects']}, failed {stats['connects_failed']}, lost {stats['lost']}"
    )


def _timeline(samples: list[list[float]], stats: dict[str, Any]) -> Text:
    last = samples[-WIDTH:]
    text = Text("leased ")
    text.append(_spark([each[2] for each in last], stats["max_size"]), "blue")
    text.append("  waiting ")
    text.append(_spark([each[3] for each in last], 0), "red")
    return text


def _spark(values: list[float], least: float) -> str:
    most = max([least, 1, *values])
    return "".join(HEIGHTS[round(value / most * (len(HEIGHTS) - 1))] for value in values)


def _leases(found: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    for name, share in (
        ("leased for", 0),
        ("holder", 3),
        ("last statement", 3),
        ("borrowed at", 3),
    ):
        table.add_column(name, ratio=share or None, no_wrap=True, overflow="ellipsis")
    for lease in found:
        statement = lease["last_sql"] or lease["transaction"]
        cells = (_span(lease["age"]), lease["holder"], statement, lease["borrowed_at"] or "?")
        colour = "red" if lease["age"] > OLD else ""
        table.add_row(*(Text(_plain(cell), colour) for cell in cells))
    return table


def _span(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _plain(text: str) -> str:
    """Replace control characters, since task names may hold escape sequences."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)
