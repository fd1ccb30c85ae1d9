"""docs/alerts.yml: its syntax, and that its expressions ask for metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from asyncpool import AsyncConnectionPool
from asyncpool.metrics.prometheus import PoolCollector

DOCS = Path(__file__).parents[2] / "docs"
ALERTS = DOCS / "alerts.yml"
OF_PROMETHEUS = {"job", "instance"}
"""Labels that a scrape adds."""


def rules() -> list[dict[str, Any]]:
    """Return the rules in the file."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


async def test_the_rules_use_existing_metrics_labels_and_states(dsn: str) -> None:
    """A rule with a name that no scrape has would never fire."""
    registry = CollectorRegistry()
    async with AsyncConnectionPool(dsn, min_size=1, name="orders") as pool:
        PoolCollector(pool, registry=registry)
        text = generate_latest(registry).decode()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    names = {each.name for each in samples}
    labels = {label for each in samples for label in each.labels} | OF_PROMETHEUS
    states = {each.labels["state"] for each in samples if "state" in each.labels}
    for rule in rules():
        query = rule["expr"]
        asked = set(re.findall(r"\basyncpool_\w+", query))
        assert asked, query
        assert asked <= names, query
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert {each.strip() for each in group.split(",")} <= labels, query
        for label, _, values in re.findall(r'(\w+)(=~|=)"([^"]*)"', query):
            assert label == "state"
            assert set(values.split("|")) <= states, query


def test_each_rule_is_complete_and_explained() -> None:
    """A rule has a severity, a summary and a line on the page of metrics."""
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} <= rule["annotations"].keys()
        assert f"`{rule['alert']}`" in page
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert re.fullmatch(r"\d+m", rule.get("for", "0m"))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")
def test_promtool_accepts_the_rules() -> None:
    """promtool parses the expressions and the templates as Prometheus does."""
    done = subprocess.run(
        [shutil.which("promtool") or "promtool", "check", "rules", str(ALERTS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
