"""Statements that make no sense as a one-shot, and the advice for each.

A one-shot runs on any free connection, in a transaction of its own. State of a connection or of a
transaction that goes on is lost, or is left for a later borrower.
"""

from __future__ import annotations

from itertools import pairwise

from asyncpool._sql.lexer import Token, statements

LONG = 10_000
"""Characters; a longer text gets no advice."""
LISTEN = (
    "{} in a one-shot runs on a connection that then returns to the pool: write"
    " `async with pool.listen(channel) as notifications`"
)
SET = (
    "{} in a one-shot runs on any free connection, so later statements may or may not run on that"
    " one: put it into `options=` of the connection string or into `configure=`, or run it in a"
    " block together with the statements that need it"
)
SET_LOCAL = (
    "{} has no effect beyond its transaction, and a one-shot has a transaction of its own: run it"
    " in `async with pool.transaction() as conn` together with the statements that need it"
)
TRANSACTION = (
    "{} in a one-shot does not begin or end a transaction for other statements, as each may run on"
    " another connection: write `async with pool.transaction() as conn`"
)
SAVEPOINT = (
    "{} needs a transaction that goes on, and a one-shot has a transaction of its own: write"
    " `async with pool.transaction() as conn` and, for the savepoint,"
    " `async with conn.transaction()` in it"
)
CURSOR = (
    "{} needs a cursor of the same connection, and each one-shot may run on another: use"
    " `conn.cursor(name=...)` in `async with pool.transaction() as conn`"
)
PREPARED = (
    "{} needs a prepared statement of the same connection, and each one-shot may run on another:"
    " pass the query itself with its values, as psycopg prepares queries that are run often"
)
LOCK = (
    "{} holds its lock until the transaction ends, and a one-shot's transaction ends immediately:"
    " run it in `async with pool.transaction() as conn` together with the statements that need it"
)
COPY = (
    "{} sends or receives data besides the statement: use"
    " `async with conn.cursor().copy(...)` in `async with pool.connection() as conn`"
)
TEMPORARY = (
    "{} belongs to the connection that ran it, and a later one-shot may run on another: create and"
    " use it in one block, `async with pool.connection() as conn`"
)
FIRST_WORDS = {
    **dict.fromkeys(["listen", "unlisten"], LISTEN),
    **dict.fromkeys(["set", "reset", "discard"], SET),
    **dict.fromkeys(["begin", "start", "commit", "end", "rollback", "abort"], TRANSACTION),
    **dict.fromkeys(["savepoint", "release"], SAVEPOINT),
    **dict.fromkeys(["declare", "fetch", "move", "close"], CURSOR),
    **dict.fromkeys(["prepare", "execute", "deallocate"], PREPARED),
    "lock": LOCK,
}
TWO_WORDS = {
    **dict.fromkeys(["set local", "set transaction", "set constraints"], SET_LOCAL),
    **dict.fromkeys(["start transaction", "prepare transaction"], TRANSACTION),
    "rollback to": SAVEPOINT,
}
# These end a prepared transaction from any connection, so they work as a one-shot.
ALLOWED = {"commit prepared", "rollback prepared"}
STREAMS = {("from", "stdin"): "COPY ... FROM STDIN", ("to", "stdout"): "COPY ... TO STDOUT"}


def advice(query_text: str) -> str | None:
    """Return the advice for a text that makes no sense as a one-shot, else None.

    Several statements in one text get none: they run one after the other on the same connection.
    """
    found = statements(query_text) if len(query_text) <= LONG else []
    if len(found) != 1:
        return None
    words = [each.text if each.kind == "word" else "" for each in found[0].tokens]
    two = " ".join(words[:2])
    if two in TWO_WORDS:
        return TWO_WORDS[two].format(two.upper())
    if words[0] in FIRST_WORDS and two not in ALLOWED:
        return FIRST_WORDS[words[0]].format(words[0].upper())
    if words[0] == "copy":
        name = _stream(found[0].tokens)
        return COPY.format(name) if name else None
    rest = [each for each in words[1:5] if each not in ("or", "replace", "global", "local")]
    if words[0] == "create" and rest[:1] in (["temp"], ["temporary"]):
        return TEMPORARY.format(" ".join(["CREATE", *rest[:2]]).upper())
    return None


def _stream(tokens: list[Token]) -> str | None:
    """Return the form of a COPY that moves data through the connection, else None."""
    depth = 0
    for token, following in pairwise(tokens):
        depth += (token.text == "(") - (token.text == ")")
        pair = (token.text, following.text)
        if depth == 0 and pair in STREAMS:
            return STREAMS[pair]
    return None
