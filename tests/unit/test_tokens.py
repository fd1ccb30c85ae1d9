"""Tokens: positions in the log, with the timeline on which they are."""

from __future__ import annotations

from typing import Any

import pytest

from asyncpool._cluster.token import Token, latest

PAGE = b"8192"


@pytest.mark.parametrize("text", ["16/B374D848@1", "0/0", "FFFFFFFF/FFFFFFFF@4294967295"])
def test_a_token_is_written_as_it_is_read(text: str) -> None:
    """With a timeline or without one."""
    assert str(Token.parse(text)) == text


def test_a_position_is_read_as_postgresql_writes_it() -> None:
    """In small letters too, and with leading zeros."""
    assert Token.parse("16/b374d848") == Token(0, 0x16B374D848)
    assert Token.parse("0000000A/0000000F@2") == Token(2, (10 << 32) + 15)


@pytest.mark.parametrize(
    "text",
    [
        *("", "16", "16/", "/1", "16/B374D848@", "16/B374D848@x", "@1", "16/G", "-1/1", "1/1 "),
        *(" 1/1", "1/1\n", "123456789/1", "1/1@12345678901", "1/\u0661", "1/1;path=/", "x" * 9999),
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    """The message has an example, and not more of the value than fits a line."""
    with pytest.raises(ValueError, match="'16/B374D848@1'") as info:
        Token.parse(text)
    assert len(str(info.value)) < 200


@pytest.mark.parametrize("value", [None, 5, b"0/0"])
def test_a_token_is_a_str(value: Any) -> None:
    """Another type is a TypeError."""
    with pytest.raises(TypeError, match="a token must be a str"):
        Token.parse(value)


def test_a_token_of_a_later_timeline_is_later() -> None:
    """The log of the old primary may have been longer: what was in its end is lost."""
    lost, later = Token.parse("0/9000@1"), Token.parse("0/8000@2")
    assert latest(lost, None, later) == later
    assert latest(None, None) is None
    assert latest(Token.parse("0/1@1"), Token.parse("0/2@1")) == Token(1, 2)


@pytest.mark.parametrize(
    ("row", "token"),
    [
        ([b"0/3000148", b"00000001", PAGE], "0/3000148@1"),
        ([b"0/3004018", b"0000000A", PAGE], "0/3004000@10"),
        ([b"0/3002018", b"00000001", b"16384"], "0/3002018@1"),
        ([b"0/3000028", b"00000001", PAGE], "0/3000028@1"),
    ],
)
def test_the_header_of_a_page_belongs_to_no_record(row: list[bytes], token: str) -> None:
    """A standby that has replayed all of the page before is at the beginning of this one."""
    assert str(Token.of_row(row)) == token


def test_a_row_without_a_position_is_an_error() -> None:
    """A server that is no primary may give NULL."""
    with pytest.raises(ValueError, match="not a primary"):
        Token.of_row([None, b"00000001", PAGE])
