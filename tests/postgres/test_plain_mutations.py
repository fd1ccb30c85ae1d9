"""Plain reads with something put in, left out or exchanged call no function but harmless ones."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpool._sql.keywords import KEYWORDS
from asyncpool._sql.kinds import Kind, kind_of
from asyncpool._sql.lexer import tokens
from tests.unit._statements import NEWER, READS, lines

from ._plain_reads import FUZZ, SPECIAL, connected, read

TEXTS = [[each.text for each in tokens(text)] for text in lines(READS + NEWER)]
MARKS = ['"q"', "foo", "(", ")", ",", ".", "::", "'x'", "1", "=", "t", "a", "[", "]", "*", "foo(1)"]
WORDS = [*sorted(KEYWORDS), *MARKS * 20]


@pytest.fixture(scope="module")
def conn(asyncpool_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit to the schema."""
    with connected(asyncpool_dsn) as conn:
        yield conn


def mutated(random: Random) -> str:
    """A plain read in which a call is put in, and up to two other places are changed."""
    parts = list(random.choice(TEXTS))
    if random.random() < 0.2:
        other = random.choice(TEXTS)
        start = random.randrange(len(parts) + 1)
        parts[start:start] = other[random.randrange(len(other) or 1) :]
    for number in range(random.choice([1, 1, 1, 2, 2, 3])):
        at = random.randrange(len(parts) + 1)
        place = slice(at, at + random.randrange(2))
        match random.randrange(4) if number else 0:
            case 0:
                value = random.choice(["1", "'a'", "", "'a', 'b'"])
                parts[place] = [random.choice(SPECIAL), "(", value, ")"]
            case 1:
                parts[place] = [random.choice(WORDS)]
            case 2:
                parts[place] = [f'"{each}"' for each in parts[place] if each.isalpha()]
            case _:
                parts[place] = []
    return " ".join(parts).replace(" . ", ".")


@pytest.mark.exhaustive
@given(seed=st.integers(0, 2**32))
@settings(FUZZ, max_examples=100)
def test_no_function_is_called_that_looks_like_a_part_of_the_grammar(
    conn: psycopg.Connection[Any], seed: int
) -> None:
    """Those that are plain reads still are run: none of our functions is called, nothing locked."""
    random = Random(seed)
    for _ in range(300):
        text = mutated(random)
        if kind_of(text) is Kind.READ:
            read(conn, text)
