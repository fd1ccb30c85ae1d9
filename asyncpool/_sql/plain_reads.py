"""Whether one statement is a plain read, which its text shows to only read.

A statement counts as a plain read only where that is certain; every name before a parenthesis may
be a function. What the text cannot show is taken on trust: functions behind views, row security
policies, operators, casts and foreign tables; a user's function with the name of a built-in one
(for other types, or in a schema before `pg_catalog`); and `t.name` where `t` has no such column,
which calls a function `name` on the row.
"""

from __future__ import annotations

from typing import Literal

from asyncpool._sql.functions import HARMFUL, HARMLESS, RELATIONS
from asyncpool._sql.keywords import KEYWORDS, SYNTAX, words
from asyncpool._sql.lexer import Token

READING = frozenset({"select", "values", "table", "with"})
WRITING = frozenset({"insert", "update", "delete", "merge", "into"})
JOINING = frozenset({"inner", "cross", "left", "right", "full", "outer", "natural"})
CLAUSES = words("select from where having order window limit offset fetch union intersect except")
PHRASES = {
    "by": {"group", "order", "partition"},
    "sets": {"grouping"},
    "varying": {"character", "char", "bit", "nchar"},
    "bernoulli": {"tablesample"},
    "system": {"tablesample"},
    "first": {"fetch"},
    "next": {"fetch"},
    "join": JOINING,
}
"""Words that may be function names, except after these words."""
Ctes = Literal["", "expected", "recursive", "named", "as", "done"]


class _Level:
    """An open part of the text: the statement itself or a parenthesis in it."""

    __slots__ = ("clause", "cte", "ctes", "opener")

    def __init__(self, opener: str) -> None:
        self.opener = opener
        """The word that a parenthesis belongs to, or one of the marks that `_opener` returns."""
        self.clause = ""
        """The last word of `CLAUSES` on this level, or "group"."""
        self.ctes: Ctes = ""
        """The state within a list of common table expressions."""
        self.cte = -1
        """The index of the name of the last common table expression."""


class _Reader:
    """A reading of one statement's tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._levels = [_Level("")]
        self._closed: dict[int, str] = {}
        """The openers of closed parentheses, by the index of the closing one."""

    def is_plain(self) -> bool:
        """Whether no token makes the statement more than a read, or may make it so."""
        for index, token in enumerate(self._tokens):
            if token.kind in ("word", "quoted"):
                if not self._accepts_name(index, token):
                    return False
            elif token.kind == "punct" and not self._accepts_mark(index, token.text):
                return False
        return len(self._levels) == 1

    # Names

    def _accepts_name(self, index: int, token: Token) -> bool:
        name = _name(token)
        if name is None or name in HARMFUL:
            return False
        if name.startswith("pg_") and name not in HARMLESS and name not in RELATIONS:
            return False
        if self._text(index - 1) == "." and self._is_notation(index) and name not in HARMLESS:
            return False
        self._follow_ctes(index, token.text)
        return token.kind == "quoted" or self._accepts_word(index, token.text)

    def _follow_ctes(self, index: int, word: str) -> None:
        """Update the state of the list of common table expressions, if there is one."""
        level = self._levels[-1]
        state = level.ctes
        if word == "with" and self._text(index - 1) in ("", "("):
            level.ctes = "expected"
        elif state == "expected":
            level.cte = index
            level.ctes = "named" if word != "recursive" else "recursive"
        elif state == "recursive" and word != "as":
            level.cte = index
            level.ctes = "named"
        elif state in ("named", "recursive") and word == "as":
            level.ctes = "as"
        elif state != "as" or word not in ("not", "materialized"):
            level.ctes = ""

    def _is_notation(self, index: int) -> bool:
        """Whether `.name` follows a value, so that it may call a function."""
        before = self._at(index - 2)
        return before is None or before.text in (")", "]") or before.kind in ("param", "string")

    def _accepts_word(self, index: int, word: str) -> bool:
        level = self._levels[-1]
        if word in WRITING or (word == "for" and not self._is_syntax(index)):
            return False
        if word in CLAUSES:
            level.clause = word
        elif word == "by" and self._text(index - 1) == "group":
            level.clause = "group"
        return True

    def _is_syntax(self, index: int) -> bool:
        """Whether a FOR belongs to a function's special syntax."""
        inner = self._levels[-1].opener in ("substring", "overlay")
        return inner or self._text(index + 1) == "ordinality"

    # Parentheses

    def _accepts_mark(self, index: int, mark: str) -> bool:
        level = self._levels[-1]
        if mark == "(":
            opener = self._opener(index)
            if opener is None:
                return False
            if level.ctes == "as":
                opener = "cte"
            self._levels.append(_Level(opener))
        elif mark == ")":
            if len(self._levels) == 1:
                return False
            self._closed[index] = self._levels.pop().opener
            if level.opener == "cte":
                self._levels[-1].ctes = "done"
        elif mark == "," and level.ctes == "done":
            level.ctes = "expected"
        return True

    def _opener(self, index: int) -> str | None:
        """Return the owner of a parenthesis; None for a call that may not be harmless."""
        before = self._at(index - 1)
        if before is None or before.kind == "op" or before.text in ("(", ",", "[", ":"):
            return "group"
        if before.kind not in ("word", "quoted"):
            return None
        if before.kind == "word" and before.text in SYNTAX and self._text(index - 2) != ".":
            first = before.text == "on" and self._text(index - 2) == "distinct"
            return "distinct on" if first else before.text
        if self._is_list(index) or self._is_phrase(index) or self._is_infix(index - 1):
            return before.text if before.text in ("columns", "sets") else "group"
        return "call" if self._is_harmless(index - 1) else None

    def _is_list(self, index: int) -> bool:
        """Whether a parenthesis contains names, columns, or a type's modifiers."""
        if self._levels[-1].ctes in ("named", "recursive") and self._levels[-1].cte == index - 1:
            return True
        before = self._text(index - 2)
        if before in ("as", "::"):
            return True
        if before == "ordinality" and self._text(index - 3) == "with":
            return True
        # A word between two parentheses is an alias, OVER, FILTER or REPEATABLE. The exceptions
        # are OPERATOR, and a function's name after DISTINCT ON (...).
        return self._is_closing(index - 2) and self._text(index - 1) != "operator"

    def _is_closing(self, index: int) -> bool:
        return self._text(index) == ")" and self._closed.get(index) != "distinct on"

    def _is_phrase(self, index: int) -> bool:
        """Whether a word that may be a function name is part of a phrase of the grammar."""
        word, second, third = (self._text(index - n) for n in (1, 2, 3))
        if word in ("rollup", "cube"):
            level = self._levels[-1]
            inside = level.clause == "group" or level.opener == "sets"
            return (second, third) == ("by", "group") or (inside and second in (",", "("))
        if word in ("materialized", "zone"):
            return (second, third) in (("not", "as"), ("time", "at"))
        return second in PHRASES.get(word, ())

    def _is_infix(self, index: int) -> bool:
        """Whether a word is an infix between two operands, and so not a function."""
        word = self._text(index)
        if word == "columns":
            possible = self._levels[-1].opener in ("json_table", "xmltable", "columns")
        else:
            possible = word in ("join", "ilike")
        if not possible:
            return False
        before = index - 1
        if word == "ilike" and self._text(before) == "not":
            before -= 1
        return self._is_operand(before)

    def _is_operand(self, index: int) -> bool:
        """Whether a token may end an operand."""
        token = self._at(index)
        if token is None or token.kind in ("op", "punct"):
            return token is not None and (token.text == "]" or self._is_closing(index))
        return token.kind != "word" or token.text not in KEYWORDS or token.text == "end"

    def _is_harmless(self, index: int) -> bool:
        """Whether a plain read may call the function of this name."""
        token = self._at(index)
        if token is None or _name(token) not in HARMLESS:
            return False
        if self._text(index - 1) != ".":
            return True
        schema = self._at(index - 2)
        plain = schema is not None and _name(schema) == "pg_catalog"
        return plain and self._text(index - 3) != "."

    def _at(self, index: int) -> Token | None:
        return self._tokens[index] if index >= 0 else None

    def _text(self, index: int) -> str:
        """Return the text of the token at an index; "" outside of the statement."""
        return self._tokens[index].text if 0 <= index < len(self._tokens) else ""


def _name(token: Token) -> str | None:
    """Return the name that a token stands for; None if it has Unicode escapes."""
    if token.kind == "word":
        return token.text
    return token.text[1:-1].replace('""', '"') if token.text.startswith('"') else None


def is_plain_read(tokens: list[Token]) -> bool:
    """Whether the statement with these tokens is certainly a plain read."""
    first = next((token for token in tokens if token.text != "("), None)
    return first is not None and first.text in READING and _Reader(tokens).is_plain()
