"""What a context of `own_writes()` knows of its writes, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from asyncpool._cluster.own_writes import Noted, OwnWrites, noted_of, nothing_noted, own_writes
from asyncpool._cluster.token import Token


class Primary:
    """A primary whose position moves on with each question."""

    def __init__(self) -> None:
        self.position = 0x1000
        self.asked = 0
        self.gate: asyncio.Event | None = None

    async def __call__(self, timeout: float | None) -> Token:
        """Answer."""
        self.asked += 1
        found = Token(1, self.position)
        if self.gate is not None:
            await self.gate.wait()
        return found

    def noted(self, after: str | None = None) -> Noted:
        """Return what is known of the writes of a context."""
        return Noted(self, self, None if after is None else Token.parse(after))

    def own(self, after: str | None = None) -> OwnWrites:
        """Return a context."""
        return own_writes(self, self, after)

    async def token(self, noted: Noted) -> str | None:
        """Return the token that a read needs."""
        return None if (token := await noted.required()) is None else str(token)


async def test_a_context_without_writes_asks_nothing() -> None:
    """It returns the token that it began with."""
    primary = Primary()
    assert await primary.token(primary.noted()) is None
    assert await primary.token(primary.noted("0/5@1")) == "0/5@1"
    assert not primary.asked


async def test_a_write_is_asked_for_once() -> None:
    """The answer holds until the next write."""
    primary = Primary()
    noted = primary.noted("0/5@1")
    noted.note()
    assert str(noted.token) == "0/5@1"
    assert not noted.is_settled
    assert [await primary.token(noted) for _ in range(3)] == ["0/1000@1"] * 3
    assert primary.asked == 1
    noted.note()
    await primary.token(noted)
    assert primary.asked == 2


async def test_a_write_that_brought_its_token_is_not_asked_for() -> None:
    """Unless another one has ended without."""
    primary = Primary()
    noted = primary.noted()
    noted.begin()
    noted.end(Token(1, 0x500))
    assert await primary.token(noted) == "0/500@1"
    assert not primary.asked
    noted.note()
    noted.begin()
    noted.end(Token(1, 0x600))
    assert await primary.token(noted) == "0/1000@1"


async def test_a_write_that_ends_while_the_primary_answers_is_not_covered() -> None:
    """Its commit may be later than the position."""
    primary = Primary()
    primary.gate = asyncio.Event()
    noted = primary.noted()
    noted.note()
    settling = asyncio.create_task(primary.token(noted))
    await asyncio.sleep(0)
    primary.position = 0x2000
    noted.note()
    primary.gate.set()
    assert await settling == "0/1000@1"
    assert not noted.is_settled
    assert await primary.token(noted) == "0/2000@1"


async def test_a_failed_question_leaves_the_write_to_be_asked_for() -> None:
    """A cancelled one too."""
    primary = Primary()
    primary.gate = asyncio.Event()
    noted = primary.noted()
    noted.note()
    settling = asyncio.create_task(primary.token(noted))
    await asyncio.sleep(0)
    settling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await settling
    assert not noted.is_settled
    primary.gate = None
    assert await primary.token(noted) == "0/1000@1"


async def test_a_block_under_way_may_commit_at_any_time() -> None:
    """So each read asks until it has ended."""
    primary = Primary()
    noted = primary.noted()
    noted.begin()
    await primary.token(noted)
    await primary.token(noted)
    assert primary.asked == 2
    noted.end(None)
    await primary.token(noted)
    assert primary.asked == 3
    assert noted.is_settled


async def test_a_borrowed_connection_may_commit_until_it_is_returned() -> None:
    """Its end is found by asking whether the lease lasts."""
    primary, lasts = Primary(), True
    noted = primary.noted()
    still: Callable[[], bool] = lambda: lasts  # noqa: E731
    noted.add_use("lease", still)
    await primary.token(noted)
    await primary.token(noted)
    assert primary.asked == 2
    lasts = False
    await primary.token(noted)
    assert primary.asked == 3
    assert noted.is_settled
    await primary.token(noted)
    assert primary.asked == 3


def test_contexts_nest_by_cluster() -> None:
    """The innermost one of a cluster counts; another cluster's is none of its."""
    one, two = Primary(), Primary()

    def seen() -> tuple[str | None, ...]:
        return tuple(
            None if (each := noted_of(of)) is None else str(each.token) for of in (one, two)
        )

    assert seen() == (None, None)
    with one.own("0/1@1"):
        with two.own("0/2@1"):
            assert seen() == ("0/1@1", "0/2@1")
            with one.own("0/3@1"):
                assert seen() == ("0/3@1", "0/2@1")
        assert seen() == ("0/1@1", None)
        with nothing_noted():
            assert seen() == (None, None)
    assert seen() == (None, None)


async def test_tasks_started_inside_share_the_context() -> None:
    """What they write is read by the others, also by those that outlive the block."""
    primary = Primary()

    async def write() -> None:
        found = noted_of(primary)
        assert found is not None
        found.note()

    with primary.own() as own:
        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            group.create_task(write())
        assert await own.settle() == "0/1000@1"
        late = asyncio.create_task(write())
    await late
    assert not own.is_settled
    assert repr(own) == "<OwnWrites token='0/1000@1' settled=False>"


def test_a_context_may_see_further_tokens() -> None:
    """The latest of them counts."""
    own = Primary().own()
    for text in ("0/5@1", "0/9@1", "0/7@1"):
        own.see(text)
    with pytest.raises(ValueError, match="token"):
        own.see("")
    assert str(own.token) == "0/9@1"


def test_a_context_is_entered_once_at_a_time() -> None:
    """Its token is that of one request."""
    own = Primary().own()
    with own, pytest.raises(RuntimeError, match="in use"):
        own.__enter__()
    with own:
        pass


@pytest.mark.parametrize(("after", "error"), [("x", ValueError), (5, TypeError)])
def test_a_context_begins_with_a_token_or_none(after: str, error: type[Exception]) -> None:
    """Anything else is an error at the call."""
    with pytest.raises(error, match="token"):
        Primary().own(after)
