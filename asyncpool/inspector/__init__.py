"""A read-only page that shows pools at work, to be mounted in one's own app."""

from __future__ import annotations

from ._app import Inspector

__all__ = ["Inspector"]
