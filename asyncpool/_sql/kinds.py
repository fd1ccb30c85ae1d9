"""The kinds of one-shot statements, by their text alone.

A statement is a plain read only where that is certain. The text is classified with and without
psycopg's placeholders, and for both values of `standard_conforming_strings`. The most restrictive
result counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from itertools import count
from typing import Any

from psycopg.abc import Query
from psycopg.sql import SQL, Composable, Composed, Identifier, Placeholder

from asyncpool._sql.advice import advice
from asyncpool._sql.lexer import Token, statements, tokens
from asyncpool._sql.plain_reads import READING, is_plain_read

__all__ = ["Kind", "advice", "classify", "kind_of", "text_of"]

LONG = 4096
"""Characters of the longest text that is read to its end, which takes some milliseconds."""
WRITING = frozenset({"insert", "update", "delete", "merge"})
OPENING = frozenset({"(", ";"})
# psycopg's own rule. Source: `_re_placeholder` in psycopg/_queries.py
PLACEHOLDER = re.compile(r"%(?:\(([^)]+)\).|.)")
MISLEADING = re.compile("[\u00a5\u203e\u20a9]")
"""Characters that some client encoding writes as a backslash or a tilde."""


class Kind(Enum):
    """How a one-shot statement may be run."""

    READ = 0
    """A plain read: its text shows that it cannot write, lock, block or change the session."""
    SINGLE = 1
    """One statement that reads or writes tables; it may run on a channel of its own."""
    OTHER = 2
    """Anything else: no statement, several, one of another kind, or text that is not understood."""


def classify(query: Query) -> Kind:
    """Return the kind of a query."""
    text = text_of(query)
    return Kind.OTHER if text is None else kind_of(text)


def kind_of(text: str) -> Kind:
    """Return the kind of a statement with this text, as returned by `text_of`."""
    if "\0" in text:
        return Kind.OTHER
    kind = Kind.READ
    for form in {text, _as_sent(text)}:
        for escapes in (False, True) if "\\" in form else (False,):
            kind = max(kind, _kind_of_form(form, escapes=escapes), key=lambda each: each.value)
    if kind is not Kind.OTHER and MISLEADING.search(text):
        return Kind.SINGLE if ";" not in text else Kind.OTHER
    return kind


def text_of(query: Query) -> str | None:
    """Return the text of a query without its values; None if it depends on a connection."""
    if type(query) is str:
        return query
    if isinstance(query, bytes):
        return query.decode() if type(query) is bytes and query.isascii() else None
    if isinstance(query, Composable):
        return query.as_string(None) if _is_simple(query) else None
    if isinstance(query, str):
        return str.__str__(query) if type(query).encode is str.encode else None
    return _text_of_template(query)


def _is_simple(part: Composable) -> bool:
    """Whether the text of `part` is the same for every connection."""
    if type(part) is Composed:
        return all(_is_simple(each) for each in part)
    return type(part) in (SQL, Identifier, Placeholder)


def _text_of_template(query: Any) -> str | None:
    # Template strings exist since Python 3.14. psycopg refuses any other type later.
    pieces: list[str] = []
    return (
        "".join(pieces) if _is_template(query) and _add_template(query, pieces, count(1)) else None
    )


def _is_template(value: Any) -> bool:
    kind = type(value)
    return (kind.__module__, kind.__name__) == ("string.templatelib", "Template")


def _add_template(template: Any, pieces: list[str], numbers: Iterator[int]) -> bool:
    """Add the pieces of a template's text to `pieces`; False if one of them needs a connection."""
    for piece in template:
        if isinstance(piece, str):
            pieces.append(piece)
            continue
        value, spec = piece.value, piece.format_spec
        if piece.conversion:
            return False
        if _is_template(value):
            if spec != "q" or not _add_template(value, pieces, numbers):
                return False
        elif isinstance(value, Composable):
            if not _is_simple(value):
                return False
            pieces.append(value.as_string(None))
        elif spec == "i" and type(value) is str:
            pieces.append(Identifier(value).as_string(None))
        elif spec in ("", "s", "t", "b"):
            pieces.append(f"${next(numbers)}")
        else:
            return False
    return True


def _as_sent(text: str) -> str:
    """Return the text as psycopg sends it with values; unchanged if psycopg would refuse it."""
    if not all(found[0] == "%%" or found[0][-1] in "sbt" for found in PLACEHOLDER.finditer(text)):
        return text
    return PLACEHOLDER.sub(lambda found: "%" if found[0] == "%%" else "$1", text)


def _kind_of_form(text: str, *, escapes: bool) -> Kind:
    first = next(
        (token for token in tokens(text, escapes=escapes) if token.text not in OPENING), None
    )
    if first is None or (first.text not in READING and first.text not in WRITING):
        return Kind.OTHER
    if first.text in WRITING or len(text) > LONG:
        if ";" not in text.rstrip("; \t\n"):
            return Kind.SINGLE
        if len(text) > LONG:
            return Kind.OTHER
    found = statements(text, escapes=escapes)
    if len(found) != 1 or not _is_whole(found[0].tokens):
        return Kind.OTHER
    return Kind.READ if is_plain_read(found[0].tokens) else Kind.SINGLE


def _is_whole(statement: list[Token]) -> bool:
    """Whether no token is bad or a semicolon, and each parenthesis is closed."""
    texts = [token.text for token in statement]
    valid = all(token.kind != "bad" for token in statement)
    return valid and ";" not in texts and texts.count("(") == texts.count(")")
