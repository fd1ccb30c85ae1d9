"""The demo's display: a live table on a terminal, plain lines elsewhere.

A screen gets samples and texts, and decides only their layout.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asyncpool.cli._meter import Sample

ROWS = 12
"""Rows of the live table, one a second."""


COLUMNS = {
    "time": 6,
    "in use": 6,
    "idle": 5,
    "opening": 7,
    "waiting": 7,
    "transfers/s": 11,
    "p50 ms": 8,
    "p99 ms": 8,
    "errors": 6,
    "retries": 7,
}
"""The table's columns and their widths; p50 and p99 are waits for a connection."""


def cells(sample: Sample) -> list[str]:
    """Format a sample as one text for each column."""
    return [
        f"{sample.second} s",
        str(sample.in_use),
        str(sample.idle),
        str(sample.opening),
        str(sample.waiting),
        f"{sample.rate:,.0f}",
        milliseconds(sample.p50),
        milliseconds(sample.p99),
        str(sample.errors),
        str(sample.retries),
    ]


def milliseconds(seconds: float | None) -> str:
    """Format seconds as milliseconds, without the unit; None is a dash."""
    return "-" if seconds is None else f"{seconds * 1000:,.1f}"


class Screen(Protocol):
    """The display of a run; active inside its `with` block."""

    interval: float
    """Seconds from one sample to the next."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...

    def show(self, sample: Sample) -> None:
        """Show the current state."""

    def note(self, at: float, text: str, style: str = "") -> None:
        """Show an event that happened `at` seconds after the start."""


def print_line(console: Console, head: str, text: str, style: str = "") -> None:
    """Print a line of a report, with a heading; a terminal folds it."""
    if not is_live(console):
        console.print(Text(f"{head:<11}{text}"), soft_wrap=True)
        return
    line = Table.grid()
    line.add_column(width=11)
    line.add_column(overflow="fold")
    line.add_row(Text(head, "bold"), Text(text, style))
    console.print(line)


def is_live(console: Console) -> bool:
    """Whether the output is a terminal on which lines can be overwritten."""
    return console.file.isatty() and not console.is_dumb_terminal


def screen_for(console: Console, seconds: float) -> Screen:
    """Return a live table for a terminal, else plain lines."""
    return LiveScreen(console, seconds) if is_live(console) else PlainScreen(console)


class PlainScreen:
    """One line a second, for pipes and logs."""

    interval = 1.0

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        self._line(list(COLUMNS))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Do nothing."""

    def show(self, sample: Sample) -> None:
        """Print a row of the table."""
        self._line(cells(sample))

    def note(self, at: float, text: str, style: str = "") -> None:
        """Print the event on a line of its own."""
        self._console.print(Text(f"{at:.1f} s: {text}"), soft_wrap=True)

    def _line(self, texts: list[str]) -> None:
        padded = (text.rjust(width) for text, width in zip(texts, COLUMNS.values(), strict=True))
        self._console.print(Text(" ".join(padded)), soft_wrap=True)


class LiveScreen:
    """A table that grows by one row a second and updates its last row."""

    interval = 0.25

    def __init__(self, console: Console, seconds: float) -> None:
        self._seconds = seconds
        self._rows: deque[Sample] = deque(maxlen=ROWS)
        self._notes: list[Text] = []
        # The caller of `show` and `note` repaints, so no refresh thread is needed.
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            self._paint()
        finally:
            self._live.stop()

    def show(self, sample: Sample) -> None:
        """Update the last row, or add a row when its second is over."""
        if self._rows and self._rows[-1].second == sample.second:
            self._rows.pop()
        self._rows.append(sample)
        self._paint()

    def note(self, at: float, text: str, style: str = "") -> None:
        """Add the event below the table."""
        self._notes.append(Text.assemble((f"{at:5.1f} s  ", "dim"), (text, style)))
        self._paint()

    def _paint(self) -> None:
        self._live.update(Group(self._progress(), self._table(), *self._notes), refresh=True)

    def _progress(self) -> RenderableType:
        at = self._rows[-1].at if self._rows else 0.0
        line = Table.grid(padding=(0, 2))
        line.add_row(
            ProgressBar(total=self._seconds, completed=min(at, self._seconds), width=50),
            f"{min(at, self._seconds):.1f} of {self._seconds:g} s",
        )
        return line

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
        for name, width in COLUMNS.items():
            table.add_column(escape(name), justify="right", min_width=min(width, 6), no_wrap=True)
        for sample in self._rows:
            texts = [Text(text) for text in cells(sample)]
            texts[5].stylize("green" if sample.rate else "red")
            if sample.errors:
                texts[8].stylize("yellow")
            table.add_row(*texts, style="bold" if sample is self._rows[-1] else "dim")
        return table
