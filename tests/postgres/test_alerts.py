"""docs/alerts.yml: its syntax, that its metrics exist, and that each rule fires when it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ._scrapes import scrape

DOCS = Path(__file__).parents[2] / "docs"
ALERTS = DOCS / "alerts.yml"
CASES = Path(__file__).with_name("alerts.yml")
OF_PROMETHEUS = {"job", "instance"}
"""Labels that a scrape adds."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool, of Prometheus, is not on the PATH"
)


def rules() -> list[dict[str, Any]]:
    """Return the rules in the file."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments: str, given: str = "") -> None:
    """Run promtool, which must find nothing to criticize."""
    program = shutil.which("promtool")
    assert program is not None
    done = subprocess.run(
        [program, *arguments], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_the_rules_use_existing_metrics_labels_and_values(dsn: str) -> None:
    """A rule with a name that no scrape has would never fire."""
    text = await scrape(dsn)
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    names = {each.name for each in samples}
    labels = {label for each in samples for label in each.labels} | OF_PROMETHEUS
    values = {item for each in samples for item in each.labels.items()}
    for rule in rules():
        query = rule["expr"]
        asked = set(re.findall(r"\basyncpool_\w+", query))
        assert asked, query
        assert asked <= names, query
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
            assert {each.strip() for each in group.split(",")} <= labels, query
        for label, _, wanted in re.findall(r'(\w+)(=~|=)"([^"]*)"', query):
            assert {(label, each) for each in wanted.split("|")} <= values, query


def test_each_rule_is_complete_and_explained() -> None:
    """A rule has a severity, a summary and a line on the page of metrics."""
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} <= rule["annotations"].keys()
        assert f"`{rule['alert']}`" in page
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert re.fullmatch(r"\d+m", rule.get("for", "0m"))


def test_each_rule_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    """promtool passes a case of a rule that does not exist, as it does not fire."""
    cases = yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]
    fires: set[str] = set()
    stays: set[str] = set()
    for case in cases:
        (alert,) = {each["alertname"] for each in case["alert_rule_test"]}
        fired = any(each.get("exp_alerts") for each in case["alert_rule_test"])
        assert case["name"].startswith(f"{alert}: " if fired else f"{alert}, not: ")
        (fires if fired else stays).add(alert)
    assert fires == stays == {rule["alert"] for rule in rules()}


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    """promtool parses the expressions and the templates as Prometheus does."""
    promtool("check", "rules", str(ALERTS))


@needs_promtool
def test_each_rule_fires_in_its_case_and_is_silent_in_the_other() -> None:
    """promtool evaluates the rules over the series of alerts.yml, as Prometheus would."""
    promtool("test", "rules", str(CASES))


@needs_promtool
def test_promtool_accepts_the_recipes_configuration(tmp_path: Path) -> None:
    """With the rules beside it, as the recipe says."""
    page = (DOCS / "recipes" / "alerts.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(# prometheus\.yml\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(block, encoding="utf-8")
    shutil.copy(ALERTS, tmp_path)
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


@needs_promtool
async def test_promtool_accepts_a_scrape(dsn: str) -> None:
    """The names, types and help texts are as Prometheus's conventions say."""
    promtool("check", "metrics", given=await scrape(dsn))
