"""Tokens: a position in the primary's write-ahead log that a read has to see.

A token is made after a commit. It has the position up to which the primary had inserted records by
then, and the timeline of that position. A host has replayed a token if it is on this timeline or a
later one and has replayed at least up to the position. The timeline matters after a promotion: a
standby that still follows the old primary may be further on, in a history of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from asyncpool._cluster.sight import number_of, text_of

POSITION = (
    b"SELECT lsn, pg_catalog.left(pg_catalog.pg_walfile_name(lsn), 8),"
    b" pg_catalog.current_setting('wal_block_size')"
    b" FROM pg_catalog.pg_current_wal_insert_lsn() AS lsn"
)
"""The query for a token, on the primary.

The insert position is the end of the last record, or later. The flush position may be before a
commit with `synchronous_commit = off`, which does not wait for the flush.
"""
PAGE_HEADER = 24
"""Bytes at the beginning of a page of the log, which belong to no record."""

LSN = r"(?P<high>[0-9A-F]{1,8})/(?P<low>[0-9A-F]{1,8})"
TEXT = re.compile(rf"{LSN}(?:@(?P<timeline>[0-9]{{1,10}}))?", re.ASCII | re.IGNORECASE)
MAX_SHOWN = 40


@dataclass(frozen=True, order=True, slots=True)
class Token:
    """A position that a read has to see; later ones compare greater.

    Tokens are ordered by their timeline first: what was written after a promotion is later than
    what was written before it, also where the log of the old primary was longer.
    """

    timeline: int
    """The primary's timeline; 0: not known, so that the position alone is compared."""
    lsn: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token as `str()` writes it, or a plain position as PostgreSQL writes it.

        Raises:
            TypeError: it is not a str.
            ValueError: it is no token.
        """
        if not isinstance(text, str):
            msg = f"a token must be a str such as '16/B374D848@1', not {text!r}"
            raise TypeError(msg)
        if (found := TEXT.fullmatch(text)) is None:
            shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
            msg = (
                "a token must be a position such as '16/B374D848@1', as write.token() returns it:"
                f" got {shown!r}"
            )
            raise ValueError(msg)
        return cls(int(found["timeline"] or 0), number_of(text.partition("@")[0]))

    @classmethod
    def of_row(cls, row: Sequence[bytes | str | None]) -> Self:
        """Return the token of a row of `POSITION`.

        An insert position just behind the header of a page is that page's beginning: no record ends
        in between. A standby that has replayed all is at the beginning.
        """
        lsn, timeline, block = (as_text(each) for each in row)
        position = number_of(lsn)
        if position % int(block) == PAGE_HEADER:
            position -= PAGE_HEADER
        return cls(int(timeline, 16), position)

    def __str__(self) -> str:
        lsn = text_of(self.lsn)
        return f"{lsn}@{self.timeline}" if self.timeline else lsn


def as_text(value: bytes | str | None) -> str:
    """Return a value of a row as text.

    Raises:
        ValueError: it is NULL.
    """
    if value is None:
        msg = "the server gave no position: it is not a primary"
        raise ValueError(msg)
    return value.decode() if isinstance(value, bytes) else value


def parsed(after: str | None) -> Token | None:
    """Return the token of an argument `after`; None: there is none."""
    return None if after is None else Token.parse(after)


def latest(*tokens: Token | None) -> Token | None:
    """Return the latest of several tokens, if there is any."""
    return max((each for each in tokens if each is not None), default=None)
