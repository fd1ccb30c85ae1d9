"""Which frames of a trace are shown."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import pytest

from asyncpool._core.stacks import PACKAGE, Trace, caller, capture, lines

APP = "/srv/shop/orders.py"
INSTALLED_APP = "/venv/lib/python3.12/site-packages/shop/orders.py"
FASTAPI = "/venv/lib/python3.12/site-packages/fastapi/dependencies/utils.py"
SYSTEM_FASTAPI = f"{contextlib.__file__.removesuffix('contextlib.py')}site-packages/fastapi/x.py"
POOL = f"{PACKAGE}integrations/fastapi.py"


def called(*files: str, innermost: Any) -> Any:
    """Call a function through functions of these files, the innermost first."""
    for file in files:
        names: dict[str, Any] = {"inner": innermost}
        exec(compile("def step(): return inner()", file, "exec"), names)  # noqa: S102
        innermost = names["step"]
    return innermost()


def shown(*files: str) -> list[str]:
    """Return the files of the shown frames; those of the tests are left out."""
    trace: Trace = called(*files, innermost=lambda: capture(sys._getframe(1), len(files)))
    return [each.rpartition(":")[0] for each in lines(trace)]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((POOL, contextlib.__file__, APP, FASTAPI), [APP]),
        ((POOL, FASTAPI, APP, INSTALLED_APP), [APP]),
        ((POOL, SYSTEM_FASTAPI, APP), [APP]),
        ((POOL, FASTAPI, INSTALLED_APP, FASTAPI), [INSTALLED_APP]),
        ((POOL, contextlib.__file__, FASTAPI, SYSTEM_FASTAPI), [FASTAPI, SYSTEM_FASTAPI]),
        ((POOL, contextlib.__file__), []),
        (("/srv/asyncpool_shop/orders.py", APP), ["/srv/asyncpool_shop/orders.py", APP]),
    ],
)
def test_the_frames_of_the_application_are_shown(files: Any, expected: list[str]) -> None:
    """Else those of an installed application; else all but those of the pool."""
    assert shown(*files) == expected


def test_a_warning_names_the_line_of_the_application() -> None:
    """Frames of a framework between the application and the pool are skipped."""
    place = called(POOL, FASTAPI, APP, innermost=lambda: caller("/driver"))
    assert place.startswith(__file__), "the lambda is the innermost frame of the application"
    names: dict[str, Any] = {"caller": caller}
    exec(compile("def call(): return caller('/driver')", POOL, "exec"), names)  # noqa: S102
    assert called(FASTAPI, APP, innermost=names["call"]) == f"{APP}:1 in step"
