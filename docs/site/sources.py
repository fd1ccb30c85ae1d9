"""A hook of mkdocs: files outside of docs/ to which the pages link become pages of the site.

The pages link their claims to tests. A link to `file.py#name` leads to that function's heading on
the page of the file.
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
    r"(?P<text>(?:`(?P<test>test_\w+)`)?\]\()\.\./(?P<path>[^)\s#]+)(?:#(?P<name>[^)\s]+))?\)"
)
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changes.md"}
"""Files that have a page already, and that page."""


def on_files(files: Files, config: Any) -> Files:
    """Add the changelog, and a page for each file to which a page links."""
    named: dict[str, set[str]] = defaultdict(set)
    for file in files.documentation_pages():
        for link in LINK.finditer(file.content_string):
            named[posixpath.normpath(link["path"])].add(link["name"] or link["test"] or "")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changes.md", content=changes))
    for path, names in named.items():
        if path not in PAGES:
            files.append(File.generated(config, f"source/{path}.md", content=_shown(path, names)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point the links to these pages."""
    base = posixpath.dirname(page.file.src_uri)

    def pointed(link: re.Match[str]) -> str:
        path = posixpath.normpath(link["path"])
        there = posixpath.relpath(PAGES.get(path, f"source/{path}.md"), base)
        name = link["name"] or link["test"]
        return f"{link['text']}{there}{f'#{name}' if name else ''})"

    return LINK.sub(pointed, markdown)


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
