"""The page's files, and the headers of all responses."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/leases.js": ("leases.js", "text/javascript; charset=utf-8"),
    "/text.js": ("text.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The headers of every response: no outside resources, no caching."""
STREAM = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


def asset(path: str) -> tuple[bytes, str] | None:
    """Return a file of the page and its type; None: no file has this path."""
    if path not in FILES:
        return None
    name, kind = FILES[path]
    return Path(__file__).with_name(name).read_bytes(), kind
