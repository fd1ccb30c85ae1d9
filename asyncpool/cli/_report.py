"""The doctor's report: a table for terminals, lines for pipes, JSON for programs."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncpool.cli._facts import Plan
from asyncpool.cli._findings import LEVELS, Finding, Level, many, worst
from asyncpool.cli._screen import is_live

STYLES: dict[Level, str] = {
    "ok": "green",
    "note": "cyan",
    "warning": "yellow",
    "problem": "bold red",
}


def print_report(target: str, plan: Plan, findings: list[Finding]) -> None:
    """Print the findings in the order of the checks, with advice, and a summary."""
    console = Console(highlight=False)
    pools = "a pool" if plan.workers == 1 else f"{plan.workers} pools"
    console.print(Text(f"{target}, for {pools} of {plan.max_size}"), soft_wrap=True)
    if is_live(console):
        console.print(_table(findings))
    else:
        for each in findings:
            console.print(Text(f"{each.level:<8} {each.check}: {each.found}"), soft_wrap=True)
            if each.advice:
                console.print(Text(f"{'':<8} -> {each.advice}"), soft_wrap=True)
    console.print(Text(_summary(findings), STYLES[worst(findings)]), soft_wrap=True)


def print_json(target: str, plan: Plan, findings: list[Finding]) -> None:
    """Print the findings as JSON, with their numbers."""
    report = {
        "target": target,
        "max_size": plan.max_size,
        "workers": plan.workers,
        "level": worst(findings),
        "findings": [each.as_dict() for each in findings],
    }
    print(json.dumps(report, indent=2))  # rich's print would fold the lines


def _table(findings: list[Finding]) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=max(map(len, LEVELS)))
    table.add_column(ratio=1, overflow="fold")
    for each in findings:
        said = Text.assemble((each.check.replace("_", " "), "bold"), ": ", each.found)
        table.add_row(Text(each.level, STYLES[each.level]), said)
        if each.advice:
            table.add_row("", Text(f"-> {each.advice}", STYLES[each.level]))
    return table


def _summary(findings: list[Finding]) -> str:
    counts = {level: sum(each.level == level for each in findings) for level in LEVELS}
    parts = [many(counts[level], level) for level in reversed(LEVELS[1:]) if counts[level]]
    return ", ".join([*parts, f"{counts['ok']} ok"])
