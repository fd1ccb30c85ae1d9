"""Tables in Markdown, and pages of which a part is written anew."""

from __future__ import annotations

from pathlib import Path

Lines = list[list[str]]


def markdown(lines: Lines, texts: int = 1) -> str:
    """Return a table, whose first line is its head; no text, if that is all.

    Args:
        lines: the lines.
        texts: the number of the first columns that are texts; the others are on the right.
    """
    if len(lines) < 2:
        return ""
    head, *rest = lines
    rule = [*["---"] * texts, *["--:"] * (len(head) - texts)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rest))


def replaced(page: Path, begin: str, end: str, parts: list[str]) -> str:
    """Return the text of a page with other parts between its two marks; empty ones are left out.

    Raises:
        ValueError: the page has no marks.
    """
    before, found_begin, rest = page.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"{page} has no {begin} and {end}")
    return before + "\n\n".join(filter(None, [begin, *parts, end])) + after
