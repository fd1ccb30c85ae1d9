"""`cluster.own_writes()`: a context whose reads see what was written in it.

The context knows the token of its last write. A block whose COMMIT brought its token along leaves
it here. Any other write is only noted, and the next read asks the primary for a token, which covers
all writes that had ended by then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from contextvars import Token as Reset
from types import TracebackType
from typing import Self

from asyncpool._cluster.token import Token, latest, parsed

Ask = Callable[[float | None], Awaitable[Token]]
"""Asks the primary for a token, within some seconds."""
Use = Callable[[], bool]
"""Whether the borrower of a connection still has it."""


class Noted:
    """The writes of one context, as far as they are known.

    Args:
        cluster: tells the contexts of several clusters apart.
        ask: asks the primary for a token.
        token: the token to begin with.
    """

    def __init__(self, cluster: object, ask: Ask, token: Token | None) -> None:
        self.cluster = cluster
        self.token = token
        """The latest token that is known."""
        self.outer: Noted | None = None
        """The context around this one."""
        self._ask = ask
        self._begun = 0
        """The writes that have begun and not ended, and may have committed a part."""
        self._ended = 0
        """The writes that have ended without a token."""
        self._covered = 0
        """The value of `_ended` that the token covers."""
        self._uses: dict[object, Use] = {}
        """By their leases, the connections that were borrowed without a block."""

    @property
    def is_settled(self) -> bool:
        """Whether the token covers all writes so far."""
        return not self._begun and self._ended == self._covered and not self._uses

    async def required(self, timeout: float | None = None) -> Token | None:
        """Return the token that a read needs now; ask the primary if it is not known.

        Args:
            timeout: seconds for the question.

        Raises:
            psycopg.Error: the primary gave no token.
        """
        if not self.is_settled:
            self._end_uses()
            covered = self._ended
            token = await self._ask(timeout)
            self._covered = max(self._covered, covered)
            self.see(token)
        return self.token

    def see(self, token: Token) -> None:
        """Have the reads see a token, besides those before."""
        self.token = latest(self.token, token)

    def begin(self) -> None:
        """Note that a write begins, which may commit before it ends."""
        self._begun += 1

    def end(self, token: Token | None) -> None:
        """Note that such a write has ended, with its token if that is known."""
        self._begun -= 1
        self.note(token)

    def note(self, token: Token | None = None) -> None:
        """Note that a write has ended, with its token if that is known."""
        if token is None:
            self._ended += 1
        else:
            self.see(token)

    def add_use(self, lease: object, use: Use) -> None:
        """Note that a connection was borrowed, which may commit until it is returned."""
        self._end_uses()
        self._uses[lease] = use

    def drop_use(self, lease: object) -> None:
        """Forget a use, as something else notes what it writes."""
        self._uses.pop(lease, None)

    def _end_uses(self) -> None:
        for lease in [lease for lease, lasts in self._uses.items() if not lasts()]:
            del self._uses[lease]
            self._ended += 1


class OwnWrites:
    """A context whose reads see what was written in it: `with cluster.own_writes() as own:`.

    Blocks and one-shots on `cluster.write` inside, also in tasks that are created inside, move its
    token on. Those on `cluster.read` inside use it, unless they are given `after=`. Tasks that
    outlive the block still share it.
    """

    def __init__(self, noted: Noted) -> None:
        self._noted = noted
        self._reset: Reset[Noted | None] | None = None

    def __repr__(self) -> str:
        return f"<OwnWrites token={self.token!r} settled={self.is_settled}>"

    @property
    def token(self) -> str | None:
        """The token that is known now; `settle` returns that of the latest writes."""
        return None if (token := self._noted.token) is None else str(token)

    @property
    def is_settled(self) -> bool:
        """Whether the token covers all writes so far."""
        return self._noted.is_settled

    def see(self, token: str) -> None:
        """Have the reads see a token too, such as that of the user's last request.

        Raises:
            TypeError, ValueError: it is no token.
        """
        self._noted.see(Token.parse(token))

    async def settle(self, timeout: float | None = None) -> str | None:
        """Return the token that covers all writes of the context that have ended by now.

        This asks the primary, in one round trip, unless each write since the last time was a block
        whose COMMIT brought its token along.

        Args:
            timeout: as for `execute`.

        Returns:
            None if nothing was written and there was no token to begin with.

        Raises:
            psycopg.Error: the primary gave no token.
        """
        await self._noted.required(timeout)
        return self.token

    def __enter__(self) -> Self:
        if self._reset is not None:
            msg = "this context is in use: call own_writes() again"
            raise RuntimeError(msg)
        self._noted.outer = _CURRENT.get()
        self._reset = _CURRENT.set(self._noted)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        reset, self._reset = self._reset, None
        if reset is not None:
            with suppress(ValueError):  # the end of an async generator may run in another context
                _CURRENT.reset(reset)


_CURRENT: ContextVar[Noted | None] = ContextVar("asyncpool_own_writes", default=None)
"""The innermost context, of whatever cluster."""


def noted_of(cluster: object) -> Noted | None:
    """Return the innermost context of a cluster in which the code runs, if any."""
    noted = _CURRENT.get()
    while noted is not None and noted.cluster is not cluster:
        noted = noted.outer
    return noted


def own_writes(cluster: object, ask: Ask, after: str | None) -> OwnWrites:
    """Return a context of a cluster; see `Cluster.own_writes`."""
    return OwnWrites(Noted(cluster, ask, parsed(after)))


@contextmanager
def nothing_noted() -> Iterator[None]:
    """Run statements that no context notes."""
    reset = _CURRENT.set(None)
    try:
        yield
    finally:
        _CURRENT.reset(reset)
