"""The metadata of the package: its README, URLs, extras and dependency groups."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hatch_build import ProjectLinks, absolute_links

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ADDRESS = "https://code.invalid/us/asyncpool"
RELATIVE = re.compile(r"\]\((?!https?:|#)")


def metadata(**config: str) -> dict[str, Any]:
    """Return the fields that the hook of the build sets."""
    fields: dict[str, Any] = {}
    ProjectLinks(str(ROOT), config).update(fields)
    return fields


@pytest.mark.parametrize("config", [{}, {"repository": ADDRESS}])
def test_the_readme_of_the_package_has_no_relative_link(config: dict[str, str]) -> None:
    """A package index has no files that such a link could lead to."""
    text = metadata(**config)["readme"]["text"]
    assert not RELATIVE.search(text)
    assert text.startswith("# asyncpool\n")


def test_an_address_makes_the_urls_and_the_links() -> None:
    """They lead to the files of this version."""
    fields = metadata(repository=ADDRESS)
    assert fields["urls"]["Repository"] == ADDRESS
    tag = fields["urls"]["Changelog"].removeprefix(f"{ADDRESS}/blob/").removesuffix("/CHANGELOG.md")
    assert re.fullmatch(r"v\d+\.\d+\.\d+", tag)
    assert f"]({ADDRESS}/blob/{tag}/docs/guide.md)" in fields["readme"]["text"]
    assert "![The inspector" in fields["readme"]["text"]


@pytest.mark.parametrize(
    ("given", "linked", "plain"),
    [
        ("the [guide](docs/guide.md#x)", "the [guide](R/blob/v1/docs/guide.md#x)", "the guide"),
        ("[`test_x`](t.py)", "[`test_x`](R/blob/v1/t.py)", "`test_x`"),
        ("![a page](a.png)", "![a page](R/raw/v1/a.png)", ""),
        ("[other](https://x.invalid)", "[other](https://x.invalid)", "[other](https://x.invalid)"),
        ("[below](#below)", "[below](#below)", "[below](#below)"),
        ("`a[0](b)`", "`a[0](b)`", "`a[0](b)`"),
        ("```python\na[0](b)\n```", "```python\na[0](b)\n```", "```python\na[0](b)\n```"),
    ],
)
def test_only_relative_links_change(given: str, linked: str, plain: str) -> None:
    """Links of code, to other sites and within the page stay."""
    assert absolute_links(given, "R", "v1") == linked
    assert absolute_links(given, "", "v1") == plain


def test_each_integration_has_an_extra() -> None:
    """Of the library's name, for `pip install 'psycopg-asyncpool[library]'`."""
    modules = {
        path.stem
        for folder in ("integrations", "metrics")
        for path in (ROOT / "asyncpool" / folder).glob("[a-z]*.py")
    }
    extras = PROJECT["project"]["optional-dependencies"].keys()
    needing_no_library = {"asgi", "own_writes", "prometheus_multiprocess"}
    assert modules - needing_no_library <= extras


def test_what_only_developers_need_is_no_extra() -> None:
    """Dependency groups have it, which are not part of the package."""
    extras = PROJECT["project"]["optional-dependencies"].keys()
    assert not extras & PROJECT["dependency-groups"].keys()
    assert {"bench", "lint", "site"} <= PROJECT["dependency-groups"].keys()
