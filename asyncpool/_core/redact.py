"""What libpq says without the secrets that it repeats: some of its errors quote the conninfo."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

HIDDEN = "***"
SHORT = 6
"""Characters of a secret that is not looked for inside of words."""
_SECRETS = (
    # postgresql://user:secret@host, whatever is in the secret
    (re.compile(r"(://[^\s:/@'\"]*:).*@", re.DOTALL), rf"\1{HIDDEN}@"),
    (
        re.compile(
            r"(\b(?:ssl|scram_client_|scram_server_|oauth_client_)?"
            r"(?:password|passwd|secret|key)\s*=\s*)"
            r"(?:'(?:[^'\\]|\\.)*'?|\"[^\"]*\"?|[^\s;&,)]+)",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    # A secret with a space or an @ in it that was not quoted is taken for something else.
    (
        re.compile(
            r"(\"=\" after |invalid connection option |percent-encoded (?:token|value): |URI: "
            r"|URI query parameter: |spaces found in |parser routine: |\"/\"\): )\".*\"",
            re.DOTALL,
        ),
        rf'\1"{HIDDEN}"',
    ),
    (re.compile(r"(['\"])(?!/)[^'\"\s]*@"), rf"\1{HIDDEN}@"),
)


_LITERAL = re.compile(
    r"(\bpassword\s*=?\s*)((?:E|U&)?'(?:[^'\\]|\\.|'')*'?|\$(\w*)\$.*?(?:\$\3\$|\Z))",
    re.IGNORECASE | re.DOTALL,
)
"""What follows PASSWORD in a statement, as in ALTER ROLE."""


def without_passwords(sql: str) -> str:
    """The text of a statement without the passwords that are written out in it."""
    return _LITERAL.sub(rf"\1{HIDDEN}", sql)


def redacted(said: object) -> str:
    """The text of an error, or any other, without passwords."""
    text = str(said)
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def described(error: BaseException) -> str:
    """The same with the class of the error, which is all where it has no text."""
    return f"{type(error).__name__}: {redacted(error)}".removesuffix(": ")


def conceal(error: BaseException, secrets: Iterable[str]) -> str | None:
    """Take secrets out of an error, and out of all that it is chained to.

    An error further down the chain that keeps them is cut off.

    Args:
        error: its arguments and notes are changed.
        secrets: what must not show, besides what looks like a secret.

    Returns:
        None, or what may be said in place of an error that keeps them.
    """
    found = [pattern for secret in secrets for pattern in _patterns(secret)]
    if _clean(error, found, set()):
        return None
    return f"{type(error).__name__}: {_without(str(error), found)}"


def _clean(error: BaseException, secrets: list[re.Pattern[str]], seen: set[int]) -> bool:
    """Whether an error, whose chain is changed, shows none of the secrets now."""
    seen.add(id(error))
    error.args = tuple(_without(arg, secrets) for arg in error.args)
    if notes := getattr(error, "__notes__", None):
        notes[:] = [_without(note, secrets) for note in notes]
    for name in ("__cause__", "__context__"):
        below = getattr(error, name)
        if below is not None and id(below) not in seen and not _clean(below, secrets, seen):
            suppressed = error.__suppress_context__
            setattr(error, name, None)
            error.__suppress_context__ = suppressed
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    if isinstance(error, UnicodeError) or not all(_clean(each, secrets, seen) for each in parts):
        return False
    said = f"{error} {error!r}"
    return _without(said, secrets) == said


def _without(text: object, secrets: list[re.Pattern[str]]) -> object:
    if not isinstance(text, str):
        return text
    for pattern in secrets:
        text = pattern.sub(HIDDEN, text)
    return redacted(text)


def _patterns(secret: str) -> Iterator[re.Pattern[str]]:
    """How a secret may stand in a text: as it is, quoted, or percent-encoded."""
    escaped = secret.replace("\\", "\\\\").replace("'", "\\'")
    encoded = {quote(secret, safe, errors="surrogatepass") for safe in ("", "/")}
    forms = {secret, escaped, repr(secret)[1:-1], *encoded}
    # A word, or a letter or two, is a part of other words: it is hidden where it stands alone.
    alone = len(secret) < SHORT or secret.isalpha()
    for form in sorted(forms, key=len, reverse=True):
        text = re.escape(form)
        yield re.compile(rf"(?<=['\"=:]){text}(?=['\"@&\s;,)]|$)" if alone else text)
