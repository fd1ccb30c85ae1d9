"""A read-only page that shows pools live, to mount in your app."""

from __future__ import annotations

from ._app import Inspector

__all__ = ["Inspector"]
