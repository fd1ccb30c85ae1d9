"""`asyncpool top`: show in a terminal the live snapshots of an inspector."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.client import HTTPException
from queue import Empty, SimpleQueue
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import typer
from rich.console import Console
from rich.live import Live

from asyncpool.cli._frame import WIDTH, Frame
from asyncpool.cli._keys import Keys

ANSWER_TIMEOUT = 10.0
"""Seconds to wait for data from the app."""
ALIVE = b"data: alive\n"
"""The line of a tick for which the app has made no snapshot."""
TICK = 0.1
"""Seconds between two looks at the keyboard."""


class NoInspector(Exception):
    """No snapshot can be read; the message says why."""


def top(
    url: str, headers: list[str], *, once: bool, as_json: bool, console: Console | None = None
) -> int:
    """Show snapshots until `q` or Ctrl-C, or one snapshot; return the exit status."""
    console = console or Console()
    try:
        open_path = _opener(url, headers)
        if once or not (as_json or console.is_terminal):
            snapshot = _read(open_path, "snapshot")
            if as_json:
                typer.echo(json.dumps(snapshot))
            else:
                console.print(Frame(snapshot, _place(url)))
        elif as_json:
            for snapshot in _follow(open_path):
                typer.echo(json.dumps(snapshot))
        else:
            _show(_follow(open_path), console, _place(url))
    except NoInspector as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def _show(found: Iterator[dict[str, Any]], console: Console, place: str) -> None:
    """Draw each snapshot until `q` is pressed.

    A thread reads the feed, because reading cannot be interrupted by a key.
    """
    timelines: dict[str, deque[list[float]]] = {}
    processes: set[tuple[str, int]] = set()
    arrived: SimpleQueue[dict[str, Any] | BaseException] = SimpleQueue()
    threading.Thread(target=_pass_on, args=(found, arrived), name="feed", daemon=True).start()
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while not keys.pressed("q"):
            try:
                snapshot = arrived.get(timeout=TICK)
            except Empty:
                continue
            if isinstance(snapshot, BaseException):
                raise snapshot
            for pool in snapshot["pools"]:
                kept = timelines.setdefault(pool["name"], deque(maxlen=WIDTH))
                if snapshot["whole"]:
                    kept.clear()
                kept.extend(pool["timeline"])
                pool["timeline"] = list(kept)
            if (process := snapshot.get("process")) is not None:
                processes.add((process["host"], process["pid"]))
            frame = Frame(snapshot, place, live=True, processes=len(processes))
            live.update(frame, refresh=True)


def _pass_on(
    found: Iterator[dict[str, Any]], arrived: SimpleQueue[dict[str, Any] | BaseException]
) -> None:
    try:
        for snapshot in found:
            arrived.put(snapshot)
    except BaseException as error:  # noqa: BLE001 - the main thread raises it
        arrived.put(error)


def _place(url: str) -> str:
    """Return the address with its scheme, and without credentials."""
    return re.sub("://.*@", "://***@", url if "://" in url else f"http://{url}")


def _opener(url: str, headers: list[str]) -> Callable[[str], Any]:
    """Return a function that opens a path of the inspector at `url`.

    Raises:
        NoInspector: the address or a header is malformed.
    """
    address = url if "://" in url else f"http://{url}"
    place = _place(url)
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
                    if line.startswith(b"data: ") and line != ALIVE:
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
