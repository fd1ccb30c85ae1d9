"""A server's temporary folder: locked while its owner or reaper lives, else removed by a later run.

Our user owns `asyncpool-pg-xxxxxxxx` itself, with `lock`, `log` and `conf`. The server's user owns
`data`, and `s` for the Unix socket, whose path has to be short. So we never write into a folder of
another user. No third user can enter `data` or `s`. The two users differ only if we are root, who
can enter both.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import _reaper
from ._install import RunAs, temporary

PREFIX = "asyncpool-pg-"
GRACE = 60.0  # seconds that a new folder may be without its lock
SOCKET_PATH_LIMIT = 103  # bytes, on macOS; 107 on Linux


class Folder:
    """The folder of one server, with its reaper."""

    def __init__(self, who: RunAs) -> None:
        self._who = who
        base = temporary(who)
        sweep(base)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        self.data = self.path / "data"
        self.log = self.path / "log"
        self.configuration = self.path / "conf"
        self._sockets = self.path / "s"
        self._reaper: subprocess.Popen[bytes] | None = None
        self._lock = -1
        try:
            self._prepare()
            self._lock = _lock(self.path)
            self._reaper = _reaper.spawn(self.path, self._lock)
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        self.log.touch(mode=0o600)
        for part in (self.data, self._sockets):
            self._make(part)
        self.path.chmod(0o711 if self._who else 0o700)

    def _make(self, part: Path) -> None:
        part.mkdir()
        part.chmod(0o700)  # independent of the umask
        self._chown(part)

    def empty_data(self) -> None:
        """Replace the data folder of a stopped server with an empty one."""
        shutil.rmtree(self.data)
        self._make(self.data)

    def _chown(self, path: Path) -> None:
        """Give a file or folder to the server's user."""
        if self._who:
            os.chown(path, self._who["user"], self._who["group"])

    @contextlib.contextmanager
    def file_for_server(self, name: str, text: str) -> Iterator[Path]:
        """Keep a file that only the server's user can read while the block lasts."""
        path = self.path / name
        path.touch(mode=0o600, exist_ok=False)
        try:
            path.write_text(text)
            self._chown(path)
            yield path
        finally:
            path.unlink(missing_ok=True)

    @property
    def sockets(self) -> Path | None:
        """The folder of the server's Unix socket; None: the socket's path would be too long."""
        path = self._sockets / ".s.PGSQL.65535.lock"
        return self._sockets if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT else None

    def tail(self, lines: int = 20) -> str:
        """Return the end of the server's log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"

    def close(self) -> None:
        """End all processes of the folder, remove it and end its reaper."""
        _reaper.discard(self.path)
        if self._reaper is not None:
            assert self._reaper.stdin is not None, "bug: a reaper without its pipe"
            self._reaper.stdin.close()
            try:
                self._reaper.wait(10.0)
            except subprocess.TimeoutExpired:
                self._reaper.kill()
                self._reaper.wait()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def sweep(base: Path) -> None:
    """Remove the folders whose owner and reaper have both ended, with their processes."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another process removed it, or it is locked: in use
            if folder.lstat().st_uid == os.geteuid() and folder.is_dir():
                _sweep_one(folder)


def _sweep_one(folder: Path) -> None:
    try:
        lock = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        if time.time() - folder.stat().st_mtime > GRACE:
            _reaper.discard(folder)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _reaper.discard(folder)
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    """Return a locked descriptor of `folder`'s lock; the file appears there already locked."""
    draft = folder / "lock.new"
    lock = os.open(draft, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    draft.rename(folder / "lock")
    return lock
