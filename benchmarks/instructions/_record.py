"""Counts and what they were made with, as they are in the repository."""

from __future__ import annotations

import json
import platform
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psycopg

from benchmarks._facts import cpu

FILE = Path(__file__).with_name("counts.json")
PACKAGES = ("anyio", "psycopg", "psycopg-binary")
"""The packages that run in a hot path, if they are installed."""
OPTIMISATIONS = ("--enable-optimizations", "--with-lto")


@dataclass(frozen=True)
class Record:
    """Instructions by path, and the facts that they depend on."""

    made_with: dict[str, str]
    instructions: dict[str, int]


def read(file: Path) -> Record:
    """Read a record."""
    return Record(**json.loads(file.read_text()))


def write(record: Record, file: Path) -> None:
    """Write a record."""
    file.write_text(json.dumps(asdict(record), indent=2) + "\n")


def facts() -> dict[str, str]:
    """Collect what counts made here depend on, and the CPU, on which they hardly do."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimised = [each for each in OPTIMISATIONS if each in arguments]
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "build": " ".join([platform.python_compiler(), *optimised]),
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "cpu": cpu(),
        "psycopg": f"{psycopg.pq.__impl__} implementation",
        "packages": " ".join(_requirements()),
    }


def _requirements() -> Iterator[str]:
    """Yield the installed versions as pip takes them: `.ci/run` installs those of the record."""
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{name}=={version(name)}"
