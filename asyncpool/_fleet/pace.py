"""How often a member looks, and other numbers."""

from __future__ import annotations

INTERVAL = 1.0
"""Seconds between looks, less up to a tenth, so that members do not look together."""
PAUSES = 0.1, 0.5
"""The shortest and the longest time between looks while requests wait for room."""
BLIND_INTERVAL = 30.0
"""Seconds between looks where they show nothing."""
RECENT = 5.0
"""Seconds since its last use after which others may have an idle connection."""
RETRY = 1.0
"""Seconds after which a connection to look on is asked for again."""
FAILURES = 3
"""Failed statements in a row after which the member goes on without looks."""
UNLIMITED = 2**30
"""The limit of a member that sees nobody."""
