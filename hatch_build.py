"""A hook of the build: the project's URLs, and a README whose links work outside the repository.

Its one setting is the repository's address: `repository` in pyproject.toml. Without an address the
package has no URLs, and relative links of the README become plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK_OR_CODE = re.compile(r"```.*?```|`[^`\n]+`|(!?)\[([^\]]*)\]\(([^)\s]+)\)", re.DOTALL)
VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)


class ProjectLinks(MetadataHookInterface):
    """Set the fields `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """See `MetadataHookInterface`."""
        root = Path(self.root)
        repository = str(self.config.get("repository", "")).rstrip("/")
        version = VERSION.search((root / "asyncpool/__init__.py").read_text(encoding="utf-8"))
        assert version is not None, "asyncpool/__init__.py has no __version__"
        tag = f"v{version[1]}"
        text = absolute_links((root / "README.md").read_text(encoding="utf-8"), repository, tag)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = urls(repository, tag)


def urls(repository: str, tag: str) -> dict[str, str]:
    """Return the project's URLs by label; none without an address."""
    if not repository:
        return {}
    return {
        "Repository": repository,
        "Documentation": f"{repository}/blob/{tag}/docs/index.md",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def absolute_links(text: str, repository: str, tag: str) -> str:
    """Make a text's relative links absolute.

    Args:
        text: the Markdown of a page in the repository's root.
        repository: the repository's address; if empty, links become plain text, and images are
            left out.
        tag: the version of the files that the links lead to.
    """

    def absolute(found: re.Match[str]) -> str:
        image, label, target = found.groups()
        if target is None or re.match(r"[a-z]+:|#", target):
            return found[0]
        if not repository:
            return "" if image else label
        return f"{image}[{label}]({repository}/{'raw' if image else 'blob'}/{tag}/{target})"

    return LINK_OR_CODE.sub(absolute, text)
