"""Single keys from a terminal, without waiting for Enter."""

from __future__ import annotations

import os
import select
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Self


class Keys:
    """A block in which single keys can be read, and are not shown; Ctrl-C works as before.

    If the input is no terminal, or the system has no termios, no key is ever pressed.
    """

    def __init__(self) -> None:
        self._restore = ExitStack()
        self._input: int | None = None

    def __enter__(self) -> Self:
        if os.name == "posix" and sys.stdin is not None and sys.stdin.isatty():
            import termios  # noqa: PLC0415 - Windows has no such module
            import tty  # noqa: PLC0415

            self._input = sys.stdin.fileno()
            before = termios.tcgetattr(self._input)
            self._restore.callback(termios.tcsetattr, self._input, termios.TCSADRAIN, before)
            tty.setcbreak(self._input)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._restore.close()

    def pressed(self, key: str) -> bool:
        """Whether the key was pressed since the last call, in either case."""
        if self._input is None or not select.select([self._input], [], [], 0)[0]:
            return False
        return key.encode() in os.read(self._input, 1024).lower()
