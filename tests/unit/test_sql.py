"""The kinds of one-shot statements by their text: plain reads, single statements, all others."""

from __future__ import annotations

from string import printable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg._encodings import py_codecs

from asyncpool._sql.kinds import LONG, MISLEADING, Kind, classify, text_of
from asyncpool._sql.lexer import statements
from tests._tools import few

from ._statements import NEWER, OTHERS, PARAMETERS, READS, SINGLES, lines


@pytest.mark.parametrize("text", lines(READS + PARAMETERS + NEWER))
def test_plain_reads(text: str) -> None:
    """These statements can only read."""
    if text == "/* leading */ -- and":
        text += "\nSELECT 1"
    assert classify(text) is Kind.READ


@pytest.mark.parametrize("text", lines(SINGLES))
def test_single_statements(text: str) -> None:
    """These statements may write, or it is not certain that they only read."""
    if text.endswith("-- x"):
        text += "\nUPDATE"
    assert classify(text) is Kind.SINGLE


@pytest.mark.parametrize(
    "text",
    [
        *lines(OTHERS),
        "",
        " ",
        "SELECT 1\0",
        "SELECT '\0'",
        "SELECT 1 -- x\r; SELECT 2",
        "\u017felect 1",
    ],
)
def test_all_else(text: str) -> None:
    """Several statements, other kinds, and texts that depend on the server's settings."""
    assert classify(text.replace("--x", "--x\n")) is Kind.OTHER


@pytest.mark.parametrize(
    "query",
    [
        b"SELECT 1",
        sql.SQL("SELECT 1"),
        sql.SQL("SELECT {}, {} FROM {}").format(
            sql.Identifier("a", "b;"), sql.Placeholder(), sql.Identifier('into "')
        ),
        sql.Composed([sql.SQL("SELECT "), sql.Composed([sql.Placeholder("x")])]),
        sql.SQL(", ").join([sql.SQL("SELECT 1"), sql.Identifier("x")]),
    ],
)
def test_queries_whose_text_is_the_same_for_every_connection(query: object) -> None:
    """ASCII bytes, and psycopg's composed queries without values."""
    assert classify(query) is Kind.READ  # type: ignore[arg-type]


class Own(sql.SQL):
    """A part that may be written in another way."""


class OwnText(str):
    """A text that may be written in another way."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Write something else."""
        return b"DELETE FROM t"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 'é'".encode(),
        "SELECT '表'".encode("shift_jis"),
        bytearray(b"SELECT 1"),
        sql.SQL("SELECT {}").format(sql.Literal(1)),
        sql.SQL("SELECT {}").format(1),
        sql.Composed([sql.SQL("SELECT 1"), Own("")]),
        Own("SELECT 1"),
        OwnText("SELECT 1"),
        None,
        1,
    ],
)
def test_queries_that_need_a_connection(query: object) -> None:
    """Other bytes, values, parts of users' classes, and objects that are no query."""
    assert text_of(query) is None  # type: ignore[arg-type]
    assert classify(query) is Kind.OTHER  # type: ignore[arg-type]


def test_a_string_of_another_class_counts_as_a_string() -> None:
    """A subclass of str counts if it does not override `encode`."""

    class Name(str):
        __slots__ = ()

    assert type(text_of(Name("SELECT 1"))) is str


def test_characters_that_an_encoding_writes_as_others_are_known() -> None:
    """In some client encodings another character is written as a backslash."""
    for codec in set(py_codecs.values()):
        if codec.startswith(("cp125", "iso", "koi", "cp8")):
            assert bytes(range(128)).decode(codec) == bytes(range(128)).decode()
            continue
        for code in [*range(0x80, 0xD800), *range(0xE000, 0x10000)]:
            written = chr(code).encode(codec, "ignore")
            if len(written) == 1 and written < b"\x80":
                assert MISLEADING.match(chr(code)), (codec, hex(code), written)


def test_a_long_text_is_not_read_to_its_end() -> None:
    """A long text takes about a millisecond, whatever it contains."""
    assert classify("SELECT " + "1," * LONG) is Kind.SINGLE
    assert classify("SELECT '" + ";" * LONG + "'") is Kind.OTHER
    assert classify("INSERT INTO t VALUES " + "('a'), " * LONG) is Kind.SINGLE
    assert classify("(" * LONG * 10) is Kind.OTHER


PARTS = [
    *(
        "'",
        '"',
        "\\",
        "$",
        "$$",
        "$a$",
        "--",
        "/*",
        "*/",
        ";",
        "E",
        "U&",
        "N",
        "B",
        "(",
        ")",
        ",",
        ".",
    ),
    *("\n", "\r", " ", "a", "1", "é", "\0", "-", "%", "%s", "%(x)s", "::", "SELECT", "FROM", "AS"),
    *("BEGIN", "ATOMIC", "END", "CREATE", "FUNCTION", "lower(", "FOR", "WITH"),
]
SOUP = st.lists(st.sampled_from(PARTS) | st.text(printable, max_size=3), max_size=30).map("".join)


@given(SOUP)
@settings(max_examples=500, deadline=None)
def test_the_statements_of_a_text_are_parts_of_it(text: str) -> None:
    """The statements are in order, and only semicolons, space and comments are between them."""
    for escapes in (False, True):
        at = 0
        for each in statements(text, escapes=escapes):
            assert at <= each.start < each.end <= len(text)
            places = [place for token in each.tokens for place in (token.start, token.end)]
            assert places
            assert places == sorted(places)
            assert each.start <= places[0]
            assert places[-1] <= each.end
            assert statements(text[at : each.start], escapes=escapes) == []
            at = each.end


@given(SOUP)
@settings(max_examples=500, deadline=None)
def test_every_text_has_a_kind(text: str) -> None:
    """No text raises an error, and a semicolon at the end does not change the kind."""
    kind = classify(text)
    if statements(text) and "--" not in text and kind is not Kind.OTHER:
        assert classify(text + ";") is kind
        assert classify(text + "; SELECT 1") is Kind.OTHER


LONGEST = [
    *("'", "''", "E'\\'", "/*", "*/", "$a$", "$a", "-- x\n", "'a' ", "'a'\n", "'a'\n\n", "1_", "-"),
    *("(", ")", "U&", 'U&"', "/-", "a.", "lower(", "%(", "%(a", ";", "1.", "1e", "$1", "\r", "AS("),
]


@pytest.mark.parametrize("part", few(LONGEST, 3))
@pytest.mark.timeout(60)
def test_reading_takes_time_in_proportion_to_the_length(part: str) -> None:
    """Quadratic time would take minutes."""
    text = "SELECT " + part * 50_000
    assert statements(text) is not None
    assert classify(text) is not Kind.READ
