"""The files around the code: workflows, templates, and the CHANGELOG's sections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from asyncpool import __version__

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def test_the_changelog_has_this_version_below_an_unreleased_section() -> None:
    """The release workflow asks for the version with a date."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^## (.*)$", text, re.MULTILINE)[:2]
    assert first == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d", second)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_write_nothing_and_ends_in_time(path: Path) -> None:
    """Its token reads the contents, and each job has a time limit."""
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]


def test_only_the_upload_has_the_identity_that_the_index_trusts() -> None:
    """It runs no code of the project, needs a tag, and an environment with reviewers."""
    workflow = read(GITHUB / "workflows" / "release.yml")
    on = workflow[True]  # YAML reads the key `on` as a boolean
    assert list(on) == ["push"]
    assert list(on["push"]) == ["tags"]
    jobs = workflow["jobs"]
    trusted = [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})]
    assert trusted == ["publish"]
    assert jobs["publish"]["environment"] == "pypi"
    assert all("run" not in step for step in jobs["publish"]["steps"])


def test_the_servers_of_the_ci_are_those_of_the_versions_page() -> None:
    """Each supported version of PostgreSQL is tried; the files that are run exist."""
    job = read(GITHUB / "workflows" / "ci.yml")["jobs"]["servers"]
    versions = job["strategy"]["matrix"]["postgres"]
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    assert f"| PostgreSQL | {versions[0]} to {versions[-1]} |" in page
    assert [int(each) for each in versions] == list(range(int(versions[0]), int(versions[-1]) + 1))
    files = re.findall(r"test_\w+\.py", job["steps"][-1]["run"])
    assert all((ROOT / "tests" / "postgres" / file).is_file() for file in files)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_has_an_id_and_a_label_for_each_field(name: str) -> None:
    """A form without them is not shown."""
    form = read(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert form["name"]
    assert form["description"]
    fields = [each for each in form["body"] if each["type"] != "markdown"]
    assert len({each["id"] for each in fields}) == len(fields)
    assert all(each["attributes"]["label"] for each in fields)


def test_dependencies_are_watched_where_they_are_named() -> None:
    """In the workflows and in pyproject.toml."""
    updates = read(GITHUB / "dependabot.yml")["updates"]
    assert {each["package-ecosystem"] for each in updates} == {"github-actions", "pip"}


def test_the_list_of_unnoticed_changes_names_what_exists() -> None:
    """The modules of the core, and functions in them."""
    rows = (ROOT / "tests" / "mutation.md").read_text(encoding="utf-8").splitlines()
    places = [place for row in rows if row.startswith("| `") for place in row.split("|")[1:2]]
    names = re.findall(r"`(\w+)(?:\.(\w+))?`", " ".join(places))
    assert len(names) > 30
    for module, function in names:
        code = (ROOT / "asyncpool" / "_core" / f"{module}.py").read_text(encoding="utf-8")
        assert not function or re.search(rf"def {function}\(", code), f"{module}.{function}"
