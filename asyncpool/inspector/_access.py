"""Access to the page: by HTTP basic authentication, or by a function of the application."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Callable
from typing import Any

CHALLENGE = {"WWW-Authenticate": 'Basic realm="asyncpool", charset="UTF-8"'}
"""The header of a response with status 401."""


class BasicAuth:
    """One user and a password, by HTTP basic authentication.

    Only a digest of them is kept, so that the comparison takes the same time whatever is given.
    """

    def __init__(self, user: str, password: str) -> None:
        self._digest = _digest(f"{user}:{password}".encode())

    def admits(self, header: str) -> bool:
        """Return whether the value of an Authorization header has this user and password."""
        scheme, _, encoded = header.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return secrets.compare_digest(_digest(given), self._digest)


def check_access(
    authorize: Callable[..., Any] | None, basic_auth: tuple[str, str] | None, argument: str
) -> BasicAuth | None:
    """Return the basic authentication; None: `authorize` decides.

    Args:
        authorize: as of the inspector.
        basic_auth: as of the inspector.
        argument: the name of the argument of `authorize`, for the error.

    Raises:
        TypeError: both are given or neither, or one has the wrong type.
        ValueError: the user or the password is empty, or the user has a colon.
    """
    if (authorize is None) == (basic_auth is None):
        given = "neither" if authorize is None else "both"
        msg = f"an inspector takes either authorize or basic_auth: got {given}"
        raise TypeError(msg)
    if basic_auth is None:
        if not callable(authorize):
            msg = f"authorize must be a function of the {argument}: got {authorize!r}"
            raise TypeError(msg)
        return None
    if not (
        isinstance(basic_auth, tuple | list)
        and len(basic_auth) == 2
        and all(isinstance(each, str) for each in basic_auth)
    ):
        # The value is not in the message, since it may have the password.
        msg = f"basic_auth must be a pair (user, password) of str: got {type(basic_auth).__name__}"
        raise TypeError(msg)
    user, password = basic_auth
    if not password:
        msg = "the password of basic_auth is empty: set the variable or secret it comes from"
        raise ValueError(msg)
    if not user or ":" in user:
        msg = f"the user of basic_auth must not be empty or have a colon: got {user!r}"
        raise ValueError(msg)
    return BasicAuth(user, password)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
