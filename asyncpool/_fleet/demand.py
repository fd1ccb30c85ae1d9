"""How many connections a pool needs: those in use, those used lately, and those waited for."""

from __future__ import annotations

from typing import Any

from asyncpool._core.budget import SupportsLedger
from asyncpool._core.entry import Entry, State


def needed(ledger: SupportsLedger, latest: float) -> int:
    """Return how many connections a pool needs.

    Args:
        ledger: the pool's.
        latest: the instant since which an idle connection must have been used to be needed.
    """
    return ledger.shortfall() + sum(_is_needed(entry, latest) for entry in list(ledger.entries))


def _is_needed(entry: Entry[Any], latest: float) -> bool:
    if entry.state is State.OPENING or entry.state is State.LEASED:
        return True
    return entry.state is not State.CLOSING and entry.uses > 0 and entry.used_at >= latest
