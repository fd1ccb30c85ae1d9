"""A hook of mkdocs: the version, and the address of the repository where pyproject.toml has one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpool

ROOT = Path(__file__).parents[2]


def on_config(config: Any) -> Any:
    """Set them before the first page is made."""
    config.extra["package_version"] = asyncpool.__version__
    config.copyright = f"asyncpool {asyncpool.__version__}, MIT license"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"].rstrip("/")
    if repository:
        config.repo_url = repository
        config.repo_name = urlsplit(repository).path.strip("/")
    return config
