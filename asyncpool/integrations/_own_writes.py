"""The token of a user's last write, in a cookie or a header of requests and responses.

This module decides what is read, what is sent and when; it knows no framework.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import psycopg

from asyncpool import Cluster, OwnWrites

from ._limits import NAME
from ._shared import check_seconds

logger = logging.getLogger("asyncpool")

COOKIE = "asyncpool_token"
MAX_AGE = 3600
"""Seconds for which a client keeps a cookie; a replica has replayed the token long before that."""
MAX_TOKENS = 8
"""Of one request; the rest is ignored."""


class TokenCarrier:
    """Reads tokens from requests, and says what a response carries.

    Args:
        cookie: the name of the cookie; None: no cookie.
        header: the name of the header of requests and responses; None: no header.
        max_age: seconds for which the client keeps the cookie.
        secure: whether the client sends the cookie over TLS only.
        timeout: seconds that the primary may take to give a token before a response begins.

    Raises:
        ValueError: an argument is invalid.
    """

    def __init__(
        self, cookie: str | None, header: str | None, max_age: int, secure: bool, timeout: float
    ) -> None:
        for what, name in (("cookie", cookie), ("header", header)):
            if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
                msg = f"{what} must be a name such as {COOKIE!r}, not {name!r}"
                raise ValueError(msg)
        if cookie is None and header is None:
            msg = "cookie and header are both None: one of them must carry the token"
            raise ValueError(msg)
        check_seconds("max_age", max_age)
        check_seconds("timeout", timeout)
        self._cookie = cookie
        self.header = header
        """The name of the header, if there is one."""
        secured = "; Secure" if secure else ""
        self._attributes = f"Path=/; Max-Age={int(max_age)}; HttpOnly; SameSite=lax{secured}"
        self._timeout = timeout

    def began(
        self, cluster: Cluster[Any], cookies: Iterable[str], headers: Iterable[str]
    ) -> OwnWrites:
        """Return a request's context; it begins with the latest token that the request carries.

        Args:
            cluster: the cluster.
            cookies: the values of the request's Cookie headers.
            headers: the values of the request's header for tokens.
        """
        own = cluster.own_writes()
        given = [*(headers if self.header is not None else ()), *self._cookies_in(cookies)]
        for text in given[:MAX_TOKENS]:
            with suppress(ValueError):  # a client may send anything
                own.see(text.strip())
        return own

    async def headers_after(self, own: OwnWrites, came: str | None) -> list[tuple[str, str]]:
        """Return the headers for a response: none unless the context has written.

        If the primary gives no token, the response is sent without one, as the writes are done.

        Args:
            own: the context of the request.
            came: its token at the beginning.
        """
        if not own.is_settled:
            try:
                async with asyncio.timeout(self._timeout):
                    await own.settle(self._timeout)
            except (psycopg.Error, TimeoutError) as error:
                text = "a response carries no token of what its request has written: %s"
                logger.warning(text, str(error) or type(error).__name__)
        token = own.token
        if token is None or token == came:
            return []
        headers = [] if self.header is None else [(self.header, token)]
        if self._cookie is not None:
            headers.append(("Set-Cookie", f"{self._cookie}={token}; {self._attributes}"))
        return headers

    def _cookies_in(self, headers: Iterable[str]) -> list[str]:
        found = []
        for header in headers if self._cookie is not None else ():
            for each in header.split(";"):
                name, _, value = each.strip().partition("=")
                if name == self._cookie:
                    found.append(value.strip('"'))
        return found
