"""The pipeline of `asyncpool.Connection`."""

from __future__ import annotations

from typing import Any, Self

import psycopg
from psycopg.abc import PQGen

from asyncpool._psycopg.internals import PIPELINE_END


class Pipeline(psycopg.AsyncPipeline):
    """A pipeline of a watched connection; the transport ends it where its end was cancelled."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.level += 1
        return self

    def _enter_gen(self) -> PQGen[None]:
        """Leave the level to `__aenter__`, which a caller that was cancelled does not reach."""
        yield from super()._enter_gen()
        self.level -= 1

    def _exit(self, error: BaseException | None = None) -> None:
        conn: Any = self._conn
        cancelled, conn._pipeline_end_cancelled = conn._pipeline_end_cancelled, False
        if not cancelled:
            conn._transport.note_leftovers(exist=bool(conn._deferred))
            super()._exit(error)
        else:
            conn._transport.note_leftovers()
            self.level -= 1
            if self.level == 0:
                # With no pipeline its next step would be another, and have no Sync.
                conn._transport.drop(but=PIPELINE_END)
