"""Find the statements of a text that must not reach the server as they are.

They begin or end a transaction, or deallocate the prepared statements of all clients.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from asyncpool._sql.lexer import Token, statements

Control = Literal["begin", "commit", "rollback", "refused", "deallocate"]

# Most texts contain none of these words, and need no lexer.
WORDS = re.compile(
    rb"\b(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|PREPARE|DEALLOCATE)\b", re.IGNORECASE
)
STARTS_WITH_WORD = re.compile(rb"\A\s*\w")
ENDINGS: dict[str, Control] = {
    "commit": "commit",
    "end": "commit",
    "rollback": "rollback",
    "abort": "rollback",
}
# In these encodings the second byte of a character may equal an ASCII character's, such as "\".
WIDE = {b"BIG5", b"GB18030", b"GBK", b"JOHAB", b"SHIFT_JIS_2004", b"SJIS", b"UHC"}
WIDE_CHARACTER = re.compile(rb"[\x80-\xff].", re.DOTALL)
KANA_OR_WIDE = re.compile(rb"[\xa1-\xdf]|[\x80-\xff].", re.DOTALL)


def controls(
    text: bytes, *, escapes: bool = False, encoding: bytes = b"UTF8"
) -> list[tuple[bytes, Control | None]]:
    """Split a text into statements, each with its effect on the transaction; None: no effect.

    A text is one piece if no statement has an effect, or if a quote or comment has no end, so that
    the server refuses the whole text. A text without a statement has no pieces.

    Args:
        text: the statements, in the client's encoding.
        escapes: whether `standard_conforming_strings` is off.
        encoding: PostgreSQL's name of the client's encoding.
    """
    if STARTS_WITH_WORD.search(text) and not WORDS.search(text):
        return [(text, None)]
    found = statements(_letters(text, encoding), escapes=escapes)
    pieces = [(text[each.start : each.end], control(each.tokens)) for each in found]
    ended = not found or found[-1].tokens[-1].kind != "bad"
    if ended and any(kind is not None for _, kind in pieces):
        return pieces
    return [(text, None)] if found else []


def control(tokens: Sequence[Token]) -> Control | None:
    """Classify a statement by its effect on the transaction; None: no effect."""
    words = [each.text if each.kind == "word" else "" for each in tokens[:6]]
    first, rest = words[0], words[1:]
    if first == "begin" or words[:2] == ["start", "transaction"]:
        return "begin"
    if words[:2] == ["prepare", "transaction"]:
        return "refused"
    if words in (["deallocate", "all"], ["deallocate", "prepare", "all"]):
        return "deallocate"
    if first not in ENDINGS:
        return None
    if rest[:1] in (["work"], ["transaction"]):
        rest = rest[1:]
    if rest in ([], ["and", "no", "chain"]):
        return ENDINGS[first]
    return "refused" if rest[:1] == ["prepared"] or rest == ["and", "chain"] else None


def _letters(text: bytes, encoding: bytes) -> str:
    """Decode a text to one of the same length; every byte outside ASCII becomes a letter."""
    if encoding in WIDE and not text.isascii():
        sjis = encoding in (b"SJIS", b"SHIFT_JIS_2004")
        pattern = KANA_OR_WIDE if sjis else WIDE_CHARACTER
        text = pattern.sub(lambda found: b"\xff" * len(found[0]), text)
    return text.decode("latin-1")
