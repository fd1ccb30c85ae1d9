"""Removes secrets from errors of libpq, some of which quote the connection string."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

HIDDEN = "***"
SHORT = 6
"""Length below which a secret is only replaced where it stands alone, not inside words."""
_USER = re.compile(r"://[^\s:/@'\"]*:")
# Compiled at the first error, to keep the import short.
_SECRETS = (
    (
        (
            r"(?i)(\b(?:ssl|scram_client_|scram_server_|oauth_client_)?"
            r"(?:password|passwd|secret|key)\s*=\s*)"
            r"(?:'(?:[^'\\]|\\.)*'?|\"[^\"]*\"?|[^\s;&,)]+)"
        ),
        rf"\1{HIDDEN}",
    ),
    # An unquoted secret that contains a space or an @ may be quoted as another part of the string.
    (
        (
            r"(?s)(\"=\" after |invalid connection option |percent-encoded (?:token|value): |URI: "
            r"|URI query parameter: |spaces found in |parser routine: |\"/\"\): )\".*\""
        ),
        rf'\1"{HIDDEN}"',
    ),
    (r"(['\"])(?!/)[^'\"\s]*@", rf"\1{HIDDEN}@"),
)


def redacted(said: object) -> str:
    """Return the text of an error, or another text, without passwords."""
    text = str(said)
    # postgresql://user:secret@host, whatever is in the secret. Not by one pattern, which would take
    # time with the square of the length.
    user, end = _USER.search(text), text.rfind("@")
    if user is not None and end >= user.end():
        text = f"{text[: user.end()]}{HIDDEN}{text[end:]}"
    for pattern, instead in _SECRETS:
        text = re.sub(pattern, instead, text)
    return text


def describe(error: BaseException) -> str:
    """Return the class and the redacted text of an error; only the class if it has no text."""
    return f"{type(error).__name__}: {redacted(error)}".removesuffix(": ")


def conceal(error: BaseException, secrets: Iterable[str]) -> str | None:
    """Remove secrets from an error and from the errors it is chained to.

    Chained errors from which a secret cannot be removed are cut off.

    Args:
        error: its arguments and notes are changed in place.
        secrets: texts to remove, besides anything that looks like a secret.

    Returns:
        None; or a text to use instead, if the secrets cannot be removed from the error itself.
    """
    found = [pattern for secret in secrets for pattern in _patterns(secret)]
    if _clean(error, found, set()):
        return None
    return f"{type(error).__name__}: {_without(str(error), found)}"


def _clean(error: BaseException, secrets: list[re.Pattern[str]], seen: set[int]) -> bool:
    """Clean an error and its chain; return whether it shows none of the secrets now."""
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
    """The forms in which a secret may occur: unchanged, escaped, or percent-encoded."""
    escaped = secret.replace("\\", "\\\\").replace("'", "\\'")
    encoded = {quote(secret, safe, errors="surrogatepass") for safe in ("", "/")}
    forms = {secret, escaped, repr(secret)[1:-1], *encoded}
    # A short or purely alphabetic secret may be part of other words: replace it only on its own.
    alone = len(secret) < SHORT or secret.isalpha()
    for form in sorted(forms, key=len, reverse=True):
        text = re.escape(form)
        yield re.compile(rf"(?<=['\"=:]){text}(?=['\"@&\s;,)]|$)" if alone else text)
