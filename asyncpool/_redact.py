"""What libpq says without the secrets that it repeats: some of its errors quote the conninfo."""

from __future__ import annotations

import re

HIDDEN = "***"
_SECRETS = (
    # postgresql://user:secret@host, however much of it
    (re.compile(r"(://[^\s:/@'\"]*:)[^\s'\"]*@"), rf"\1{HIDDEN}@"),
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
    (re.compile(r"(\"=\" after )\"[^\"]*\""), rf'\1"{HIDDEN}"'),
    (re.compile(r"((?:option|token|URI|in|parameter):? )\"[^\"]*\""), rf'\1"{HIDDEN}"'),
    (re.compile(r"(['\"])[^'\"\s]*@"), rf"\1{HIDDEN}@"),
)


def redacted(said: object) -> str:
    """The text of an error, or any other, without passwords."""
    text = str(said)
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def described(error: BaseException) -> str:
    """The same with the class of the error, which is all where it has no text."""
    return f"{type(error).__name__}: {redacted(error)}".removesuffix(": ")
