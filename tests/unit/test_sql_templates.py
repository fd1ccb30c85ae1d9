"""The text of template strings, which exist since Python 3.14."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import sql

from asyncpool._sql.kinds import Kind, classify, text_of

if sys.version_info >= (3, 14):
    from string.templatelib import Interpolation, Template
else:

    class Interpolation:
        """A substitute for the class of Python 3.14."""

        def __init__(
            self, value: Any, expression: str = "", conversion: Any = None, format_spec: str = ""
        ) -> None:
            self.value, self.expression = value, expression
            self.conversion, self.format_spec = conversion, format_spec

    class Template:
        """A substitute for the class of Python 3.14."""

        def __init__(self, *parts: Any) -> None:
            self._parts = parts

        def __iter__(self) -> Iterator[Any]:
            return iter(self._parts)

    Template.__module__ = "string.templatelib"


def value(value: Any, spec: str = "", conversion: Any = None) -> Interpolation:
    """Return one value of a template."""
    return Interpolation(value, "x", conversion, spec)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (Template("SELECT 1"), "SELECT 1"),
        (Template("SELECT ", value("'; x"), ", ", value(None, "b")), "SELECT $1, $2"),
        (Template("SELECT ", value(1, "s"), "::int, ", value(1, "t")), "SELECT $1::int, $2"),
        (Template("SELECT 1 AS ", value('a"', "i")), 'SELECT 1 AS "a"""'),
        (Template("SELECT ", value(sql.Identifier("a", "b"), "i")), 'SELECT "a"."b"'),
        (
            Template("SELECT ", value(Template(value(1), " + ", value(2)), "q"), ", ", value(3)),
            "SELECT $1 + $2, $3",
        ),
        (Template("SELECT ", value(sql.SQL("{}").format(sql.Identifier("a")), "q")), 'SELECT "a"'),
    ],
)
def test_values_are_placeholders(template: Any, text: str) -> None:
    """Values become placeholders as in psycopg; names and nested parts become text."""
    assert text_of(template) == text
    assert classify(template) is Kind.READ


class Name(str):
    """A name of another class."""

    __slots__ = ()


@pytest.mark.parametrize(
    "template",
    [
        Template("SELECT ", value(1, "l")),
        Template("SELECT ", value(1, "", "r")),
        Template("SELECT ", value(1, "i")),
        Template("SELECT ", value(Name("a"), "i")),
        Template("SELECT ", value(1, "x")),
        Template("SELECT ", value("1", "q")),
        Template("SELECT ", value(Template("1"), "")),
        Template("SELECT ", value(Template(value(1, "l")), "q")),
        Template("SELECT ", value(sql.Literal(1), "l")),
        Template("SELECT ", value(sql.SQL("{}").format(1), "q")),
    ],
)
def test_templates_that_need_a_connection_or_are_errors_have_no_text(template: Any) -> None:
    """Values that become part of the text, and templates that psycopg refuses."""
    assert text_of(template) is None
    assert classify(template) is Kind.OTHER


def test_the_text_that_is_joined_is_read() -> None:
    """A placeholder may change the word before it."""
    queries: list[Any] = [
        Template("SELECT", value(1)),
        Template("SELECT foo", value(1)),
        Template("SELECT 1 ", value(sql.SQL("FOR UPDATE"), "q")),
    ]
    assert [classify(each) for each in queries] == [Kind.OTHER, Kind.READ, Kind.SINGLE]
