"""Run a Markdown document: its Python blocks, in order, as a reader would type them.

All blocks of a document share one namespace and one event loop. A block may use `await` at top
level; one that does not is run outside of the loop, so that it may call `asyncio.run`. A block that
begins with a comment such as `# test_notes.py` is a file: these are left for pytest, which reads
them at the end of the document.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser

from asyncpool import AsyncConnectionPool

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted({README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")})
BLOCK_LIMIT = 60.0
"""Seconds that one block may take; none should need five."""

FILE = re.compile(r"# ([\w/-]+\.(?:py|toml))\n")
FENCE = re.compile(r"^ *(```+|~~~+)([^\n]*)\n.*?^ *\1[ \t]*$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"", "python", "toml", "console", "sh", "text", "sql", "ini", "yaml"}
LINK = re.compile(r"(?:`(test_\w+)`)?\]\(([^)\s]+)\)")


class Reader:
    """Reads documents: a namespace, an event loop, and a folder for files.

    Args:
        folder: an empty folder for the blocks that are files.
    """

    def __init__(self, folder: Path) -> None:
        self.files: list[Path] = []
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self._folder = folder
        self._runner = asyncio.Runner()

    def read(self, path: Path) -> None:
        """Run every block; what one of them raises has the document's own line in its traceback."""
        parsers = [CodeBlockParser(language, self._evaluate) for language in ("python", "toml")]
        with self._runner:
            try:
                for example in Document.parse(str(path), *parsers).examples():
                    example.evaluate()
                if self.files:
                    run_pytest(self._folder)
            finally:
                self._runner.run(self._close_pools())
            self._runner.run(_no_task_is_left())
        self.namespace.clear()
        gc.collect()

    def _evaluate(self, example: Example) -> None:
        source: str = example.parsed
        if name := FILE.match(source):
            file = self._folder / name[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source, encoding="utf-8")
            self.files.append(file)
            return
        assert example.region.lexemes["arguments"] == "python", f"{example!r} has no file's name"
        code = compile(
            "\n" * (example.line + example.parsed.line_offset) + source,
            example.path,
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        block = eval(code, self.namespace)  # noqa: S307 - the documents are our own
        if code.co_flags & inspect.CO_COROUTINE:
            self._runner.run(_in_time(block))

    async def _close_pools(self) -> None:
        for value in self.namespace.values():
            if isinstance(value, AsyncConnectionPool) and not value.closed:
                await value.close()


async def _in_time(block: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(BLOCK_LIMIT):
        await block


async def _no_task_is_left() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert not tasks, f"tasks are left: {tasks}"


def run_pytest(folder: Path) -> None:
    """Run the test files in a folder as their owner would, with the plugins that they need."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-W", "error", "-rs"),
            # By name, so that it does not matter whether this package is installed.
            *("-p", "asyncpool.testing.plugin", "-p", "pytest_asyncio.plugin"),
        ],
        cwd=folder,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def languages(text: str) -> set[str]:
    """The first words after the opening fences of a document, "" for a fence with none."""
    return {(match[2].split() or [""])[0] for match in FENCE.finditer(text)}


def shell_lines(text: str) -> list[str]:
    """The lines of the shell blocks, without prompts."""
    blocks = (match for match in FENCE.finditer(text) if match[2].strip() in ("console", "sh"))
    return [line.strip().removeprefix("$ ") for match in blocks for line in match[0].splitlines()]


def broken_links(path: Path) -> Iterator[str]:
    """The links of a document to files, headings and functions of this project that lead nowhere.

    `file.py#name` is a link to the function of that name, and so is [`test_name`](file.py).
    """
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for name, target in LINK.findall(text):
        if re.match(r"\w+:", target):
            continue  # another site's
        place, _, anchor = target.partition("#")
        file = (path.parent / place).resolve() if place else path
        anchor = anchor or name
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield f"{name} {target}".strip()


def anchors(file: Path) -> set[str]:
    """Return what a link may point at in a file."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return set(re.findall(r"^ *(?:async )?def (\w+)", text, re.MULTILINE))
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    # As code hosts make them.
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
