"""PostgreSQL's lexical rules: the tokens of a query text, and its statements.

The lexer follows the server's `scan.l`, and decides nothing about what a statement does. Text that
any version of the server refuses is a token of the kind "bad".
Source: https://www.postgresql.org/docs/current/sql-syntax-lexical.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal, NamedTuple

TokenKind = Literal["word", "quoted", "string", "number", "param", "op", "punct", "bad"]


class Token(NamedTuple):
    """One token; white space and comments are none.

    `text` is as written, but in lower case for a word in ASCII: PostgreSQL folds keywords by
    ASCII's rules, and no keyword has other letters.
    """

    kind: TokenKind
    text: str
    start: int
    end: int


# Each character outside of ASCII is a letter. A class by its complement compiles 15 times faster
# than one with a range up to U+10FFFF.
LETTER = r"[^\x00-@\[-\^`{-\x7f]"
LETTER_OR_DIGIT = r"[^\x00-/:-@\[-\^`{-\x7f]"
WORD_CHARACTER = r"[^\x00-#%-/:-@\[-\^`{-\x7f]"
"""A letter, a digit or a dollar sign."""
# Possessive quantifiers of more than one character are wrong in Python before 3.11.5
# (python/cpython#106052). Instead, no quote may follow a string, so a match cannot end too early.
PLAIN = r"[^']*+(?:''[^']*+)*'(?!')"
ESCAPED = r"[^'\\]*+(?:(?:\\.|'')[^'\\]*+)*'(?!')"
BITS = r"[^']*+'"
DIGITS = r"\d+(?:_\d+)*"
HEX, OCTAL, BINARY = (rf"_?[{each}]+(?:_[{each}]+)*" for each in ("0-9a-fA-F", "0-7", "01"))


@cache
def _pattern(quote: str) -> re.Pattern[str]:
    """Return the pattern of one token; `quote` matches the rest of a string without a prefix.

    It takes 2 ms to compile, which the import is not to take.
    """
    return re.compile(
        rf"""(?P<space> [ \t\n\r\f\v]++ | --[^\n\r]*+ )
        | (?P<comment> /\*)
        | (?P<string> [eE]'{ESCAPED} | [uU]&'{PLAIN} | [bBxX]'{BITS} | '{quote} )
        | (?P<quoted> (?:[uU]&)?"[^"]*+(?:""[^"]*+)*"(?!") )
        | (?P<unended> [eEbBxX]' | [uU]&['"] | ['"] )
        | (?P<word> {LETTER}{WORD_CHARACTER}*+ )
        | (?P<param> \$\d++(?!{LETTER}) )
        | (?P<dollar> \$(?:{LETTER}{LETTER_OR_DIGIT}*+)?\$ )
        | (?P<number>
            (?: 0[xX]{HEX} | 0[oO]{OCTAL} | 0[bB]{BINARY}
            | (?: {DIGITS}(?:\.(?:{DIGITS})?)? | \.{DIGITS} )(?:[eE][+-]?{DIGITS})? )
            (?!{LETTER}|\d) )
        | (?P<junk> \$\d+ | {DIGITS} )
        | (?P<op> (?:(?!--|/\*)[~!@\#^&|`?+\-*/%<>=])+ )
        | (?P<punct> :: | [,()\[\].;:] )""",
        re.VERBOSE | re.DOTALL | re.ASCII,
    )


COMMENT_EDGE = re.compile(r"/\*|\*/")
# A string goes on after white space with a newline. Source: `quotecontinue` in scan.l
CONTINUATION = re.compile(
    r"(?:[ \t\f\v]|--[^\n\r]*+)*[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*+[\n\r])*'", re.DOTALL
)
BODIES = {
    **{prefix: re.compile(ESCAPED, re.DOTALL) for prefix in "eE"},
    **{prefix: re.compile(PLAIN) for prefix in "uU'"},
    **{prefix: re.compile(BITS) for prefix in "bBxX"},
}
"""Patterns for the rest of a string after its quote, by the string's first character."""


def tokens(text: str, *, escapes: bool = False) -> Iterator[Token]:
    """Yield the tokens of a text; one without an end is bad and extends to the end of the text.

    Args:
        text: the query text; characters outside of ASCII count as letters.
        escapes: whether the server's `standard_conforming_strings` is off.
    """
    match_at = _pattern(ESCAPED if escapes else PLAIN).match
    at, length = 0, len(text)
    while at < length:
        match = match_at(text, at)
        group = match.lastgroup if match else "junk"
        value = match[0] if match else text[at]
        start, at = at, at + len(value)
        if group == "space":
            continue
        if group in ENDS:
            at = ENDS[group](text, value, at, escapes)
            if at < 0:
                yield Token("bad", value, start, length)
                return
            if group == "comment":
                continue
            group, value = "string", text[start:at]
        elif group == "junk":
            group = "bad"
        elif group == "word" and value.isascii():
            value = value.lower()
        yield Token(group, value, start, at)  # type: ignore[arg-type]


def _end_of_string(text: str, first: str, at: int, escapes: bool) -> int:
    """Return the end of a string that may go on after a newline; -1 if it has none."""
    body = BODIES["e" if escapes and first[0] == "'" else first[0]]
    while continuation := CONTINUATION.match(text, at):
        match = body.match(text, continuation.end())
        if match is None:
            return -1
        at = match.end()
    return at


def _end_of_comment(text: str, _first: str, at: int, _escapes: bool) -> int:
    """Return the end of a comment, which may contain comments; -1 if it has none."""
    depth = 1
    while depth:
        edge = COMMENT_EDGE.search(text, at)
        if edge is None:
            return -1
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at


def _end_of_dollars(text: str, quote: str, at: int, _escapes: bool) -> int:
    """Return the end of a dollar-quoted string; -1 if it has none."""
    found = text.find(quote, at)
    return found if found < 0 else found + len(quote)


ENDS: dict[str | None, Callable[[str, str, int, bool], int]] = {
    "string": _end_of_string,
    "comment": _end_of_comment,
    "dollar": _end_of_dollars,
    "unended": lambda _text, _first, _at, _escapes: -1,
}
"""Functions that find the end of a token whose beginning the pattern has matched."""


class Statement(NamedTuple):
    """One statement of a text, without its semicolon and with at least one token."""

    tokens: list[Token]
    start: int
    end: int


def statements(text: str, *, escapes: bool = False) -> list[Statement]:
    """Return the statements of a text.

    A semicolon in parentheses (CREATE RULE) or in a routine's body (BEGIN ATOMIC) ends none.
    """
    found: list[Statement] = []
    current: list[Token] = []
    start = depth = bodies = 0
    for token in tokens(text, escapes=escapes):
        if token.text == ";" and depth <= 0 and not bodies:
            if current:
                found.append(Statement(current, start, token.start))
            current, start, depth = [], token.end, 0
            continue
        if token.kind == "punct":
            depth += (token.text == "(") - (token.text == ")")
        elif token.kind == "word" and depth <= 0 and current:
            bodies += _opens_body(token, current) - (bool(bodies) and _ends_body(token, current))
        current.append(token)
    if current:
        found.append(Statement(current, start, len(text)))
    return found


def _opens_body(token: Token, before: list[Token]) -> bool:
    """Whether a word is the ATOMIC that begins a routine's body."""
    if token.text != "atomic" or before[-1].text != "begin" or before[-1].kind != "word":
        return False
    words = [each.text for each in before[:4] if each.kind == "word"]
    kind = words[3:4] if words[1:3] == ["or", "replace"] else words[1:2]
    return words[:1] == ["create"] and kind in (["function"], ["procedure"])


def _ends_body(token: Token, before: list[Token]) -> bool:
    """Whether a word is the END of a routine's body; the END of CASE follows no semicolon."""
    return token.text == "end" and before[-1].text in (";", "atomic")
