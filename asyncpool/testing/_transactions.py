"""Which statements of a text begin or end a transaction, and must not reach the server."""

from __future__ import annotations

import re
from typing import Literal

Control = Literal["begin", "commit", "rollback", "refused"]

# What may have a semicolon inside of it, and a semicolon.
# Source: https://www.postgresql.org/docs/current/sql-syntax-lexical.html
TOKEN = re.compile(
    rb"""(?P<comment> --[^\n]* | /\*)
    | (?<![\w$]) [eE]'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | (?<![\w$]) \$(?P<tag>[A-Za-z_\x80-\xff]?[\w\x80-\xff]*)\$ .*? \$(?P=tag)\$
    | (?P<end> ;)""",
    re.VERBOSE | re.DOTALL,
)
SAYS = re.compile(rb"\A\s*\w")
ATOMIC = re.compile(rb"\bBEGIN\s+ATOMIC\b", re.IGNORECASE)
REST = rb"(?:\s+(?:WORK|TRANSACTION))?(?:\s+AND\s+NO\s+CHAIN)?\s*\Z"
KINDS: list[tuple[Control, re.Pattern[bytes]]] = [
    ("begin", re.compile(rb"\s*(?:BEGIN\b|START\s+TRANSACTION\b)", re.IGNORECASE)),
    ("commit", re.compile(rb"\s*(?:COMMIT|END)" + REST, re.IGNORECASE)),
    ("rollback", re.compile(rb"\s*(?:ROLLBACK|ABORT)" + REST, re.IGNORECASE)),
    (
        "refused",
        re.compile(
            rb"\s*(?:(?:COMMIT|END|ROLLBACK|ABORT)\b.*\b(?:CHAIN|PREPARED)\b"
            rb"|PREPARE\s+TRANSACTION\b)",
            re.IGNORECASE | re.DOTALL,
        ),
    ),
]


# Most texts have none of these words, and need not be read.
WORDS = re.compile(rb"\b(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|PREPARE)\b", re.IGNORECASE)


def controls(text: bytes) -> list[tuple[bytes, Control | None]]:
    """The statements of a text, each with what it does to its transaction; None: nothing.

    Where none does anything the text is one piece. Where there is no statement there is no piece.
    """
    if WORDS.search(text):
        found = [(each, control(each)) for each in statements(text)]
        if any(kind is not None for _, kind in found):
            return found
    return [(text, None)] if SAYS.search(text) or statements(text) else []


def statements(text: bytes) -> list[bytes]:
    """The statements of a text, with blanks for their comments and without their semicolons."""
    found, current, at = [], b"", 0
    while token := TOKEN.search(text, at):
        current += text[at : token.start()]
        at = token.end()
        if token["comment"]:
            current += b" "
            if token["comment"] == b"/*":
                at = _end_of_comment(text, at)
        elif token["end"] and not _is_in_body(current):
            found.append(current)
            current = b""
        else:
            current += token[0]
    found.append(current + text[at:])
    return [each for each in found if each.strip()]


def control(statement: bytes) -> Control | None:
    """What a statement, as `statements` gives it, does to its transaction; None: nothing."""
    return next((kind for kind, pattern in KINDS if pattern.match(statement)), None)


def _end_of_comment(text: bytes, at: int) -> int:
    depth = 1
    while depth and (edge := re.compile(rb"/\*|\*/").search(text, at)):
        depth += 1 if edge[0] == b"/*" else -1
        at = edge.end()
    return len(text) if depth else at


def _is_in_body(statement: bytes) -> bool:
    """Whether it is a function's definition whose statements have not come to their END."""
    if not (body := ATOMIC.search(statement)):
        return False
    return not re.search(rb";\s*END\s*\Z", statement[body.end() :], re.IGNORECASE)
