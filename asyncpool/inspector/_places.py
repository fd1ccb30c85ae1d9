"""Places in the program without the folders of the machine that runs it."""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from pathlib import Path


def shorter(text: str) -> str:
    """Return a text in which the places begin below the folders that Python imports from.

    A place is such as "/srv/shop/orders.py:12 in refund", alone or within a text.
    """
    return _shorter(text, tuple(sys.path))


@lru_cache(maxsize=4096)
def _shorter(text: str, search_path: tuple[str, ...]) -> str:
    return _pattern(search_path).sub("", text)


@lru_cache(maxsize=2)
def _pattern(search_path: tuple[str, ...]) -> re.Pattern[str]:
    folders = {str(Path(each).absolute()) for each in (*search_path, ".")} - {"/"}
    # The longest first: site-packages is below the folder of the standard library.
    starts = "|".join(re.escape(each) for each in sorted(folders, key=len, reverse=True))
    return re.compile(rf"(?<![\w./-])(?:{starts})[/\\](?=[^\n:]*:\d+ in )")
