"""Check that each public name and member has an entry in the reference of a built site.

    python docs/site/anchors.py build/site

It prints the names without an entry, and exits with 1 if there are any.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpool
from asyncpool._blocks.hints import Hint

MODULES = [
    *(f"asyncpool.integrations.{name}" for name in ("starlette", "fastapi", "asgi", "aiohttp")),
    *(f"asyncpool.integrations.{name}" for name in ("litestar", "sqlalchemy", "sentry")),
    "asyncpool.integrations.own_writes",
    *("asyncpool.metrics.prometheus", "asyncpool.metrics.otel"),
    *("asyncpool.inspector", "asyncpool.inspector.aiohttp", "asyncpool.testing"),
    "asyncpool.compat",
]


def expected() -> Iterator[str]:
    """Yield each public name of the package and its annexes, and each public member of a class."""
    for module in (asyncpool, *map(importlib.import_module, MODULES)):
        for name in module.__all__:
            found = getattr(module, name)
            place = module.__name__
            if getattr(found, "__module__", "") == "asyncpool.errors":
                place = "asyncpool.errors"
            yield f"{place}.{name}"
            # The members in `compat` are those of the pools and errors that it derives from.
            if inspect.isclass(found) and place != "asyncpool.compat":
                yield from (f"{place}.{name}.{member}" for member in members(found))


def members(kind: type) -> list[str]:
    """Return the public attributes of a class that are defined by classes of asyncpool."""
    return [
        name
        for name in dir(kind)
        if not name.startswith("_")
        and any(
            base.__module__.startswith("asyncpool")
            and name in vars(base)
            and not isinstance(vars(base)[name], Hint)
            for base in kind.__mro__
        )
    ]


def main() -> int:
    """Compare the names with the site; return the exit status."""
    pages = Path(sys.argv[1], "reference").glob("*.html")
    anchors = {name for page in pages for name in re.findall(r'id="([\w.]+)"', page.read_text())}
    missing = sorted(set(expected()) - anchors)
    print("\n".join(missing) or "each public name has its entry")
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
