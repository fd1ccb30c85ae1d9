"""A hook of mkdocs: files outside of docs/ to which the pages link become pages of the site.

The pages link their claims to tests. A link to `file.py#name` leads to that function's heading on
the page of the file. On the site these links, "([test](...))", are footnotes.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(
    r"(?P<text>(?:`(?P<test>test_\w+)`)?\]\()(?P<path>\.\./[^)\s#]+)(?:#(?P<name>[^)\s]+))?\)"
)
TESTS = re.compile(r"\s*\((\[test\]\([^)\s]+\)(?:,\s+\[test\]\([^)\s]+\))*)\)([.,;:]?)")
TARGET = re.compile(r"\[test\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1[ \t]*$", re.DOTALL | re.MULTILINE)
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changes.md"}
"""Files that have a page already, and that page."""


def on_files(files: Files, config: Any) -> Files:
    """Add the changelog, and a page for each file to which a page links."""
    named: dict[str, set[str]] = defaultdict(set)
    for file in files.documentation_pages():
        for link in LINK.finditer(file.content_string):
            if (path := _outside(file.src_uri, link["path"])) is not None:
                named[path].add(link["name"] or link["test"] or "")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changes.md", content=changes))
    for path, names in named.items():
        if path not in PAGES:
            files.append(File.generated(config, f"source/{path}.md", content=_shown(path, names)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Make footnotes of the links to tests, and point all links to these pages."""
    base = posixpath.dirname(page.file.src_uri)

    def pointed(link: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, link["path"])
        if path is None:
            return link[0]
        there = posixpath.relpath(PAGES.get(path, f"source/{path}.md"), base)
        name = link["name"] or link["test"]
        return f"{link['text']}{there}{f'#{name}' if name else ''})"

    return LINK.sub(pointed, _with_footnotes(markdown))


def _outside(page: str, target: str) -> str | None:
    """Return a link's path in the repository if it leads out of docs/, else None."""
    there = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if there.startswith("docs/") else there


def _with_footnotes(markdown: str) -> str:
    notes: list[str] = []

    def marked(tests: re.Match[str]) -> str:
        targets = TARGET.findall(tests[1])
        labels = (target.partition("#")[2] or posixpath.basename(target) for target in targets)
        links = ", ".join(
            f"[`{label}`]({target})" for label, target in zip(labels, targets, strict=True)
        )
        notes.append(f"[^test-{len(notes)}]: Test{'s' * (len(targets) > 1)}: {links}")
        return f"{tests[2]}[^test-{len(notes) - 1}]"  # after the full stop

    parts: list[str] = []
    end = 0
    for fence in FENCE.finditer(markdown):
        parts += [TESTS.sub(marked, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    parts.append(TESTS.sub(marked, markdown[end:]))
    return "".join(parts) + "\n\n" + "\n".join(notes) + "\n"


def _shown(path: str, names: set[str]) -> str:
    """Return the page of a file, or of a folder of programs."""
    there = ROOT / path
    title = f"# {path}\n\n"
    if there.is_dir():
        return title + "".join(f"- `{each.name}`\n" for each in sorted(there.glob("*.py")))
    text = there.read_text(encoding="utf-8")
    language = {".py": "python", ".toml": "toml"}.get(there.suffix, "text")
    starts = sorted((at, name) for name in names if (at := _start(text, name)) is not None)
    edges = [*(at for at, _ in starts), len(text)]
    sections = [
        f"## `{name}` {{#{name}}}\n\n{_block(text[at:end], language)}"
        for (at, name), end in zip(starts, edges[1:], strict=True)
    ]
    return title + _block(text[: edges[0]], language) + "".join(sections)


def _start(text: str, name: str) -> int | None:
    """Return where a function or class begins, with its decorators."""
    pattern = rf"^(?:@.*\n(?:[ )].*\n)*)*(?:async )?(?:def|class) {re.escape(name)}\b"
    found = re.search(pattern, text, re.MULTILINE) if name else None
    return found.start() if found else None


def _block(text: str, language: str) -> str:
    return f"~~~~~~ {language}\n{text.strip()}\n~~~~~~\n\n"
